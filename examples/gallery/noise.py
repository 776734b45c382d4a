"""Noise on the way: the same start, with DDIM's eta from 0 (a flow) to 1 (DDPM), and two seeds of the noise."""

import torch
from style import images, save, subplots

import diffsolve as ds

model = ds.load("fashion-noise")
start, cond = ds.Key(2).normal((10, 1, 28, 28)), {"label": torch.arange(10)}
rows, titles = [], []
for eta, seed in ((0, 0), (0.5, 0), (1, 0), (1, 1)):
    rows.append(ds.sample(model, noise=start, solver=f"ddim(eta={eta})", nfe=20, seed=seed, cond=cond))
    titles.append(f"eta {eta}, seed {seed}")
figure, (axis,) = subplots(width=5, height=2.2)
images(axis, rows, titles)
save(figure, __file__)
