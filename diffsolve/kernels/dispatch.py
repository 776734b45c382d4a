"""Which implementation runs: the Triton kernels or the torch functions beside them."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    pass

__all__ = ["CHOICES", "fused"]

CHOICES = ("torch", "triton")


def fused(device: torch.device) -> Any | None:
    """The module of Triton launches if tensors on `device` go to it, or None: then torch does the work.

    A CUDA or ROCm device goes to Triton, everything else to torch. DIFFSOLVE_KERNELS=torch or =triton forces one;
    Triton on the CPU exists only as its interpreter (TRITON_INTERPRET=1), for tests.

    Raises:
        ValueError: for another value of DIFFSOLVE_KERNELS, or triton on a device that has none.
    """
    choice = os.environ.get("DIFFSOLVE_KERNELS", "")
    if choice not in ("", *CHOICES):
        raise ValueError(f"DIFFSOLVE_KERNELS={choice!r}; accepted: {', '.join(CHOICES)}, or unset")
    if choice == "torch" or (choice == "" and device.type != "cuda"):
        return None
    if device.type != "cuda" and not (device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise ValueError(
            f"DIFFSOLVE_KERNELS=triton on a {device.type} device; accepted: CUDA and ROCm devices, and the CPU under "
            "Triton's interpreter (TRITON_INTERPRET=1)"
        )
    return _triton()


@lru_cache(maxsize=1)  # so that the warning comes once
def _triton() -> Any | None:
    try:
        return importlib.import_module("diffsolve.kernels.launch")
    except Exception as error:  # whatever a broken installation raises while it is imported
        warnings.warn(
            f"Triton cannot be used ({type(error).__name__}: {error}); the kernels of diffsolve run as separate torch "
            "operations, which take more memory traffic. DIFFSOLVE_KERNELS=torch asks for that without this warning",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
