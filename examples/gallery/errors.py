"""Error against calls: the distance from the exact end of the flow, for seven solvers on eight Gaussians."""

from style import save, subplots

import diffsolve as ds

model = ds.load("mixture-2d(predicts='v')")
noise = ds.Key(0).normal((500, 2)).double()
exact = ds.sample(model, noise=noise, solver="rk4", steps=400)
figure, (axis,) = subplots(width=5, height=3.2)
calls = (4, 6, 8, 12, 16, 24, 32, 48, 64)
for solver, mark in zip(("auto", "euler", "heun", "dpmpp-2m", "unipc-3", "rk4", "ipndm-4"), "os^vDPX", strict=True):
    errors = [float((ds.sample(model, noise=noise, solver=solver, nfe=n) - exact).norm(dim=1).mean()) for n in calls]
    axis.loglog(calls, errors, marker=mark, label=solver)
axis.set(xlabel="network calls", ylabel="mean error", xticks=calls, xticklabels=map(str, calls))
axis.minorticks_off()
axis.legend(ncols=2)
save(figure, __file__)
