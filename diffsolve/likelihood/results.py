"""Log-densities and their cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.common.deprecation import deprecated_alias
from diffsolve.common.result import Status, one_line
from diffsolve.execute.results import Seed

__all__ = ["DensityRun", "LogProb"]


@dataclass(frozen=True, repr=False)
class LogProb:
    """Log-densities in nats, and what they cost; arrays of shape (B,)."""

    value: Tensor
    """(B,), float64: the log-density of each sample, differentiable if asked for."""
    stderr: Tensor
    """(B,), float64: its standard error from the spread of the trace estimates: 0 if exact, NaN for one probe."""
    latent: Tensor
    """(B, ..): the states at the noise end."""
    nfe: np.ndarray
    """Network calls of each sample."""
    jvps: np.ndarray
    """Jacobian-vector products of each sample."""
    solver_error: np.ndarray
    """The adaptive solver's own estimate of its error, that of x included, in nats; NaN for a fixed grid. No bound:
    where steps pass a sharp turn of the field the truth was up to ten times it at the default tolerance, twice it at a
    tolerance ten times lower; see docs/likelihood.md."""
    status: tuple[Status, ...]
    """How each sample's solve ended; the value is NaN unless it is DONE."""
    stop: float
    """The time on the path's clock at which the density is taken: the data end, or the early-stopping time."""
    dim: int
    """D, the numbers of a sample."""

    numbers = deprecated_alias("dim")

    @property
    def done(self) -> bool:
        """Whether every sample's solve reached the other end."""
        return all(status == Status.DONE for status in self.status)

    def __repr__(self) -> str:
        count, calls = len(self.value), int(self.nfe.max(initial=0))
        mean = f", mean {float(self.value.detach().mean()):.6g} nats" if count else ""
        return f"LogProb({count} samples of {self.dim} numbers{mean}, nfe={calls}, stop={self.stop:.6g})"

    def bits_per_dim(self, bin_width: float = 2 / 256) -> Tensor:
        """-log2 of the probability of a bin, per number: -value / (D ln 2) - log2(bin_width).

        Args:
            bin_width: the width of the bins of the dequantised integers, in units of x: 2 / 256 for 8 bits in [-1, 1],
                which adds 7, and 1 / 256 in [0, 1], which adds 8.
        """
        number("bin_width", bin_width, above=0)
        return -self.value / (self.dim * math.log(2)) - math.log2(bin_width)


@dataclass(frozen=True, repr=False)
class DensityRun:
    """What `solve` returns for `log_prob="model"`."""

    x: Tensor
    """The samples."""
    log_prob: LogProb
    """Their log-densities under the model, and their cost."""
    seed: Seed

    @property
    def nfe(self) -> np.ndarray:
        """Network calls of each sample."""
        return self.log_prob.nfe

    @property
    def done(self) -> bool:
        """Whether every sample reached the end."""
        return self.log_prob.done

    @property
    def status(self) -> tuple[Status, ...]:
        """How each sample ended."""
        return self.log_prob.status

    def __repr__(self) -> str:
        return one_line(self)
