r"""Solvers with fresh noise designed on paper: the weights that keep the law of the state best, and how much noise.

In the straight frame, y = x / (alpha + sigma), a row of an SDE of the path (`diffsolve.solvers.sde`) is

.. math:: y_{i+1} = \kappa_i y_i + g_i \sum_j s_{ij} D_j + n_i z_i, \qquad \sum_j s_{ij} = 1

with :math:`\kappa = (u_{i+1} / u_i) e^{-A}`, :math:`n = u_{i+1} \sqrt{1 - e^{-2A}}`, A the integral of tau^2 over the
step's lambda and :math:`g = 1 - u_{i+1} - \kappa (1 - u_i)`: exact for a constant D, noise and all. Where the network
may be called at the data itself D says too little of the last step, and the straight velocities V of the calls stand in
for it; as D = y - u V, that is :math:`(\kappa + g) y_i - g u_i \sum_j s_{ij} V_j`, which is `Designed`'s row if A = 0.
Of a constant D it keeps the mean, and the variance as well as the fit.

What shares s are good? A run with noise has no end to be near to, so not the path of a particle is fitted, but the law:
for data N(0, S) in each direction the exact network is linear, every state is a sum over the normals drawn so far, and
its variance is a quadratic in the shares, to be R^2 = (1 - u)^2 S + u^2. Least squares over the directions,

.. math::
    \min_s \sum_S S \Big(\frac{\sqrt{\mathrm{var}}}{R} - 1\Big)^2 + \sum_S \frac{S}{R^2} \, \Big|\, \text{errors that
    } \sum_j s_j D_j \text{ adds to those of } D_i \Big|^2,

with a ridge towards Adams' weights. Old values of D hold noise of their own: in a path's fit they would be an error,
and least squares would turn from them and leave the samples too narrow; in the law that noise counts as what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffsolve.common.caching import remembered
from diffsolve.common.checks import integer, number, required
from diffsolve.paths import Path
from diffsolve.solvers.base import Solver
from diffsolve.solvers.designed import LONG, RIDGE, Designed, ForNetwork
from diffsolve.solvers.integrals import Integrals, StepIntegrals
from diffsolve.solvers.published import DPMpp
from diffsolve.solvers.sde import Tau, frame_of, tau_named
from diffsolve.tableau import Draft, Tableau
from diffsolve.tableau.ends import may_call
from diffsolve.tableau.frames import FRAMES
from diffsolve.tableau.theory import FAR, SPECTRUM, frechet, output_unit

__all__ = ["TAUS", "DesignedSDE"]

TAUS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""What `tau=None` chooses among."""

RATE = 0.5
"""Frequencies of the network's error in lambda."""

DIGITS = 2.0**-20
"""Shares are multiples of this, as the search for them ends on other last digits on other machines."""


