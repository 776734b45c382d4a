r"""Weights by measured statistics: DPM-Solver-v3 (Zheng et al., 2310.13268), with rows that are exact for constants.

In the straight frame z = x / (alpha + sigma) moves by dz/du = v. What of v is linear in z, on average, is split off,
and so is what of the rest grows in proportion to itself, by numbers that are alike for all elements:

.. math:: v = \gamma z + R, \quad \gamma = E \, tr(\partial v / \partial z) / D, \qquad
    dR/du \approx s R, \quad s = E \langle R, R' \rangle / E |R|^2,

over accurate runs, of which every call costs one more, moved along a random direction. (The paper has
f = u R, l = u (1 + (1 - u) gamma) and the logarithm of the signal-to-noise ratio for u, of which this is the same
choice; b is left out, a constant for which a tableau has no column.) Then R is exp(S) times a polynomial, and

.. math:: z_{i+1} = e^{\Gamma_{i+1} - \Gamma_i} z_i
    + \sum_j (v_j - \gamma_j z_j) \int_{u_i}^{u_{i+1}} e^{\Gamma_{i+1} - \Gamma(u) + S(u) - S_j} L_j(u) \, du,
    \quad \Gamma = \int \gamma, \quad S = \int s,

with Lagrange's L_j through the last few calls, in the angle atan(sigma / alpha), which is finite where the paper's
variable is not. With gamma = s = 0 that is Adams' method in the frame straight, with gamma = 1 / u = -s in the
denoised frame.

**The defect.** Such a row is exact where v = gamma z, as for Gaussian data of one scale, and not where data and noise
are constant: there it is off by a D + b E of the data D and the noise E, with numbers a and b that vanish with the step
as its error does. A tableau must be exact there, so a D_i + b E_i is given back, with what the last call says of data
and noise, D = z - u v and E = z + (1 - u) v. The first row then is Euler's step, as that of all other solvers here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import column, flat
from diffsolve.models import Model
from diffsolve.noise import Key
from diffsolve.paths import Path
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import FRAMES, convert
from diffsolve.tuning.linear import output
from diffsolve.tuning.pilot import Start
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.student import V, written
from diffsolve.tuning.tracks import tracked

__all__ = ["RIDGE", "Statistics", "defect", "measured", "rows", "starts"]

POINTS = (2, 3)
"""How many calls a row extrapolates from; both are tried, with s and, where R grows from next to nothing, without."""
NODES = 513
"""Of the quadrature, within each step."""
RIDGE = 0.1
"""This share of the mean square of v is added to that of R in s: how an R next to nothing grows says little."""
ROW = 2**31
"""The row of the key by which directions are drawn."""


@dataclass(frozen=True)
class Statistics:
    """gamma and s at levels u (M,), falling; linear between them, constant beyond."""

    u: np.ndarray
    gamma: np.ndarray
    s: np.ndarray

    def at(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """gamma and s at u."""
        gamma, s = (np.interp(-u, -self.u, values) for values in (self.gamma, self.s))
        return gamma, s


@torch.no_grad()
def measured(model: Model, noises: Noises, teacher: Tableau, key: Key) -> Statistics:
    """The statistics along a teacher's runs, at its calls.

    The trace is that along one direction for each noise, of independent signs, the same at all calls; R' is a
    difference from call to call.
    """
    tracks, M = tracked(model, noises, teacher), teacher.nfe
    signs = key.normal(noises.x.shape, row=ROW, dtype=noises.x.dtype, device=noises.x.device).sign()
    z, v = (torch.stack([flat(one).double() for one in part[:M]]) for part in (tracks.z, tracks.v))
    gamma = []
    for k, t in enumerate(teacher.calls[:, 0].tolist()):
        size = float(z[k].square().mean().sqrt()) or 1.0
        h = size * torch.finfo(model.dtype or noises.x.dtype).eps ** 0.5
        there = _velocity(model, noises, tracks.z[k] + h * signs, t)
        slope = flat(there).double() - v[k].to(there.device)
        gamma.append(float((slope * flat(signs)).mean()) / h)
    u = tracks.u[:M]
    R = v - torch.tensor(gamma, dtype=torch.float64)[:, None, None].to(v) * z
    change = torch.from_numpy(np.gradient(R.cpu().numpy(), u, axis=0)) if M > 1 else torch.zeros_like(R)
    parts = [(a * b).flatten(1).sum(1).cpu().numpy() for a, b in ((R, change.to(R)), (R, R), (v, v))]
    return Statistics(u, np.array(gamma), parts[0] / (parts[1] + RIDGE * parts[2]))


def _velocity(model: Model, noises: Noises, z: Tensor, t: float) -> Tensor:
    """v at z (n, ...) and the path's time t."""
    at = model.path.at(torch.full((len(z),), t, dtype=torch.float64))
    x = z * column(at.alpha + at.sigma, z)
    p, q = convert(V, model.coefficients(at), at.alpha, at.sigma)
    return column(p, x) * x + column(q, x) * output(model, noises, x, at.t).to(x.dtype)


