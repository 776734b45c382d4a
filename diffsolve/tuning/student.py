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

Three columns of a tableau can be learned too: the time that the network is told at a call, apart from the time of the
state (Zhu et al., 2507.14797, eq. 8, have such shifts), what the scale of guidance counts for there, and how much its v
is blurred or sharpened in space, v_j + k_j (m(v_j) - v_j) with the mean m of an element's neighbours. What is added is
0 for a v that is constant in space, and outside the span of the outputs for others.

Calls can be made together: after the first one they stand in groups of M, and no row that makes an input of a group has
weights on outputs of the same group, so that a group is one batch (parallel directions, ibid.).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffsolve.common.checks import required
from diffsolve.execute import Network, bind, network_times
from diffsolve.execute.blur import blurred
from diffsolve.kernels import combine
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.paths import Path
from diffsolve.tableau import Draft, Tableau
from diffsolve.tableau.frames import FRAMES, convert
from diffsolve.tuning.nodes import LEAST, Nodes, angles

__all__ = ["COLUMNS", "Lines", "Student", "V", "flattened", "groups", "written"]

STRAIGHT = FRAMES["straight"]
V = (-1.0, 1.0)
"""v = eps - x_0, as a combination of the data and the noise."""

COLUMNS = ("told", "guides", "blurs")
"""The columns of a tableau that can be learned beside its times and weights."""


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


