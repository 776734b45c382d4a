"""An EDM network: D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), as the EDM code base has it, and F by itself."""

import torch
from gallery.style import points, save, subplots

import diffsolve as ds

SIGMA_DATA = 0.7  # the deviation of the data
torch.manual_seed(0)
F = torch.nn.Sequential(
    torch.nn.Linear(3, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128), torch.nn.SiLU(), torch.nn.Linear(128, 128),
    torch.nn.SiLU(), torch.nn.Linear(128, 2),
)  # fmt: skip


def inner(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    return F(torch.cat([x, c_noise[:, None]], 1))


# c_skip, c_out, c_in and c_noise are folded into the weights of a run.
raw = ds.adapt(inner, "edm", "edm", sigma_data=SIGMA_DATA)
angle = 2 * torch.pi * torch.rand(4000)
data = torch.stack([angle.cos(), (2 * angle).sin()], 1)
optimizer = torch.optim.Adam(F.parameters(), lr=3e-3)
rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
for step in range(2000):
    rows = torch.randint(len(data), (256,))
    losses, _ = ds.training.objective(raw, data[rows], times="log-normal", seed=0, step=step)
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    rates.step()
F.requires_grad_(False)


def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """What the EDM code base's EDMPrecond returns."""
    s = sigma[:, None]
    total = s**2 + SIGMA_DATA**2
    out = inner(x / total.sqrt(), sigma.log() / 4)
    return SIGMA_DATA**2 / total * x + s * SIGMA_DATA / total.sqrt() * out


whole = ds.adapt(denoiser, "edm", "denoised", learned="edm")  # which says what the network inside errs on
a = ds.sample(raw, (1000, 2), nfe=12, seed=0)
b = ds.sample(whole, (1000, 2), nfe=12, seed=0)
print(f"the two differ by {float((a - b).abs().max()):.1e}")
figure, axes = subplots(1, 2)
points(axes[0], data[:1000], "data", side=1.5)
points(axes[1], a, "12 calls", side=1.5)
save(figure, __file__)
