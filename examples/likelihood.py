"""Bits per dimension of images under a flow: real digits, digits upside down, and noise, each with its error bar."""

import torch
from gallery.style import save, subplots

import diffsolve as ds
from diffsolve.reference.digits import load_data

model, (data, labels) = ds.load("digits"), load_data()
real = data[:24]
sets = {"digits": real, "upside down": real.flip(2), "noise": torch.randint(0, 17, real.shape) / 8 - 1}
figure, (axis,) = subplots(width=4)
for name, x in sets.items():
    integers = (8 * (x + 1)).round().long()
    how = {"solver": "rk4", "steps": 8, "trace": "hutchinson(probes=4)", "seed": 0}
    found = ds.bits_per_dim(model, integers, levels=17, data_range=(-17 / 16, 17 / 16), **how)
    print(f"{name:12} {float(found.value.mean()):.2f} bits per dimension")
    axis.hist(found.value.tolist(), bins=12, alpha=0.7, label=name)
axis.set(xlabel="bits per dimension", ylabel="images")
axis.legend()
save(figure, __file__)