@dataclass(frozen=True)
class DesignedSDE(ForNetwork):
    """One call a step with fresh noise, weights by least squares on the law (this file's top has the equations).

    Runs of more than `LONG` steps are DPM-Solver++ 2M SDE of the same tau. With tau = 0 it is `Designed`. Guidance
    does not change the weights.

    Args:
        tau: how much noise, a number or a `Tau` (0 none, 1 the reverse SDE); if None, the one of `TAUS` whose run is
            expected to end nearest to the data (`Tableau.expected_frechet` with errors as trained networks have them),
            and 0 from the data to the noise.
        delta: the root mean square of the network's error where data and noise are equal, in units of the prediction.
        spectrum: variances of the directions of the data.
        history: how many outputs a step may use.
    """

    tau: float | Tau | None = None
    delta: float = 0.03
    spectrum: tuple[float, ...] = SPECTRUM
    history: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None:
            tau_named(self.tau)
        number("delta", self.delta, low=0)
        integer("history", self.history, low=1)
        given: object = self.spectrum
        listed = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
        required(listed, "spectrum", given, "a tuple of numbers", TypeError)
        object.__setattr__(self, "spectrum", tuple(number("spectrum", S, low=0) for S in self.spectrum))
        required(min(self.spectrum) > 0, "spectrum", self.spectrum, "numbers > 0")

    @property
    def order(self) -> int:
        return 2

    def method(self, path: Path, times: np.ndarray) -> Solver:
        """What makes a run over these times: itself with its tau, or what it is without noise or in many steps."""
        if self.tau is None:
            denoises = bool(path.lam(times[0]) < path.lam(times[-1]))
            tau = _chosen(self, path, tuple(times.tolist())) if denoises else 0.0
            return replace(self, tau=tau).method(path, times)
        if self.tau == 0:
            return Designed(self.guidance, self.predicts, self.size, self.delta, history=self.history)
        return self if len(times) <= LONG + 1 else DPMpp(2, tau=self.tau)

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        method = self.method(path, np.asarray(times, dtype=np.float64))
        return super().__call__(path, times, call_last=call_last) if method is self else method(path, times)

    def write(self, draft: Draft, call_last: bool) -> None:
        method, grid = self.method(draft.path, draft.grid.t), draft.grid
        if method is not self:
            return method.write(draft, call_last)
        tau = tau_named(self.tau or 0.0)
        sde = frame_of("denoised", tau, draft.path, grid)
        rows = _rows(draft.path, tuple(grid.t.tolist()), self.predicts or "v", tau, self.delta, self.spectrum,
                     self.history)  # fmt: skip
        for i, (y, outputs, z) in enumerate(rows):
            c, new = (float(p.alpha + p.sigma) for p in (grid[i], grid[i + 1]))
            row: dict[str | int, float] = {"y": y * new / c} if y else {}
            row |= {j: new * float(w) for j, w in enumerate(outputs) if w}
            if z:
                row["z"] = z * new
            clock = sde.clock(grid[i], grid[i + 1]) if z else (0.0, 0.0)
            draft.call(grid[i], _basis(draft.path, grid.t), y=row, node=i + 1, clock=clock)


def error_of(predicts: str, delta: float, lam: np.ndarray) -> np.ndarray:
    """The error of a trained network by lambda, as docs/designed.md measured it: it grows towards the data.

    What predicts the denoised, or EDM's output, errs as much everywhere.
    """
    if predicts in ("denoised", "edm"):
        return np.full(np.shape(lam), delta)
    return np.asarray(delta * np.sqrt(0.09 + np.exp(2 * np.minimum(lam, 1.0))))


@remembered(maxsize=64)
def _chosen(solver: DesignedSDE, path: Path, times: tuple[float, ...]) -> float:
    """The tau whose run is expected to end nearest to the data."""
    predicts, found = solver.predicts or "v", []
    for tau in TAUS:
        run = replace(solver, tau=tau)(path, times)
        delta = error_of(predicts, solver.delta, path.nodes(run.calls[:, 0]).lam)
        found.append(float(np.mean(frechet(run, path, predicts, solver.spectrum, delta, RATE) ** 2)))
    return TAUS[int(np.argmin(found))]


def _basis(path: Path, times: np.ndarray) -> str:
    """The frame whose outputs are combined: the straight one for a run whose last step leads to a regular data end."""
    return "straight" if times[-1] == path.t_data and may_call(path, path.t_data) else "denoised"


Row = tuple[float, np.ndarray, float]
"""The weights of the state, of every output and of fresh noise, in the straight frame."""


