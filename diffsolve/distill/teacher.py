"""What a student learns from: a teacher's velocity, guided or not, and its runs between times of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.caching import remembered
from diffsolve.common.checks import required
from diffsolve.common.tensors import column
from diffsolve.execute import conversion, derivatives
from diffsolve.models import Guidance, Model
from diffsolve.models.conditions import picked, told
from diffsolve.paths import Path
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["Teacher"]


@dataclass(frozen=True)
class Teacher:
    """A trained model, guided as it is to be imitated. Its outputs have no graph."""

    model: Model
    guidance: Guidance

    def output(self, x: Tensor, t: np.ndarray, to: np.ndarray, cond: Mapping[str, Any], scale: Tensor | None) -> Tensor:
        """The guided output at x (B, ...) and times t (B,); `scale` (B,) is in place of the guidance's."""
        model, guidance = self.model, self.guidance
        at = model.path.nodes(t)
        factor = model.input_scale(at)
        inside = x if factor is None else x * column(factor, x)
        network_time = model.network_time(torch.from_numpy(t), torch.from_numpy(to))
        network_time = network_time.to(x.device, model.time_dtype(x.dtype))
        with torch.no_grad(), np.errstate(divide="ignore"):
            if scale is None:
                return guidance.output(model, inside, network_time, at.sigma / at.alpha, cond, guidance.given)
            with_, without = guidance.pair(model, inside, network_time, told(cond), told(guidance.uncond))
            return without + column(scale, x) * (with_ - without)

    def predict(
        self, target: tuple[Any, Any], x: Tensor, t: np.ndarray, cond: Mapping[str, Any], scale: Tensor | None = None
    ) -> Tensor:
        """a x_0 + b eps for target = (a, b), each (B,), as the teacher predicts them at x and t.

        Raises:
            ValueError: if its output does not determine that, as noise at alpha = 0.
        """
        p, q = conversion(target, self.model, self.model.path.nodes(t))
        determined = bool(np.isfinite(p).all() and np.isfinite(q).all())
        required(determined, "teacher", self.model, "one that determines the velocity at all times that are drawn")
        return column(p, x) * x + column(q, x) * self.output(x, t, t, cond, scale)

    def velocity(self, x: Tensor, t: np.ndarray, cond: Mapping[str, Any], scale: Tensor | None = None) -> Tensor:
        """dx/dt on the path's clock."""
        p = self.model.path.nodes(t)
        return self.predict((p.dalpha, p.dsigma), x, t, cond, scale)

    def run(
        self, solver: Solver, x: Tensor, nodes: np.ndarray, cond: Mapping[str, Any], scale: Tensor | None = None
    ) -> Tensor:
        """x at the last of the nodes (B, n + 1): a run of the solver for each sample, from x at its first.

        A sample whose nodes are all one stays where it is.

        Raises:
            ValueError: if the solver draws noise.
        """
        alike: dict[Any, list[tuple[int, Tableau]]] = {}
        for i, own in enumerate(nodes.tolist()):
            if own[0] != own[-1]:
                tableau = _planned(solver, self.model.path, tuple(own))
                required(not tableau.stochastic, "solver", solver, "deterministic")
                alike.setdefault(tableau.weights.shape, []).append((i, tableau))
        ends = x.clone()
        for members in alike.values():
            index, rows = zip(*members, strict=True)
            mine = torch.tensor(index, device=x.device)
            share = None if scale is None else scale[mine]
            ends[mine] = self._run(rows, x[mine], picked(cond, mine, len(x)), share)
        return ends

    def _run(self, rows: Sequence[Tableau], x: Tensor, cond: Mapping[str, Any], scale: Tensor | None) -> Tensor:
        """The ends of runs with a row each, of as many calls."""
        first = rows[0]
        entry, weights = (np.stack([getattr(row, name) for row in rows]) for name in ("entry", "weights"))
        t, to = (np.stack(times) for times in zip(*((row.calls[:, 0], row.to) for row in rows), strict=True))
        d = np.stack([derivatives(self.model, row) for row in rows])
        s, y = (column(entry[:, side, 0], x) * x for side in (0, 1))
        history: list[Tensor] = []
        for i in range(first.nfe):
            p, q = conversion((d[:, 0, i], d[:, 1, i]), self.model, self.model.path.nodes(t[:, i]))
            out = self.output(y, t[:, i].copy(), to[:, i].copy(), cond, scale)
            history = [column(p, x) * y + column(q, x) * out, *history][: first.history]
            live = [s, y, *history]
            s, y = (_sum(weights[:, i, side, :-1], live) for side in (0, 1))
        return y


def _sum(weights: np.ndarray, live: list[Tensor]) -> Tensor:
    """sum_j weights[:, j] live[j], without the terms that are 0 for all samples, which may not be finite."""
    used = [j for j in range(len(live)) if weights[:, j].any()]
    total = column(weights[:, used[0]], live[0]) * live[used[0]]
    for j in used[1:]:
        total = total + column(weights[:, j], live[0]) * live[j]
    return total


@remembered(maxsize=4096)
def _planned(solver: Solver, path: Path, nodes: tuple[float, ...]) -> Tableau:
    return solver(path, nodes)
