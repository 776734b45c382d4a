"""From noise to data: 200 particles follow the exact flow of eight Gaussians on three paths."""

import torch
from style import points, save, subplots

import diffsolve as ds

figure, axes = subplots(1, 3)
for axis, path in zip(axes, ("condot", "cosine", "subvp"), strict=True):
    model = ds.load(f"mixture-2d(path={path!r}, predicts='v')")
    run = ds.solve(model, (200, 2), solver="rk4", steps=60, seed=0, trajectory=True)
    scale = torch.tensor([(8 * p.alpha**2 + p.sigma**2) ** -0.5 for p in map(model.path.at, run.times.tolist())])
    for line in run.trajectory.mul(8**0.5 * scale[:, None, None]).unbind(1):
        axis.plot(*line.T, color="C5", lw=0.4, alpha=0.6)
    points(axis, run.x, path, color="C1", s=5, zorder=3)
save(figure, __file__)
