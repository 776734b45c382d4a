"""Where the calls are: twelve steps of each grid on EDM's path, by log-SNR/2 (noise on the left)."""

from style import save, subplots

import diffsolve as ds

names = ("karras", "uniform-lambda", "uniform-theta", "uniform-t", "uniform-rho", "beta", "quadratic")
known = [name for name in names if name in ds.grids.names()]
figure, (axis,) = subplots(width=5, height=2.4)
for i, name in enumerate(known):
    table = ds.plan("edm", "ddim", steps=12, grid=name)
    lam = ds.paths.named("edm").at(table.times[:-1]).lam
    axis.plot(lam, [i] * len(lam), "o")
axis.set(xlabel="lambda = log(alpha / sigma)", ylim=(len(known) - 0.5, -0.5))
axis.set_yticks(range(len(known)), known)
save(figure, __file__)