def rows(statistics: Statistics, u: np.ndarray, points: int, mended: bool = True) -> np.ndarray:
    """(N, N + 1): each z after a call as weights of z_0, v_0 .. v_{N-1}; calls at u_0 .. u_{N-1}, the end at u_N.

    Args:
        mended: give the defect back, so that the rest is the B of `diffsolve.tuning.student`, with 1 for z_0.
    """
    n = len(u) - 1
    gamma, _ = statistics.at(u)
    theta = _angle(u)
    Z = np.eye(n + 1)
    v, Z = Z[1:], Z[:1]
    for i in range(n):
        used = np.arange(max(0, i + 1 - points), i + 1)
        inner, before = _line(u[i], u[i + 1]), _line(u[used[0]], u[i])
        g, s = statistics.at(inner)
        G, S, S_before = _cumulative(g, inner), _cumulative(s, inner), _cumulative(statistics.at(before)[1], before)
        row = np.exp(G[-1]) * Z[i]
        for j, L in zip(used, _lagrange(theta[used], _angle(inner)), strict=True):
            since = S - (np.interp(-u[j], -before, S_before) - S_before[-1])  # the integral of s from u_j on
            row = row + _cumulative(np.exp(G[-1] - G + since) * L, inner)[-1] * (v[j] - gamma[j] * Z[j])
        if mended:
            a, b = defect(row, u[0], u[i + 1])
            row = row - a * (Z[i] - u[i] * v[i]) - b * (Z[i] + (1 - u[i]) * v[i])
        Z = np.vstack([Z, row])
    return Z[1:]


def defect(row: np.ndarray, first: float, last: float) -> tuple[float, float]:
    """(a, b): for constant data D and noise E a row from u = first to last is off by a D + b E.

    There z_0 = (1 - first) D + first E, and every v is E - D.
    """
    total = float(row[1:].sum())
    return float(row[0]) * (1 - first) - total - (1 - last), float(row[0]) * first + total - last


def _line(first: float, last: float) -> np.ndarray:
    return np.linspace(first, last, NODES)


def _angle(u: np.ndarray) -> np.ndarray:
    return np.asarray(np.arctan2(u, 1 - u))


def _cumulative(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The integral up to each node, by trapezoids."""
    return np.append(0.0, np.cumsum((values[1:] + values[:-1]) / 2 * np.diff(at)))


def _lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(nodes, at): Lagrange's polynomials."""
    parts = [[(at - m) / (node - m) for m in nodes if m != node] for node in nodes]
    return np.array([np.prod([np.ones(len(at)), *part], axis=0) for part in parts])


def starts(path: Path, statistics: Statistics, grids: list[Start]) -> list[Start]:
    """Runs by these weights at the times of others, whose solvers call at each node of their grids."""
    found = {}
    for grid in grids:
        times = grid.tableau.times
        if not np.array_equal(grid.tableau.calls[:, 0], times[:-1]):
            continue
        u = np.broadcast_to(FRAMES["straight"].v(path.nodes(times)), times.shape)
        for points, growth in itertools.product(POINTS, (True, False)):
            name = f"dpm-v3({points}{'' if growth else ', s=0'}, nfe={len(u) - 1})"
            known = statistics if growth else replace(statistics, s=0 * statistics.s)
            table = written(path, times, rows(known, u, points)[:, 1:], name)
            found[times.tobytes(), points, growth] = Start(table, name)
    return list(found.values())
