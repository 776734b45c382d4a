"""There and back: digits, their noises by `ds.encode`, and the digits from these noises."""

from style import images, save, subplots

import diffsolve as ds
from diffsolve.reference.digits import load_data

model = ds.load("digits")
data, labels = (part[:16] for part in load_data())
noise = ds.encode(model, data, solver="rk4", steps=40, cond={"label": labels})
back = ds.sample(model, noise=noise, solver="rk4", steps=40, cond={"label": labels})
figure, (axis,) = subplots(width=5, height=1.3)
images(axis, [data, noise / 2, back], ["data", "noise", f"back, {float((back - data).abs().max()):.0e} off"])
save(figure, __file__)
