"""Image to image: a sneaker brought to a noise level and sampled from there; more noise, more change."""

import torch
from style import images, save, subplots

import diffsolve as ds

model = ds.load("fashion")
sneaker = {"label": torch.full((1,), 7)}
first = ds.sample(model, (1, 1, 28, 28), nfe=16, seed=4, cond=sneaker).expand(10, -1, -1, -1)
times = (0.8, 0.6, 0.4, 0.2)
cond = {"label": torch.full((10,), 7)}
rows = [first[:1]]
for t in times:
    noisy = ds.diffuse(model, first, t=t, seed=1)
    rows.append(ds.sample(model, noise=noisy, start=t, nfe=10, cond=cond))
figure, (axis,) = subplots(width=5, height=2.8)
images(axis, rows, ["original", *(f"from t = {t}" for t in times)])
save(figure, __file__)
