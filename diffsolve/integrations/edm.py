"""Networks of the EDM code base (Karras et al., 2206.00364), preconditioned: D(x, sigma, class_labels)."""

from __future__ import annotations

from typing import Any

import torch

from diffsolve.models import Model, adapt
from diffsolve.paths import EDM

__all__ = ["preconditioned"]


def preconditioned(net: Any) -> Model:
    """An EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond as a Model; class labels and the like are its `cond`.

    sigma runs over what the network bears, within the paper's 0.002 to 80; it is rounded as the network wants it
    (`round_sigma`: to its table, of an iDDPM). x stays in float32, also for weights in half precision: these networks
    convert by themselves.
    """
    low, high = max(float(net.sigma_min), 0.002), min(float(net.sigma_max), 80.0)
    return adapt(net, EDM(low, high), "denoised", clock=net.round_sigma, dtype=torch.float32)
