"""A sampling function as k-diffusion, ComfyUI and the web UI call it: sampler(model, x, sigmas, extra_args, callback).

In ComfyUI `diffsolve.integrations.comfyui.register()` lists all solvers in KSampler; this is what it hands over.
"""

import torch
from gallery.style import points, save, subplots

import diffsolve as ds
from diffsolve.integrations.k_diffusion import sampler

denoiser = ds.load("mixture-2d(path='edm', predicts='denoised')").net  # in earnest: the host's wrapper of its model
sigmas = torch.cat(
    [torch.linspace(80 ** (1 / 7), 0.02 ** (1 / 7), 12) ** 7, torch.zeros(1)]
)  # Karras, ends on the data
noise = 80 * torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
seen = []
figure, axes = subplots(1, 3)
for axis, name in zip(axes, ("auto", "dpmpp_2m", "dpmpp_2m_sde"), strict=True):
    x = sampler(name, seed=0)(
        denoiser, noise, sigmas, callback=lambda at: seen.append(float(at["sigma"])), disable=True
    )
    points(axis, x, name)
print("levels of the last run:", *(f"{s:.3g}" for s in seen[-12:]))
save(figure, __file__)
