"""Between two noises: ends of the flow from noises on the arc between two, for four classes."""

import math

import torch
from style import images, save, subplots

import diffsolve as ds

model = ds.load("fashion")
a, b = ds.Key(5).normal((2, 1, 28, 28))
angles = torch.linspace(0, math.pi / 2, 11)[:, None, None, None]
noise = angles.cos() * a + angles.sin() * b
rows = [ds.sample(model, noise=noise, nfe=12, cond={"label": torch.full((11,), k)}) for k in (0, 3, 7, 8)]
figure, (axis,) = subplots(width=5, height=2.1)
images(axis, rows)
save(figure, __file__)
