r"""The learned run: the times of its network calls, and the weights of their outputs, as parameters.

Let z = x / c and v = dz/du in the straight frame (`diffsolve.tableau.frames`), so that dz/du = v is the probability
flow of any path. A run that calls the network once at each of N times, and is linear in all earlier outputs, is

    z_{i+1} = z_0 + sum_{j <= i} B_ij v_j,    sum_j B_ij = u_{i+1} - u_0,    i = 0..N-1.

Every deterministic solver of this library with one call per time is such a B (`flattened`), multistep and
predictor-corrector methods included: a denoised estimate at a state of the run is again a combination of z_0 and the v.
The condition on the sums is exactness for constant v, where data and noise are constant too. Shaul et al.
(2403.01329) learn such runs as "non-stationary solvers"; Frankel et al. (2502.17423, S4S) the weights and times of
multistep methods.

With a history of K < N the rows leave the weight of a v as it is once the v is K calls old: B_ij = B_{j+K-1, j}.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffsolve.execute import Network, bind, network_times
from diffsolve.kernels import combine
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.paths import Path
from diffsolve.tableau import Draft, Tableau
from diffsolve.tableau.frames import FRAMES, convert

__all__ = ["Lines", "Student", "V", "flattened", "written"]

STRAIGHT = FRAMES["straight"]
V = (-1.0, 1.0)
"""v = eps - x_0, as a combination of the data and the noise."""

LEAST = 1e-4
"""The shortest step, as a fraction of an even one, which keeps nodes apart and before the last possible call."""


def flattened(tableau: Tableau) -> np.ndarray:
    """B (N, N) of a tableau: its run, expressed by the start and the straight velocities of its calls.

    Raises:
        ValueError: if the tableau draws noise, or its calls do not go from the noise to the data, each at a new time.
    """
    theta = np.arctan2(tableau.calls[:, 2], tableau.calls[:, 1])
    if tableau.stochastic or (np.diff(theta) >= 0).any() or not (tableau.entry[:, 0] == 1).all():
        raise ValueError(
            "solver must be deterministic and call the network once at each of its times, from the noise to the data, "
            f"got {tableau.solver!r}"
        )
    n = tableau.nfe
    unit = np.eye(n + 1)  # x, v_0, .., v_{N-1}
    s = y = unit[0]
    history = np.zeros((tableau.history, n + 1))
    rows = []
    for i, (weights, (a, b), (_, alpha, sigma)) in enumerate(
        zip(tableau.weights, tableau.d, tableau.calls, strict=True)
    ):
        p, q = convert((a, b), V, alpha, sigma)
        history = np.concatenate([[p * y + q * unit[1 + i]], history[:-1]])
        s, y = weights[:, :-1] @ np.concatenate([[s, y], history])
        rows.append(y[1:])
    ends = np.concatenate([tableau.calls[1:], tableau.grid[-1:]])
    B: np.ndarray = np.array(rows) / (ends[:, 1] + ends[:, 2])[:, None]
    return B


def written(path: Path, times: np.ndarray, B: np.ndarray, name: str, history: int | None = None) -> Tableau:
    """The inverse of `flattened`: step i has the weights of row i less row i - 1 of B (N, N), over nodes (N + 1,)."""
    draft, n = Draft(path, path.nodes(times)), len(B)
    g = draft.grid
    steps = np.diff(B, axis=0, prepend=0.0) * STRAIGHT.c(g)[1:, None]
    for i in range(n):
        ratio, _ = STRAIGHT.step(g[i], g[i + 1])
        used = range(max(0, i + 1 - (history or n)), i + 1)
        draft.call(g[i], "straight", y={"y": float(ratio), **{j: float(steps[i, j]) for j in used}}, node=i + 1)
    return draft.build(name, 1)


class Lines(NamedTuple):
    """A run as what it does to its start and its velocities, and how that changes with the times and weights.

    Of the P times and weights those come first that act first.
    """

    times: Tensor
    """(N,): of the calls, on the path's clock."""
    rows: Tensor
    """(N, N + 1): row i makes y_{i+1} of x, v_0, .., v_i."""
    slopes: Tensor
    """(P, N, N + 1): their derivatives."""
    first: Tensor
    """(P,): the first row that each changes."""
    moves: Tensor
    """(P,): the call whose time it is; -1 of a weight."""
    onto: Tensor
    """(parameters, P): the derivatives of times and weights by the parameters of the student, all in a row."""


