"""How noise is mixed in: x_t = alpha x_0 + sigma eps, on six paths from the noise (left) to the data (right)."""

import numpy as np
from style import save, subplots

import diffsolve as ds

figure, axes = subplots(2, 3, height=2)
for axis, name in zip(axes, ("condot", "cosine", "vp", "ddpm", "ve", "edm"), strict=True):
    path = ds.paths.named(name)
    times = np.linspace(path.t_noise, path.t_last, 200)
    p = path.at(times)
    axis.plot(p.alpha, label="alpha")
    axis.plot(p.sigma, label="sigma")
    axis.set(title=name, xticks=[], yscale="log" if name in ("ve", "edm") else "linear")
axes[0].legend()
save(figure, __file__)
