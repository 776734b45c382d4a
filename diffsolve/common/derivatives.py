"""Operations of which torch has a fast form without a forward derivative, and a plain one with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["plain_operations"]


@contextmanager
def plain_operations() -> Iterator[None]:
    """Attention that is not fused, and group normalisation of contiguous copies.

    Attention is switched for the whole process, as torch has it: other threads' then differs by rounding.
    """
    with sdpa_kernel(SDPBackend.MATH), _ContiguousNorms():
        yield


class _ContiguousNorms(TorchFunctionMode):
    """Group normalisation has a forward derivative of contiguous tensors alone: not in channels-last, or transposed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and (func is F.group_norm or func is torch.group_norm):
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **(kwargs or {}))
