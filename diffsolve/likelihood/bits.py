r"""Bits per dimension of integer data, such as images, under a model of continuous ones.

An integer n stands for a bin of width w. With u in [0, 1] drawn from a density q, the data x = low + w (n + u) have

    log P(n) >= E_q[log p(x) + D log w - log q(u)]

(Ho et al., 1902.00275, for any q; uniform q: Theis et al., 1511.01844), and the bound rises to log P(n) with K samples
as log (1/K) sum_k exp(..) (Burda et al., 1509.00519).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from diffsolve.common.checks import choice, integer, number, required
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.common.tensors import flat
from diffsolve.execute.options import ModelLike
from diffsolve.likelihood.density import DEFAULT, DensityOptions, log_prob
from diffsolve.likelihood.results import LogProb
from diffsolve.models import as_model
from diffsolve.noise import Key, SeedLike, Stream

__all__ = ["BitsPerDim", "bits_per_dim"]


@dataclass(frozen=True)
class BitsPerDim:
    """An upper bound on -log2 P(n) per number; arrays of shape (B,)."""

    value: Tensor
    """(B,), float64."""
    stderr: Tensor
    """(B,): the standard error from the trace estimates; the spread of the dequantisation is not included."""
    nfe: np.ndarray
    """Network calls of each sample."""
    jvps: np.ndarray
    """Jacobian-vector products of each sample."""
    runs: tuple[LogProb, ...]
    """The K log-densities, with their early-stopping time and solver error."""

    @property
    def mean(self) -> tuple[float, float]:
        """(mean over the samples, its standard error from their spread)."""
        count = len(self.value)
        return float(self.value.mean()), float(self.value.std()) / math.sqrt(count) if count > 1 else math.nan


@shows(DensityOptions, solver=DEFAULT, gradient=False, progress=False, check=False)
def bits_per_dim(
    model: ModelLike,
    n: Tensor,
    *,
    levels: int = 256,
    data_range: tuple[float, float] = (-1.0, 1.0),
    dequantisation: str = "uniform",
    spread: float = 0.3,
    samples: int = 1,
    stop: float | None = None,
    seed: SeedLike | None = 0,
    index: int = 0,
    cond: Mapping[str, Any] | None = None,
    **options: Unpack[DensityOptions],
) -> BitsPerDim:
    """Bits per dimension of integer data.

    Args:
        n: (B, ..), integers from 0 to levels - 1.
        levels, data_range: `levels` bins of equal width fill the range of x.
        dequantisation: "uniform", or "truncated-normal": u normal around the middle of the bin, cut to the bin.
        spread: the deviation of that normal, in bins.
        samples: K, the values of u per sample; with several the bound is importance-weighted.
        stop: the early-stopping time, as in `ds.log_prob`; it changes the result, so report it with the number.
        seed, index: for u and the probes, as in `ds.solve`; None draws a seed.
        cond, options: as in `ds.log_prob`.

    Raises:
        ValueError: if an option is out of range or a value of n is outside the levels.
        TypeError: if n is not a tensor of integers, or an option is unknown.
    """
    refuse_unknown("bits_per_dim", options, DensityOptions)
    model = as_model(model)
    integral = isinstance(n, Tensor) and not (n.is_floating_point() or n.is_complex() or n.dtype == torch.bool)
    required(integral, "n", n, "a tensor of integers", TypeError)
    levels, samples = integer("levels", levels, 1), integer("samples", samples, 1)
    low, high = data_range
    required(-math.inf < low < high < math.inf, "data_range", data_range, "two numbers, low < high")
    ends = (int(n.min()), int(n.max())) if n.numel() else (0, 0)
    required(ends[0] >= 0 and ends[1] < levels, "n", ends, f"from 0 to levels - 1 = {levels - 1}")
    choice("dequantisation", dequantisation, ("uniform", "truncated-normal"))
    number("spread", spread, above=0)
    width, key = (high - low) / levels, Key.of(seed, index)
    runs, weights = [], []
    for k in range(samples):
        u, log_q = _place(key, n, k, dequantisation, spread)
        x = (low + width * (n.double() + u)).to(model.state_dtype)
        run = log_prob(model, x, stop=stop, seed=key, cond=cond, **options)
        runs.append(run)
        weights.append(run.value + run.dim * math.log(width) - log_q)
    nats = torch.stack(weights)
    unit = 1 / (runs[0].dim * math.log(2))
    bound = nats.logsumexp(0) - math.log(samples)
    # The runs share their probes, so their errors add up, weighted like the samples.
    stderr = (nats.detach().softmax(0) * torch.stack([run.stderr for run in runs])).sum(0)
    return BitsPerDim(
        -bound * unit,
        stderr * unit,
        np.sum([run.nfe for run in runs], 0),
        np.sum([run.jvps for run in runs], 0),
        tuple(runs),
    )  # fmt: skip


def _place(key: Key, n: Tensor, k: int, dequantisation: str, spread: float) -> tuple[Tensor, Tensor]:
    """(u, log q(u)): float64: the position of each number in its bin, and the log-density of each sample."""
    uniform = torch.special.ndtr(
        key.normal(n.shape, row=k, stream=Stream.DEQUANTISE, dtype=torch.float64, device=n.device)
    )
    if dequantisation == "uniform":
        return uniform, torch.zeros(len(n), dtype=torch.float64, device=n.device)
    inside = math.erf(0.5 / spread / math.sqrt(2))  # the normal's mass in the bin
    z = torch.special.ndtri(0.5 + inside * (uniform - 0.5))
    log_q = -z.square() / 2 - math.log(spread * math.sqrt(2 * math.pi) * inside)
    return 0.5 + spread * z, flat(log_q).sum(1)
