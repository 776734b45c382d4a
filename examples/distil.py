"""A student of one or two calls: regression on the teacher's own runs, for the moons in the plane."""

import torch
from gallery.style import points, save, subplots

import diffsolve as ds
from diffsolve import distill
from diffsolve.reference.data import points as data_set
from diffsolve.reference.mlp import MLP

torch.manual_seed(0)
data = data_set("moons", 8000, seed=0)
teacher = ds.adapt(MLP(2, 64, 2), "condot", "velocity")
ds.training.fit(teacher, data, "teacher.safetensors", steps=600, batch=256, lr=2e-3, resume=False)
teacher.net.requires_grad_(False)

student = ds.adapt(MLP(2, 64, 2, times=2), "condot", "velocity", jumps="straight")
student.net.load_state_dict(teacher.net.state_dict(), strict=False)  # it begins as its teacher
states = distill.runs(teacher, (8000, 2), nodes=4, fine=4)
loss = distill.trajectory(path=teacher.path, nodes=4)
distill.fit(loss, student, states, "student.safetensors", steps=700, batch=256, lr=2e-3, resume=False)

figure, axes = subplots(1, 4, width=2.4, height=2.6)
points(axes[0], data[:1500], "data", side=3)
for axis, (name, model, nfe) in zip(
    axes[1:],
    (("teacher, 2 calls", teacher, 2), ("student, 1 call", student, 1), ("student, 2 calls", student, 2)),
    strict=True,
):
    points(axis, ds.sample(model, (1500, 2), nfe=nfe, seed=0).detach(), name, side=3)
save(figure, __file__)
