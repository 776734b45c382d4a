"""Deblurring, super-resolution and a random projection of Fashion-MNIST's clothes, with one posterior sampler."""

import torch
from style import images, save, subplots

import diffsolve as ds
from diffsolve.conditioning import Blur, Downscale, Linear

model, noise = ds.load("fashion"), 0.05
cond = {"label": torch.tensor([0, 1, 2, 5, 7, 8, 9, 3])}
whole = ds.sample(model, (8, 1, 28, 28), nfe=16, seed=2, cond=cond)
line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
matrix = torch.randn(784, 196, generator=torch.Generator().manual_seed(0)) / 28
operators = {
    "blurred": Blur(torch.outer(line, line)),
    "a quarter of the size": Downscale(4),
    "196 projections": Linear(lambda x: x.flatten(1) @ matrix),
}
rows, titles = [whole], ["the image"]
for name, A in operators.items():
    y = A(whole) + noise * ds.Key(1).normal(A(whole).shape)
    posterior = ds.conditioning.posterior(model, A, noise=noise, sigma_data=0.7)
    made = ds.sample(posterior, whole.shape, nfe=12, seed=0, cond={**cond, "observed": y})
    if y.dim() == 4:
        seen = torch.nn.functional.interpolate(y, (28, 28))
        rows, titles = [*rows, seen], [*titles, name]
    rows, titles = [*rows, made], [*titles, "made of it" if y.dim() == 4 else f"made of {name}"]
figure, (axis,) = subplots(width=5, height=2.0)
images(axis, rows, titles)
save(figure, __file__)