def groups(calls: int, together: int) -> np.ndarray:
    """(N + 1,): the group of each call, and of the end: the first call alone, then `together` in each."""
    return np.append((np.arange(calls) + together - 1) // together, calls)


class Lines(NamedTuple):
    """A run as what it does to its start and its velocities, and how that changes along directions.

    A direction is one of its times, times told, parts of the scale of guidance, blurs, or weights. Of the P directions
    those come first that act first.
    """

    inputs: Tensor
    """(4, N): of the calls, the times of the states and those told, on the path's clock, and `Tableau.guides`,
    `Tableau.blurs`."""
    rows: Tensor
    """(N, N + 1): row i makes y_{i+1} of x, v_0, .., v_i."""
    slopes: Tensor
    """(P, N, N + 1): their derivatives."""
    begins: Tensor
    """(P,): 2 i of what changes v_i; 2 i + 1 of what changes row i, and nothing before."""
    moves: Tensor
    """(4, P, N): the derivatives of `inputs`."""
    onto: Tensor
    """(parameters, P): the derivatives of the directions by the parameters of the student, all in a row."""


class Student(Nodes):
    """A run whose times and weights are parameters, from those of a given tableau on.

    `weights` are added to those of the tableau, at the places `free` (M, 2) of B; the newest v of each row gets the
    weight that makes the sum of the row exact, wherever the nodes are. The network is told the angle
    theta_i + offsets_i (theta_i - theta_{i+1}).

    Args:
        start: the initial tableau.
        history: K >= 2, the number of v that a row may use; more than `together`, where that is more than 1.
        times: whether the times are learned, or only the weights.
        name: of the learned tableau.
        also: of COLUMNS, those that are learned.
        together: how many calls make a group.

    Raises:
        ValueError: see `flattened`; or if the network's prediction is not determined at a call.
    """

    def __init__(
        self,
        model: Model,
        start: Tableau,
        history: int,
        times: bool,
        name: str,
        also: Sequence[str] = (),
        together: int = 1,
    ) -> None:
        bind(start, model)
        super().__init__(model, start, times)
        self.history, self.name, n = history, name, start.nfe
        group = groups(n, together)
        newest = np.array([int(np.flatnonzero(group[:n] < group[i + 1])[-1]) for i in range(n)])
        i, j = np.tril_indices(n)
        i, j = i[j < newest[i]], j[j < newest[i]]
        settled = np.minimum(i, j + history - 1)  # the row in which a weight is a parameter
        self.free, place = np.unique(np.stack([settled, j], -1), axis=0, return_inverse=True)
        spread = np.zeros((len(self.free), n, n))
        spread[place.reshape(-1), i, j] = 1
        self._spread, self._newest = torch.from_numpy(spread), torch.from_numpy(np.eye(n)[newest])
        base = np.zeros((n, n))
        base[i, j] = flattened(start)[settled, j]
        self._base = torch.from_numpy(base)
        self.weights = torch.zeros(len(self.free), dtype=torch.float64, requires_grad=True)
        self.guides = torch.tensor(start.guides).requires_grad_("guides" in also)
        straight = not start.blurs.any() or {*start.frame} == {"straight"}
        required(straight, "solver", start.solver, "one that blurs straight velocities, where it is learned from")
        self.blurs = torch.tensor(start.blurs).requires_grad_("blurs" in also)
        theta, told = self.theta().detach(), angles(_nodes(model.path, start.told))
        moved = torch.from_numpy(told - angles(start.calls)) / (theta[:-1] - theta[1:]).clamp(min=LEAST / n)
        self.offsets = moved.requires_grad_("told" in also)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is learned, by name."""
        names = ("logits", "weights", "offsets", "guides", "blurs")
        return {name: p for name in names if (p := getattr(self, name)).requires_grad}

    @property
    def apart(self) -> bool:
        """Whether the times told are others than those of the states."""
        return self.offsets.requires_grad or bool(self.offsets.any())

    @property
    def cost(self) -> int:
        """Calls of a sample for a run with its derivatives, of which each direction counts as one."""
        begins = self._begins()
        return self.calls + sum(int((begins <= 2 * i).sum()) for i in range(self.calls))

    def told(self) -> Tensor:
        """(N,): the times that the network is told, on the path's clock."""
        t = self.times()[:-1]
        if not self.apart:
            return t
        theta = self.theta()
        moved = theta[:-1] + self.offsets * (theta[:-1] - theta[1:])
        # A difference, so that what is not moved is told the very time of the state, an infinite lambda's too.
        return t + self.times_at(moved.clamp(self.last, self.first)) - self.times_at(theta[:-1])

    def matrix(self, u: Tensor) -> Tensor:
        """B (N, N) for nodes at u (N + 1,)."""
        older = self._base + torch.tensordot(self.weights, self._spread, 1)
        B: Tensor = older + self._newest * (u[1:] - u[0] - older.sum(1))[:, None]
        return B

    def tableau(self) -> Tableau:
        """The present run as a tableau; step i has the weights of row i minus row i - 1 of B."""
        with torch.no_grad():
            times = self.times().numpy()
            u = STRAIGHT.v(self.model.path.nodes(times))
            B = self.matrix(torch.from_numpy(u)).numpy()
            table = written(self.model.path, times, B, self.name, self.history)
            return replace(table, told=self.told().numpy(), guides=self.guides.numpy(), blurs=self.blurs.numpy())

    def lines(self) -> Lines:
        """The present run, and its derivatives by the times and weights."""
        n, count = self.calls, len(self.free)
        with torch.enable_grad():
            t, told = self.times(), self.told()
            inputs = torch.stack([t[:-1], told, self.guides, self.blurs]).detach()
            onto = self._onto(t, told)
            t = t.detach().requires_grad_()
            p = self.model.path.at(t)
            c, u = STRAIGHT.c(p), STRAIGHT.v(p)
            (dc,), (du,) = (torch.autograd.grad(value.sum(), t, retain_graph=True) for value in (c, u))
        with torch.no_grad():
            c, u, after = c.detach(), u.detach(), c.detach()[1:, None]
            table = torch.cat([after / c[0], after * self.matrix(u)], 1)
            slopes, moves = table.new_zeros(len(onto.T), n, n + 1), table.new_zeros(4, len(onto.T), n)
            newest = -self._spread.sum(2)[..., None] * self._newest
            slopes[:count, :, 1:] = after * (self._spread + newest)
            at = count
            if self.fixed is None:
                k = torch.arange(1, n)
                here = at + k - 1
                slopes[here, k - 1] = (dc / c)[k, None] * table[k - 1]
                slopes[here[:, None], (k - 1)[:, None], 1 + torch.arange(n)] += (c * du)[k, None] * self._newest[k - 1]
                moves[: 1 if self.apart else 2, here, k] = 1
                at += n - 1
            columns = (1, self.apart, self._toward), (2, self.guides.requires_grad, 1), (3, self.blurs.requires_grad, 1)
            for column, part, size in columns:
                if part:
                    moves[column, at + torch.arange(n), torch.arange(n)] = size
                    at += n
            begins = self._begins()
            order = torch.argsort(begins, stable=True)
        return Lines(inputs, table, slopes[order], begins[order], moves[:, order], onto[:, order])

    @property
    def _toward(self) -> float:
        """The sign of the clock's way to the data, in which every call has room to be told another time."""
        return math.copysign(1.0, self.model.path.t_data - self.model.path.t_noise)

    def _begins(self) -> Tensor:
        """`Lines.begins` of weights, times, times told, guidance and blurs, before they are sorted."""
        calls = torch.arange(self.calls)
        parts = [2 * torch.from_numpy(self.free[:, 0]) + 1]
        parts += [2 * calls[1:] - 1] if self.fixed is None else []
        parts += [2 * calls] * (self.apart + self.guides.requires_grad + self.blurs.requires_grad)
        return torch.cat(parts)

    def _onto(self, t: Tensor, told: Tensor) -> Tensor:
        """(parameters, P): `Lines.onto` in the order of `_begins`."""
        parts = [self.weights]
        parts += [t[1:-1]] if self.fixed is None else []
        parts += [self._toward * told] if self.apart else []
        parts += [column for column in (self.guides, self.blurs) if column.requires_grad]
        parameters = list(self.parameters.values())
        columns = []
        for value in torch.cat(parts):
            slopes = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]
            columns.append(torch.cat(filled))
        return torch.stack(columns, 1)

    def __call__(self, x: Tensor, cond: Mapping[str, Any], guidance: Guidance, gradient: str = "direct") -> Tensor:
        """The end of the run from x, with a graph back to the parameters.

        Args:
            gradient: "checkpoint" keeps no graph of the network, and calls it again in the backward pass.
        """
        model, tableau = self.model, self.tableau()
        outputs = guidance.around(model, tableau)
        if gradient == "checkpoint":
            outputs = partial(checkpoint, outputs, use_reentrant=False)
        t = self.times()
        p = model.path.at(t)
        c, at = STRAIGHT.c(p), p[: self.calls]
        network = Network(outputs, network_times(model, self.told(), x), model.input_scale(at))
        to_v = torch.stack(convert(V, model.coefficients(at), at.alpha, at.sigma), -1)
        B = self.matrix(STRAIGHT.v(p))
        steps = torch.cat([B[:1], B.diff(dim=0)]) * c[1:, None]
        scales, blurs = self.scales(guidance, tableau), self.blurring
        y, history = x, tuple[Tensor, ...]()  # of v, newest first
        for i in range(self.calls):
            given = guidance.given if scales is None else {**guidance.given, "scale": scales[i].expand(len(x)).to(x)}
            out = network(i, y, cond, given)
            (v,) = combine([y, out], to_v[i : i + 1], dtypes=[y.dtype])
            v = blurred(v, self.blurs[i].to(v)) if blurs else v
            history = (v, *history)[: self.history]
            back = steps[i, max(0, i - self.history + 1) : i + 1].flip(0)
            (y,) = combine([y, *history], torch.cat([c[i + 1 : i + 2] / c[i : i + 1], back])[None])
        return y

    @property
    def blurring(self) -> bool:
        """Whether a v is blurred, or may be."""
        return self.blurs.requires_grad or bool(self.blurs.any())

    def scales(self, guidance: Guidance, tableau: Tableau) -> Tensor | None:
        """(N,): the scale of guidance at each call, differentiable in `guides`; None if these are not learned."""
        if not self.guides.requires_grad:
            return None
        own = torch.from_numpy(guidance.schedule(replace(tableau, guides=np.ones(self.calls))))
        return 1 + self.guides * (own - 1)


def _nodes(path: Path, times: np.ndarray) -> np.ndarray:
    """(n, 3): t, alpha, sigma."""
    at = path.nodes(times)
    return np.stack([at.t, at.alpha, at.sigma], -1)
