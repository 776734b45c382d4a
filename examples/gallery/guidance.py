"""Classifier-free guidance: the same noises of class 7 at six scales."""

import torch
from style import images, save, subplots

import diffsolve as ds

model, label = ds.load("digits"), torch.full((16,), 7)
scales = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


def guided(scale: float) -> torch.Tensor:
    guidance = ds.Guidance(scale, {"label": torch.full((16,), -1)})
    return ds.sample(model, (16, 1, 8, 8), nfe=12, seed=0, cond={"label": label}, guidance=guidance)


figure, (axis,) = subplots(width=5, height=2.2)
images(axis, [guided(scale) for scale in scales], [f"{scale:g}" for scale in scales])
save(figure, __file__)
