"""Steps chosen for each sample: how many calls dopri5 makes of 400 samples of the mixture, at five tolerances."""

from style import save, subplots

import diffsolve as ds

model = ds.load("mixture-2d")
figure, (axis,) = subplots(width=5, height=2.6)
for tol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
    run = ds.solve(model, (400, 2), solver=ds.Adaptive("dopri5", rtol=tol, atol=tol), seed=0)
    axis.hist(run.nfe.tolist(), bins=20, alpha=0.7, label=f"{tol:g}")
axis.set(xlabel="calls of a sample", ylabel="samples")
axis.legend(title="tolerance")
save(figure, __file__)
