"""Your own network: train one that predicts noise, of the digits and their labels, and sample it with guidance."""

import torch
from gallery.style import images, save, subplots

import diffsolve as ds
from diffsolve.reference.digits import load_data


class Net(torch.nn.Module):
    """Any module that is called as net(x, t, label): here t is the row of a table of 1000 betas."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(64, width), torch.nn.Linear(width, 64)
        self.time, self.label = torch.nn.Linear(32, width), torch.nn.Embedding(11, width)
        self.hidden = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angles = t[:, None].float() / 1000 * torch.pi * torch.arange(1, 17)
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        h = self.inner(x.flatten(1))
        for layer in self.hidden:
            h = h + torch.nn.functional.silu(layer(h + told))
        return self.outer(h).view_as(x)


torch.manual_seed(0)
net, (data, labels) = Net(), load_data()
model = ds.adapt(net, path="ddpm", predicts="noise")
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
nothing = {"label": torch.tensor(10)}  # the class of "no class", which guidance needs
for step in range(800):
    rows = torch.randint(len(data), (128,))
    losses, _ = ds.training.objective(
        model, data[rows], cond={"label": labels[rows]}, seed=0, step=step, drop=0.1, uncond=nothing
    )
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()

net.eval().requires_grad_(False)
wanted = torch.arange(10).repeat_interleave(12)
guidance = ds.Guidance(2.0, {"label": torch.full_like(wanted, 10)})
x = ds.sample(model, (120, 1, 8, 8), nfe=20, seed=0, cond={"label": wanted}, guidance=guidance)
figure, (axis,) = subplots(width=4, height=3.4)
images(axis, list(x.split(12)), [str(k) for k in range(10)])
save(figure, __file__)
