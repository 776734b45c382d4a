"""Which implementation runs: the Triton kernels, the compiled loop, or the torch functions beside them."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import lru_cache
from typing import Any

import torch

from diffsolve import native

__all__ = ["CHOICES", "fused"]

CHOICES = {"torch": None, "triton": "diffsolve.kernels.launch", "native": "diffsolve.kernels.loop"}
"""DIFFSOLVE_KERNELS -> the module that it selects."""


def fused(device: torch.device, what: str) -> Any | None:
    """The fused function `what` for tensors on `device`, or None: then torch does the work.

    A CUDA or ROCm device goes to Triton, everything else to torch. DIFFSOLVE_KERNELS forces one: "torch"; "triton",
    which on the CPU exists only as its interpreter (TRITON_INTERPRET=1), for tests; "native", a loop for the CPU that
    is compiled on first use.

    Raises:
        ValueError: if DIFFSOLVE_KERNELS has another value, or one that the device does not support.
    """
    choice = os.environ.get("DIFFSOLVE_KERNELS", "")
    if choice not in ("", *CHOICES):
        raise ValueError(f"DIFFSOLVE_KERNELS must be {', '.join(CHOICES)} or unset, got {choice!r}")
    if choice == "torch" or (choice == "" and device.type != "cuda"):
        return None
    if choice == "native" and device.type != "cpu":
        raise ValueError(f"the device must be the CPU with DIFFSOLVE_KERNELS=native, got {device.type}")
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if choice == "triton" and device.type != "cuda" and not interpreted:
        raise ValueError(
            "the device must be a CUDA or ROCm device with DIFFSOLVE_KERNELS=triton, or the CPU under Triton's "
            f"interpreter (TRITON_INTERPRET=1), got {device.type}"
        )
    if choice == "native" and native.library() is None:
        return None
    return getattr(_module(choice or "triton"), what, None)


@lru_cache(maxsize=2)  # so that the warning comes once
def _module(choice: str) -> Any | None:
    name = CHOICES[choice]
    assert name is not None
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a broken installation raises while it is imported
        warnings.warn(
            f"the {choice} kernels cannot be used ({type(error).__name__}: {error}); they run as separate torch "
            "operations, which take more memory traffic. DIFFSOLVE_KERNELS=torch asks for that without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
