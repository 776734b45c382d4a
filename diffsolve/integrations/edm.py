"""Networks of the EDM code base (Karras et al., 2206.00364), preconditioned: D(x, sigma, class_labels)."""

from __future__ import annotations

from typing import Any

import torch

from diffsolve.models import Model, adapt
from diffsolve.paths import EDM

__all__ = ["preconditioned"]


def preconditioned(net: Any) -> Model:
    """An EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond as a Model; class labels are passed as `cond`.

    sigma covers the network's range, within the paper's 0.002 to 80, and is rounded by the network's `round_sigma` (for
    iDDPM to its table). x stays in float32 even for half-precision weights: these networks convert it themselves.
    """
    low, high = max(float(net.sigma_min), 0.002), min(float(net.sigma_max), 80.0)
    return adapt(net, EDM(low, high), "denoised", clock=net.round_sigma, dtype=torch.float32)
