r"""The linear world of a network: what `diffsolve.tableau.theory` asks of the data and of the error, measured.

From a few ends x_0 of accurate runs come the variances of the data's directions. Noised again along straight lines,
alpha x_0 + sigma eps with one eps for all levels, they are shown to the network. What its output differs by from that
of the exact network of Gaussian data with those variances is taken for the error: its root mean square is delta, and
the correlation between neighbouring levels, :math:`\exp(-\omega^2 \Delta\lambda^2 / 2)`, gives the rate omega. Modes of
the data and errors of the network are one to it: either is what a smooth solver does not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import column, flat
from diffsolve.models import Model
from diffsolve.noise import Key
from diffsolve.paths import Path
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import PREDICTIONS, convert
from diffsolve.tableau.theory import gains, output_unit, spread
from diffsolve.tuning.runs import Noises

__all__ = ["World", "measured", "output"]

LEVELS = 12
WIDEST = 6.0
"""|lambda| beyond which nothing of the data is decided, or all of it."""

GROUPS = 16  # directions of like variance are taken together
FLAT = 1e-3
"""The variance, in units of the mean, of directions in which the ends say nothing: there are more than ends."""


@dataclass(frozen=True)
class World:
    """Gaussian data and an error that is a Gaussian process of lambda."""

    spectrum: tuple[float, ...]
    """Variances of the data, (k,), each that of `counts` directions."""
    counts: tuple[int, ...]
    lam: tuple[float, ...]
    """The levels, rising, at which the error was measured."""
    delta: tuple[float, ...]
    """The root mean square of the error at each, in units of what the network predicts."""
    rate: float
    """The standard deviation of the error's frequencies in lambda."""
    predicts: str

    def expected(self, run: Tableau, path: Path) -> float:
        """How far a run is expected to end from the network's own end, over the deviation of the data."""
        counts, spectrum = np.asarray(self.counts), np.asarray(self.spectrum)
        start, gain, lam = gains(run, path, self.predicts, self.spectrum)
        far = spread(start, gain * np.exp(np.interp(lam, self.lam, np.log(self.delta))), lam, self.rate)
        return float(np.sqrt((counts * far**2).sum() / (counts * spectrum).sum()))


def measured(model: Model, noises: Noises, ends: Tensor, key: Key) -> World:
    """The world of a network, from the ends (n, ...) of accurate runs from these noises, in 12 calls of each.

    Raises:
        ValueError: if the ends are not finite, or all the same.
    """
    x = flat(ends).double().cpu()
    mean = x.mean(0)
    _, sizes, basis = torch.linalg.svd(x - mean, full_matrices=False)
    variances = sizes[: max(1, len(x) - 1)].square() / max(1, len(x) - 1)
    if not bool(variances.isfinite().all()) or not variances[0] > 0:
        raise ValueError(f"the ends of accurate runs must be finite and differ, got variances {variances[:3].tolist()}")
    variances = variances.clamp(min=FLAT * float(variances.mean()))
    errors, lam = _errors(model, noises, ends, key, mean, variances, basis[: len(variances)])
    delta = errors.square().mean((1, 2)).sqrt().clamp(min=1e-12)
    products = (errors[1:] * errors[:-1]).mean((1, 2))
    powers = errors.square().mean((1, 2))
    alike = (products / (powers[1:] * powers[:-1]).sqrt()).clamp(0.01, 1 - 1e-9)
    rate = float(((-2 * alike.log()).sqrt() / torch.from_numpy(np.diff(lam))).mean())
    groups = np.array_split(variances.numpy(), min(GROUPS, len(variances)))
    spectrum, counts = [float(group.mean()) for group in groups], [len(group) for group in groups]
    rest = x.shape[1] - len(variances)
    if rest > 0:
        spectrum, counts = [*spectrum, FLAT * float(np.mean(spectrum))], [*counts, rest]
    return World(
        tuple(spectrum),
        tuple(counts),
        tuple(lam.tolist()),
        tuple(delta.tolist()),
        rate,
        model.learned or model.predicts,
    )


def _errors(
    model: Model, noises: Noises, ends: Tensor, key: Key, mean: Tensor, variances: Tensor, basis: Tensor
) -> tuple[Tensor, np.ndarray]:
    """(levels, n, d): output less that of the linear network, in units of what is predicted; and lambda, (levels,)."""
    path, what = model.path, model.learned or model.predicts
    first, last = path.nodes(np.array([path.t_noise, path.t_last])).lam
    lam = np.linspace(max(first, -WIDEST), min(last, WIDEST), LEVELS + 2)[1:-1]
    eps = key.normal(ends.shape, dtype=ends.dtype, device=ends.device)
    found = []
    for t in path.time(lam).tolist():
        p = path.at(torch.full((len(ends),), t, dtype=torch.float64))
        state = column(p.alpha, ends) * ends + column(p.sigma, ends) * eps
        out = output(model, noises, state, p.t)
        alpha, sigma = float(p.alpha[0]), float(p.sigma[0])
        a, b = _numbers(PREDICTIONS[what](path.nodes(np.array([t])), model.sigma_data))
        on_x, on_out = convert((a, b), _numbers(model.coefficients(path.nodes(np.array([t])))), alpha, sigma)
        out = flat(out).double().cpu() * on_out + flat(state).double().cpu() * on_x
        shifted = flat(state).double().cpu() - alpha * mean
        inside = shifted @ basis.T
        gain = (a * alpha * variances + b * sigma) / (alpha**2 * variances + sigma**2)
        linear = a * mean + (inside * (gain - b / sigma)) @ basis + shifted * (b / sigma)
        unit = float(output_unit(what, path.nodes(np.array([t])))[0]) * (alpha * b - sigma * a)
        found.append((out - linear) / unit)
    return torch.stack(found), lam


def _numbers(pair: tuple[Any, Any]) -> tuple[float, float]:
    a, b = (float(np.ravel(weight)[0]) for weight in pair)
    return a, b


def output(model: Model, noises: Noises, x: Tensor, t: Tensor, what: str | None = None) -> Tensor:
    """The guided output at x (n, ...) and times t (n,); or what it says of another prediction, as "denoised"."""
    p = model.path.at(t)
    scale = model.input_scale(p)
    rho = np.full(len(x), float(p.sigma[0] / p.alpha[0]) if float(p.alpha[0]) else math.inf)
    told = model.network_time(t).to(x.device, model.time_dtype(x.dtype))
    inner = x if scale is None else x * column(scale, x)
    guidance = noises.guidance
    with torch.no_grad():
        out = guidance.output(model, inner, told, rho, noises.cond, guidance.given)
    if what is None or what == model.predicts:
        return out
    on_x, on_out = convert(PREDICTIONS[what](p, model.sigma_data), model.coefficients(p), p.alpha, p.sigma)
    return column(on_x, x) * x + column(on_out, x) * out
