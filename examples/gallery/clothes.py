"""Twelve calls for each piece: clothes of the Fashion-MNIST network, guided at scale 1.5."""

import torch
from style import images, save, subplots

import diffsolve as ds
from diffsolve.reference.data import CLASSES

labels = torch.arange(10).repeat_interleave(12)
guidance = ds.Guidance(1.5, {"label": torch.full_like(labels, -1)})
model = ds.load("fashion")
x = ds.sample(model, (120, 1, 28, 28), nfe=12, seed=0, cond={"label": labels}, guidance=guidance)
figure, (axis,) = subplots(width=5, height=4.2)
images(axis, list(x.split(12)), list(CLASSES))
save(figure, __file__)