class Student:
    """A run whose times and weights are parameters, from those of a given tableau on.

    The steps in the angle theta = atan(sigma / alpha), from the start to the last time at which the network may be
    called, are a softmax of logits, so that the times stay ordered. `weights` are added to those of the tableau, at
    the places `free` (M, 2) of B; the newest v of each row gets the weight that makes the sum of the row exact,
    wherever the nodes are.

    Args:
        start: the initial tableau.
        history: K >= 2, the number of v that a row may use.
        times: whether the times are learned, or only the weights.
        name: of the learned tableau.

    Raises:
        ValueError: see `flattened`; or if the network's prediction is not determined at a call.
    """

    def __init__(self, model: Model, start: Tableau, history: int, times: bool, name: str) -> None:
        bind(start, model)
        self.model, self.calls, self.history, self.name = model, start.nfe, history, name
        n, path = start.nfe, model.path
        i, j = np.tril_indices(n, -1)
        settled = np.minimum(i, j + history - 1)  # the row in which a weight is a parameter
        self.free, place = np.unique(np.stack([settled, j], -1), axis=0, return_inverse=True)
        spread = np.zeros((len(self.free), n, n))
        spread[place.reshape(-1), i, j] = 1
        self._spread = torch.from_numpy(spread)
        base = np.zeros((n, n))
        base[i, j] = flattened(start)[settled, j]
        self._base = torch.from_numpy(base)
        self._ends = float(start.times[0]), float(start.times[-1])
        self._fixed = None if times else torch.tensor([*start.calls[:, 0], self._ends[1]], dtype=torch.float64)
        ends_on_data = self._ends[1] == path.t_data
        last = path.nodes([path.t_last if ends_on_data else self._ends[1]])[0]
        self._first, self._last = float(_angles(start.calls[0])), float(np.arctan2(last.sigma, last.alpha))
        shares = -np.diff([*_angles(start.calls), self._last]) / (self._first - self._last)
        # A last call at the last possible time (on paths that stop before the data) must be free to move too.
        shares = np.maximum(shares, 100 * LEAST / n)
        shares = (shares / shares.sum() - LEAST / n) / (1 - LEAST)
        self.logits = torch.from_numpy(np.log(shares)).requires_grad_(times)
        self.weights = torch.zeros(len(self.free), dtype=torch.float64, requires_grad=True)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name."""
        named = {"logits": self.logits, "weights": self.weights}
        return {name: p for name, p in named.items() if p.requires_grad}

    @property
    def cost(self) -> int:
        """Calls of a sample for a run with its derivatives, of which each direction counts as one."""
        n = self.calls
        acted = [i * (self._fixed is None) + int((self.free[:, 0] < i).sum()) for i in range(n)]
        return n + sum(acted)

    def times(self) -> Tensor:
        """(N + 1,): the nodes on the path's clock, float64, differentiable in the logits."""
        if self._fixed is not None:
            return self._fixed
        shares = LEAST / self.calls + (1 - LEAST) * self.logits.softmax(0)
        theta = self._last + (self._first - self._last) * shares.flip(0).cumsum(0).flip(0)[1:]
        t = self.model.path.time(-theta.detach().tan().log())
        p = self.model.path.at(t)
        slope = (p.alpha * p.dsigma - p.sigma * p.dalpha) / (p.alpha**2 + p.sigma**2)  # dtheta/dt: `time` has none
        first, last = (torch.tensor([end], dtype=torch.float64) for end in self._ends)
        return torch.cat([first, t + (theta - theta.detach()) / slope, last])

    def matrix(self, u: Tensor) -> Tensor:
        """B (N, N) for nodes at u (N + 1,)."""
        older = self._base + torch.tensordot(self.weights, self._spread, 1)
        B: Tensor = older + torch.diag(u[1:] - u[0] - older.sum(1))
        return B

    def tableau(self) -> Tableau:
        """The present run as a tableau; step i has the weights of row i minus row i - 1 of B."""
        with torch.no_grad():
            times = self.times().numpy()
            u = STRAIGHT.v(self.model.path.nodes(times))
            return written(self.model.path, times, self.matrix(torch.from_numpy(u)).numpy(), self.name, self.history)

    def lines(self) -> Lines:
        """The present run, and its derivatives by the times and weights."""
        n, count = self.calls, len(self.free)
        with torch.enable_grad():
            t = self.times()
            if self._fixed is None:
                # One row for each time that is learned, by the logits; the ends are not.
                rows = [torch.autograd.grad(t[k], self.logits, retain_graph=True)[0] for k in range(1, n)]
            t = t.detach().requires_grad_()
            p = self.model.path.at(t)
            c, u = STRAIGHT.c(p), STRAIGHT.v(p)
            (dc,), (du,) = (torch.autograd.grad(value.sum(), t, retain_graph=True) for value in (c, u))
        with torch.no_grad():
            c, u, after = c.detach(), u.detach(), c.detach()[1:, None]
            table = torch.cat([after / c[0], after * self.matrix(u)], 1)
            newest = torch.diag_embed(-self._spread.sum(2))
            slopes = torch.cat([self._spread.new_zeros(count, n, 1), after * (self._spread + newest)], 2)
            first, moves = torch.from_numpy(self.free[:, 0]), torch.full((count,), -1)
            onto = torch.eye(count, dtype=torch.float64)
            if self._fixed is None:
                k = torch.arange(1, n)
                by_time = slopes.new_zeros(n - 1, n, n + 1)
                by_time[k - 1, k - 1] = (dc / c)[k, None] * table[k - 1]
                by_time[k - 1, k - 1, k] += (c * du)[k]
                slopes, first, moves = torch.cat([by_time, slopes]), torch.cat([k - 1, first]), torch.cat([k, moves])
                whole = torch.zeros(n + count, n - 1 + count, dtype=torch.float64)
                whole[:n, : n - 1], whole[n:, n - 1 :] = torch.stack(rows, 1), onto
                onto = whole
            order = torch.argsort(first, stable=True)
        return Lines(t.detach()[:-1], table, slopes[order], first[order], moves[order], onto[:, order])

    def __call__(self, x: Tensor, cond: Mapping[str, Any], guidance: Guidance, gradient: str = "direct") -> Tensor:
        """The end of the run from x, with a graph back to the parameters.

        Args:
            gradient: "checkpoint" keeps no graph of the network, and calls it again in the backward pass.
        """
        model, outputs = self.model, guidance.around(self.model, self.tableau())
        if gradient == "checkpoint":
            outputs = partial(checkpoint, outputs, use_reentrant=False)
        t = self.times()
        p = model.path.at(t)
        c, at = STRAIGHT.c(p), p[: self.calls]
        network = Network(outputs, network_times(model, t[:-1], x), model.input_scale(at))
        to_v = torch.stack(convert(V, model.coefficients(at), at.alpha, at.sigma), -1)
        B = self.matrix(STRAIGHT.v(p))
        steps = torch.cat([B[:1], B.diff(dim=0)]) * c[1:, None]
        y, history = x, tuple[Tensor, ...]()  # of v, newest first
        for i in range(self.calls):
            out = network(i, y, cond, guidance.given)
            (v,) = combine([y, out], to_v[i : i + 1], dtypes=[y.dtype])
            history = (v, *history)[: self.history]
            back = steps[i, max(0, i - self.history + 1) : i + 1].flip(0)
            (y,) = combine([y, *history], torch.cat([c[i + 1 : i + 2] / c[i : i + 1], back])[None])
        return y


def _angles(calls: np.ndarray) -> np.ndarray:
    angles: np.ndarray = np.arctan2(calls[..., 2], calls[..., 1])
    return angles
