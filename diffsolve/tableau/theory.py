r"""The linear theory of a run: how far from the network's own end a tableau ends, on paper.

For Gaussian data of variance S in a direction the exact network is linear,

.. math:: D = \alpha S x / (\alpha^2 S + \sigma^2), \qquad \varepsilon = \sigma x / (\alpha^2 S + \sigma^2),

and its flow takes x along :math:`\sqrt{\alpha^2 S + \sigma^2}`. Let the network err on what it predicts,
:math:`a x_0 + b \varepsilon`, by delta times a Gaussian process e of the level, with
:math:`E[e(\lambda) e(\lambda')] = \exp(-\omega^2 (\lambda - \lambda')^2 / 2)`. Then the end of a run is linear in the
start z and in e at its calls, and so is the end of the erring network's own flow: with u = sigma / (alpha + sigma) and
R = sqrt((1 - u)^2 S + u^2)

.. math::
    \frac{x}{\alpha + \sigma}
    = R \Big(z + \delta \int \frac{\alpha + \sigma}{\alpha b - \sigma a} \frac{e}{R} \, du\Big).

The mean square of what lies between the two ends is a quadratic form in the kernel: no network, no samples.

A run with fresh noise has no one end, but a law, in each direction a normal one. Let half of the error's variance be
constant in the state and half of it proportional to the state, the first two terms of a smooth field. To first order in
delta the constant part moves the mean, and the other the deviation, by what the same error would move the mean times
the correlation of the end with the state at that call: noise makes the end forget it. So the squared 2-Wasserstein
distance of the end's law from the data's, N(0, S), is in the mean over such networks

.. math::
    \Big(\sqrt{\mathrm{var}} - \sqrt S\Big)^2
    + \frac{1}{2} \sum_{ij} g_i g_j \, \delta_i \delta_j \, k(\lambda_i - \lambda_j) \, (1 + \rho_i \rho_j).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np

from diffsolve.paths import Path, Position
from diffsolve.tableau.ends import may_call
from diffsolve.tableau.frames import PREDICTIONS

__all__ = ["FAR", "SPECTRUM", "distance", "frechet", "gains", "output_unit", "response", "spread"]

FAR = 9.0
"""|lambda| beyond which the flow is taken as straight: 1e-4 of the way in u."""

SPECTRUM = tuple(float(variance) for variance in np.logspace(-3, 0.3, 12))
"""Variances of directions of data: the many small and the few large ones of images, in units of the data."""

QUADRATURE = 96
"""Points of the integral over the flow's own errors, Gauss-Legendre in lambda."""


