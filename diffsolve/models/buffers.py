"""Networks that write every output into one and the same tensor, such as a replayed CUDA graph."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

__all__ = ["note", "reuses", "same_memory"]

_nets: WeakSet[Any] = WeakSet()


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs begin at one address; False inside transforms, where tensors have none."""
    if torch.compiler.is_compiling():
        return False
    try:
        return a.data_ptr() == b.data_ptr() and a.numel() > 0
    except RuntimeError:
        return False


def note(net: object) -> None:
    """Remember, as long as it lives, that a network overwrites its last output."""
    try:
        _nets.add(net)
    except TypeError:  # no weak reference, or no hash: it is found out again at each call
        return


def reuses(net: object) -> bool:
    """Whether the network was seen to overwrite its last output."""
    try:
        return bool(_nets) and net in _nets
    except TypeError:
        return False
