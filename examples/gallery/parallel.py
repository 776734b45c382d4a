"""Many calls at once: how far each node of a run of 64 is from the sequential one, after each round of Picard's."""

import torch
from style import save, subplots

import diffsolve as ds

model = ds.load("mixture-2d")
one = ds.solve(model, (64, 2), solver="ab-2", steps=64, seed=0)
figure, (axis,) = subplots(width=5, height=2.8)
for window in (8, 16, 32, 64):
    rounds, errors = [], []
    for tol in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5):
        run = ds.solve(model, (64, 2), solver="ab-2", steps=64, seed=0, parallel=ds.Picard(window=window, tol=tol))
        rounds.append(run.parallel.rounds)
        errors.append(float(torch.dist(run.x, one.x) / one.x.norm()) + 1e-9)
    axis.semilogy(rounds, errors, "o-", label=f"window {window}")
axis.axvline(64, color="0.7", lw=0.8)
axis.set(xlabel="rounds of calls (sequential: 64)", ylabel="difference at the end")
axis.legend()
save(figure, __file__)
