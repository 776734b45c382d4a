"""Learn the times and weights of a run of five calls for one network, and use the file as a solver."""

from gallery.style import points, save, subplots

import diffsolve as ds

model = ds.load("mixture-2d(predicts='v')")
ds.tune(model, (256, 2), nfe=5, iterations=120, seed=0).save("five.json")
noise = ds.Key(1).normal((800, 2))
exact = ds.sample(model, noise=noise, solver="rk4", steps=100)
figure, axes = subplots(1, 3)
for axis, (name, solver) in zip(
    axes, (("euler", "euler"), ("auto", "auto"), ("learned", ds.Tableau.load("five.json"))), strict=True
):
    x = ds.sample(model, noise=noise, solver=solver, **({} if name == "learned" else {"nfe": 5}))
    points(axis, x, f"{name}, 5 calls: error {float((x - exact).norm(dim=1).mean()):.2g}")
save(figure, __file__)
