"""Few calls: a distilled student beside the default solver on its teacher, from the same noises."""

import torch
from style import images, save, subplots

import diffsolve as ds

teacher, student = ds.load("digits"), ds.load("digits-student")
shape, cond = (16, 1, 8, 8), {"label": torch.arange(16) % 10}
rows, titles = [], []
for name, model in (("teacher", teacher), ("student", student)):
    for nfe in (1, 2, 4):
        rows.append(ds.sample(model, shape, nfe=nfe, seed=0, cond=cond))
        titles.append(f"{name}, {nfe} call{'' if nfe == 1 else 's'}")
rows.append(ds.sample(teacher, shape, nfe=50, seed=0, cond=cond))
figure, (axis,) = subplots(width=5, height=2.8)
images(axis, rows, [*titles, "teacher, 50 calls"])
save(figure, __file__)
