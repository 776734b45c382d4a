"""Networks of the EDM code base (Karras et al., 2206.00364), preconditioned: D(x, sigma, class_labels)."""

from __future__ import annotations

from typing import Any

import torch

from diffsolve.models import Model, adapt
from diffsolve.paths import EDM

__all__ = ["preconditioned"]

NOISE = ("VPPrecond", "VEPrecond", "iDDPMPrecond")
"""The classes with c_out = -sigma or sigma, whose network inside predicts the noise up to its sign (table 1)."""


def preconditioned(net: Any) -> Model:
    """An EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond as a Model; class labels are passed as `cond`.

    sigma covers the network's range, within the paper's 0.002 to 80, and is rounded by the network's `round_sigma` (for
    iDDPM to its table). "auto" is told what the network inside learned: the F of EDM, or the noise. x stays in float32
    even for half-precision weights: these networks convert it themselves.
    """
    low, high = max(float(net.sigma_min), 0.002), min(float(net.sigma_max), 80.0)
    learned = "noise" if any(base.__name__ in NOISE for base in type(net).__mro__) else "edm"
    return adapt(net, EDM(low, high), "denoised", clock=net.round_sigma, dtype=torch.float32, learned=learned)