@remembered(maxsize=64)
def _rows(
    path: Path,
    times: tuple[float, ...],
    predicts: str,
    tau: Tau,
    delta: float,
    spectrum: tuple[float, ...],
    history: int,
) -> list[Row]:
    """The weights of a run over the times."""
    grid = path.nodes(np.array(times))
    frame, sde, basis = FRAMES["straight"], frame_of("denoised", tau, path, grid), _basis(path, grid.t)
    integrals = Integrals(path, FRAMES[basis], "arc", grid)
    u, n = np.asarray(frame.v(grid)), len(times) - 1
    S = np.array(spectrum)[:, None]
    R = np.sqrt((1 - u) ** 2 * S + u**2)
    lam, calls = np.clip(grid.lam[:-1], -FAR, FAR), path.nodes(grid.t[:-1])
    unit = (calls.alpha + calls.sigma) * output_unit(predicts, calls) * (1 if basis == "straight" else -u[:-1])
    kernel = np.exp(-((RATE * (lam[:, None] - lam)) ** 2) / 2)
    errors = (error_of(predicts, delta, lam) * unit)[:, None] * np.linalg.cholesky(kernel + 1e-9 * np.eye(n))
    # Every state and output is a sum over the normals of the start and of n rows, and over n normals of the error.
    y, outputs = np.hstack([R[:, :1], np.zeros((len(S), 2 * n))]), []
    found: list[Row] = []
    for i in range(n):
        mean = (u[i] - (1 - u[i]) * S) if basis == "straight" else (1 - u[i]) * S
        output = mean / R[:, i : i + 1] ** 2 * y
        output[:, 1 + n :] += errors[i]
        outputs.append(output)
        ratio, gain = sde.step(grid[i], grid[i + 1])
        c, new = grid.alpha[i] + grid.sigma[i], grid.alpha[i + 1] + grid.sigma[i + 1]
        kappa, gain, z = ratio * c / new, gain / new, sde.noise(grid[i], grid[i + 1]) / new
        keep, h = (kappa + gain, -gain * u[i]) if basis == "straight" else (kappa, gain)
        used = np.arange(max(0, i + 1 - history), i + 1)
        share = np.zeros(0)
        if len(used) > 1 and may_call(path, times[i + 1]):
            prior = StepIntegrals(integrals, i, tuple(used[::-1][:3])).omega()[:0:-1]
            old = np.stack([h * (outputs[j] - output) for j in used[:-1]])
            share = _shares(keep * y + h * output, old, float(z), R[:, i + 1], S[:, 0], prior, n)
        weights = np.zeros(n)
        weights[used[: len(share)]] = h * share
        weights[i] = h * (1 - share.sum())
        y = keep * y + sum(weights[j] * outputs[j] for j in used)
        y[:, 1 + i] += z
        found.append((float(keep), weights, float(z)))
    return found


def _shares(
    base: np.ndarray, old: np.ndarray, z: float, R: np.ndarray, S: np.ndarray, prior: np.ndarray, n: int
) -> np.ndarray:
    """What part of the step each output but the newest gets, the newest having the rest.

    Args:
        base: (k, 1 + 2 n), where the newest output alone leads; of its columns the last n are the network's errors.
        old: (m, k, 1 + 2 n), what each of the others would change, oldest first.
        z: the deviation of the fresh noise.
        R: (k,), the deviation that the state should have.
        S: (k,), the variances of the data.
        prior: Adams' shares, of the newest outputs but one.
        n: the number of steps.
    """
    from scipy.optimize import least_squares

    m, weight = len(old), np.sqrt(S) / R
    start = np.zeros(m)
    start[m - len(prior) :] = prior
    random, erring = old[:, :, : 1 + n], (weight[:, None] * old[:, :, 1 + n :]).reshape(m, -1)
    size = np.square(weight[:, None] * old).sum((1, 2))
    # The squares of errors and ridge, as m rows each: |erring' s|^2 = |root' s|^2.
    root = np.linalg.cholesky(erring @ erring.T + 1e-12 * np.diag(size) + 1e-300 * np.eye(m))
    ridge = np.sqrt(RIDGE * size + 1e-300)

    def deviation(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = base[:, : 1 + n] + np.tensordot(share, random, 1)
        return state, np.sqrt(np.square(state).sum(1) + z**2)

    def residuals(share: np.ndarray) -> np.ndarray:
        return np.concatenate([weight * (deviation(share)[1] - R), root.T @ share, ridge * (share - start)])

    def slopes(share: np.ndarray) -> np.ndarray:
        state, size = deviation(share)
        return np.vstack([(weight / size * (random * state).sum(2)).T, root.T, np.diag(ridge)])

    found = least_squares(residuals, start, slopes, method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return np.asarray(np.round(found.x / DIGITS) * DIGITS)
