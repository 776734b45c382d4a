"""Ten calls for each digit: samples of a small network that comes with the package, a class in each row."""

import torch
from style import images, save, subplots

import diffsolve as ds

labels = torch.arange(10).repeat_interleave(16)
x = ds.sample(ds.load("digits"), (160, 1, 8, 8), nfe=10, seed=0, cond={"label": labels})
figure, (axis,) = subplots(width=5, height=3.4)
images(axis, list(x.split(16)), [str(k) for k in range(10)])
save(figure, __file__)
