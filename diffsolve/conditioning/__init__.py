"""Sampling what was observed, without training: inpainting, deblurring, super-resolution, any linear operator.

`ds.sample(ds.conditioning.posterior(model, A, y, noise=0.05), shape, nfe=20)`.
"""

from __future__ import annotations

from diffsolve.conditioning.methods import DPS, MMPS, TMPD, Method, PiGDM, Replacement
from diffsolve.conditioning.operators import Blur, Downscale, Linear, Mask, Operator, check_transpose
from diffsolve.conditioning.posterior import posterior, registry

__all__ = [
    "DPS",
    "MMPS",
    "TMPD",
    "Blur",
    "Downscale",
    "Linear",
    "Mask",
    "Method",
    "Operator",
    "PiGDM",
    "Replacement",
    "check_transpose",
    "named",
    "names",
    "posterior",
    "register",
]

named, names, register = registry.resolve, registry.names, registry.register