class Weights(Protocol):
    """The arrays of a tableau that the theory reads."""

    @property
    def grid(self) -> np.ndarray: ...
    @property
    def calls(self) -> np.ndarray: ...
    @property
    def d(self) -> np.ndarray: ...
    @property
    def entry(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...


def response(run: Weights, path: Path, predicts: str, spectrum: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """What the mean of a run's end is made of, for each variance S.

    Returns:
        (k,), of the standard normal start; (k, N), of an error of 1 in the network's output at each call.
    """
    N, end = len(run.calls), _states(run, path, predicts, spectrum)[-1]
    return end[:, 0], end[:, 1 : 1 + N]


def _states(run: Weights, path: Path, predicts: str, spectrum: Sequence[float]) -> np.ndarray:
    """(N + 1, k, 2 N + 2): every network input and the end, as sums over the normal start, errors of 1 in the outputs,
    the noise of the entry and that of each row."""
    p, S = _calls(run, path), np.asarray(spectrum)[:, None]
    exact = (run.d[:, 0] * p.alpha * S + run.d[:, 1] * p.sigma) / (p.alpha**2 * S + p.sigma**2)
    erring = (run.d[:, 1] * p.alpha - run.d[:, 0] * p.sigma) * output_unit(predicts, p)
    N, size = len(run.calls), np.sqrt(run.grid[0, 1] ** 2 * S + run.grid[0, 2] ** 2)
    inputs = np.zeros((run.weights.shape[2] - 1, len(S), 2 * N + 2))
    inputs[:2, :, :1] = run.entry[:, 0, None, None] * size
    inputs[:2, :, N + 1] = run.entry[:, 1, None]
    states = [inputs[1].copy()]
    for i in range(N):
        inputs[3:] = inputs[2:-1].copy()
        inputs[2] = exact[:, i, None] * inputs[1]
        inputs[2, :, 1 + i] += erring[i]
        inputs[:2] = np.tensordot(run.weights[i, :, :-1], inputs, 1)
        inputs[:2, :, N + 2 + i] += run.weights[i, :, -1, None]
        states.append(inputs[1].copy())
    return np.array(states)


def frechet(
    run: Weights, path: Path, predicts: str, spectrum: Sequence[float], delta: float | np.ndarray, rate: float
) -> np.ndarray:
    """The root mean square 2-Wasserstein distance of the end's law from the data's, for each variance S: (k,).

    Args:
        delta: the deviation of the network's error, one or (N,) for the calls.
    """
    p, N, S = _calls(run, path), len(run.calls), np.asarray(spectrum)
    states = _states(run, path, predicts, spectrum)
    random = np.delete(states, np.s_[1 : 1 + N], 2)
    deviation = np.sqrt(np.square(random).sum(2))
    rho = ((random[:-1] * random[-1]).sum(2) / np.maximum(deviation[:-1] * deviation[-1], 1e-300)).T
    gain, lam = states[-1, :, 1 : 1 + N] * delta, np.clip(p.lam, -FAR, FAR)
    moved = np.square(_norm(gain, lam, rate)) / 2 + np.square(_norm(gain * rho, lam, rate)) / 2
    wanted = np.sqrt(run.grid[-1, 1] ** 2 * S + run.grid[-1, 2] ** 2)
    return np.asarray(np.sqrt(np.square(deviation[-1] - wanted) + moved))


def distance(
    run: Weights, path: Path, predicts: str, spectrum: Sequence[float], delta: float, rate: float
) -> np.ndarray:
    """The root mean square distance of a run's end from the erring network's own end, for each variance S: (k,)."""
    start, gain, lam = gains(run, path, predicts, spectrum)
    return spread(start, delta * gain, lam, rate)


def gains(
    run: Weights, path: Path, predicts: str, spectrum: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies between a run's end and the erring network's own end, for each variance S.

    Returns:
        (k,), of the standard normal start; (k, N + m), of an error of 1 in the output at each of the run's N calls and
        at m levels of the flow; (N + m,), lambda of these.
    """
    start, errors = response(run, path, predicts, spectrum)
    own_start, own_errors, lam = _own(run, path, predicts, np.asarray(spectrum)[:, None])
    where = np.concatenate([np.clip(_calls(run, path).lam, -FAR, FAR), lam])
    return start - own_start, np.concatenate([errors, -own_errors], axis=1), where


def spread(start: np.ndarray, gain: np.ndarray, lam: np.ndarray, rate: float) -> np.ndarray:
    """(k,): the deviation of start z + gain e, z normal and e a Gaussian process of deviation 1 at these lambda."""
    return np.asarray(np.hypot(start, _norm(gain, lam, rate)))


def _norm(gain: np.ndarray, lam: np.ndarray, rate: float) -> np.ndarray:
    """(k,): the deviation of gain e, e a Gaussian process of deviation 1 at these lambda."""
    kernel = np.exp(-((rate * (lam[:, None] - lam)) ** 2) / 2)
    return np.asarray(np.sqrt(np.maximum(np.einsum("ki,ki->k", gain @ kernel, gain), 0)))


def output_unit(predicts: str, p: Position[np.ndarray]) -> np.ndarray:
    """1 / (alpha b - sigma a): an error of 1 in the output is alpha b' - sigma a' times that in a' x_0 + b' eps.

    A score errs as the noise that it is over sigma, dx/dt as the velocity that it is over the speed of the clock.
    0 where the output says nothing of the rest (noise at alpha = 0): no run calls the network there.
    """
    a, b = (np.broadcast_to(weight, np.shape(p.alpha)) for weight in PREDICTIONS[predicts](p, 0.5))
    scale = np.maximum(abs(a), abs(b)) if predicts in ("score", "velocity") else np.ones(np.shape(p.alpha))
    det = p.alpha * b - p.sigma * a
    return np.asarray(np.divide(scale, det, out=np.zeros(np.shape(det)), where=det != 0))


def _calls(run: Weights, path: Path) -> Position[np.ndarray]:
    t, alpha, sigma = run.calls.T
    p = path.nodes(t)
    return Position(t, alpha, sigma, p.dalpha, p.dsigma)


@cache
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE)
    return nodes, weights


def _own(run: Weights, path: Path, predicts: str, S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the own flow's end is made of: (k,) of the start, (k, m) of the errors at m levels, and these (m,).

    Beyond the last time at which the network may be called the flow goes straight on.
    """
    t, alpha, sigma = run.grid[-1]
    last = path.nodes(np.array([t if may_call(path, t) else path.t_last])).lam[0]
    first = path.nodes(run.grid[:1, 0]).lam[0]
    low, high = np.clip([first, last], -FAR, FAR)
    nodes, weights = _gauss()
    lam = np.append((low + high) / 2 + (high - low) / 2 * nodes, high)
    p, u = path.nodes(path.time(lam)), 1 / (1 + np.exp(lam))
    f = (p.alpha + p.sigma) * output_unit(predicts, p)
    R = np.sqrt((1 - u) ** 2 * S + u**2)
    along = np.append((high - low) / 2 * weights, 0.0) * -u * (1 - u) * f / R * R[:, -1:]
    # The rest of the way at the last velocity (u y - (1 - u) S y) / R^2 + f e.
    c, rest = alpha + sigma, sigma / (alpha + sigma) - u[-1]
    onward = 1 + rest * (u[-1] - (1 - u[-1]) * S[:, 0]) / R[:, -1] ** 2
    along = along * onward[:, None]
    along[:, -1] += rest * f[-1]
    return c * R[:, -1] * onward, c * along, lam
