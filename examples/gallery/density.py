"""Exact log-densities: that of the flow from `ds.log_prob`, beside the formula of the mixture."""

import torch
from style import save, subplots

import diffsolve as ds

side = torch.linspace(-5.5, 5.5, 70)
x = torch.cartesian_prod(side, side)
model = ds.load("mixture-2d")
ours = ds.log_prob(model, x, solver="rk4", steps=48).value
exact = ds.reference.mixture.ring().log_prob(x.double())
figure, axes = subplots(1, 2)
for axis, value, title in zip(axes, (ours, exact), ("ds.log_prob, 192 calls", "the mixture's formula"), strict=True):
    axis.imshow(value.view(70, 70).T.clamp(min=-25), origin="lower", cmap="viridis")
    axis.set(title=title, xticks=[], yticks=[])
axes[1].set_xlabel(f"greatest difference where p > 0.001: {float((ours - exact).abs()[exact > -7].max()):.1e}")
save(figure, __file__)
