"""The unfinished samples of an adaptive solve."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from diffsolve.adaptive.step import index

__all__ = ["Batch"]


@dataclass
class Batch:
    """One row per unfinished sample in every field: arrays, tensors, positions, or tuples of them, batch axis first."""

    rows: np.ndarray
    """(n,): the indices of the samples in the whole batch."""

    def __len__(self) -> int:
        return len(self.rows)

    def leave(self, out: np.ndarray) -> None:
        """Drop the samples where the mask is true."""
        for item in fields(self):
            setattr(self, item.name, _rows(getattr(self, item.name), ~out))


def _rows(value: Any, stay: np.ndarray) -> Any:
    if isinstance(value, tuple):
        return tuple(_rows(part, stay) for part in value)
    return value[index(stay, value) if isinstance(value, Tensor) else stay]
