"""Half of each digit is known: what a network that nobody trained for it makes of the other half, by six methods."""

import torch
from style import images, save, subplots

import diffsolve as ds
from diffsolve.reference.digits import load_data

data, labels = load_data()
whole = torch.stack([data[labels == k][5] for k in range(10)])
mask = torch.zeros(8, 8)
mask[:, :4] = 1
known = ds.conditioning.Mask(mask)
model = ds.load("digits")


def filled(method: str, solver: str, steps: int) -> torch.Tensor:
    posterior = ds.conditioning.posterior(model, known, method=method, noise=0.05, sigma_data=0.7)
    run = {"solver": solver, "steps": steps, "seed": 0, "cond": {"observed": known(whole)}}
    return ds.sample(posterior, whole.shape, **run)


shown = torch.where(mask > 0, whole, torch.tensor(0.5))
rows = {
    "the digit": whole,
    "what is known": shown,
    "replacement": filled("replacement", "unipc-3", 20),
    "RePaint": filled("replacement", "repaint(resamples=8)", 20),
    "DPS": filled("dps(zeta=0.5)", "ddim(eta=1)", 100),
    "PiGDM": filled("pigdm", "unipc-3", 20),
    "TMPD": filled("tmpd", "unipc-3", 20),
    "MMPS": filled("mmps", "unipc-3", 20),
}
figure, (axis,) = subplots(width=5.2, height=3)
images(axis, list(rows.values()), list(rows))
save(figure, __file__)
