"""Progress bars, and the check for network outputs that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import flat

__all__ = ["Watch", "bar", "check_finite"]


def bar(progress: bool, total: int | None) -> Any:
    """A progress bar over network calls, shown if `progress`."""
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not progress, unit="call")


def check_finite(out: Tensor, where: str) -> None:
    """Raise a FloatingPointError unless every value of a network's output is finite. Synchronises with the device."""
    if not bool(out.isfinite().all()):
        bad = int((~out.isfinite()).sum())
        raise FloatingPointError(f"net returned {bad} non-finite values of {out.numel()} {where}")


class Watch:
    """Sees every network output of a run whose samples have times of their own.

    Args:
        check: stop at the first output that is not finite, naming the first such sample's time.
        progress: the bar that counts the calls.
    """

    def __init__(self, check: bool, progress: Any) -> None:
        self.check, self.progress, self.calls = check, progress, 0

    def __call__(self, out: Tensor, t: np.ndarray) -> None:
        """The output of a batch of samples at the times t."""
        if self.check:
            rows = flat(out.detach()).isfinite().all(1)
            if not bool(rows.all()):
                first = int(torch.nonzero(~rows)[0])
                check_finite(out, f"in call {self.calls}, of a sample at t={float(t[first]):.6g}")
        self.calls += 1
        self.progress.update()
