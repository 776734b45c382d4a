r"""Levenberg-Marquardt for the mean distance: a few dozen parameters want second order.

With r_s the residual of noise s and J_s its derivative by the parameters, the mean of |r_s| is lowered by solving

    (A + lambda diag A) step = -g,    A = sum_s w_s J_s^T J_s,    g = sum_s w_s J_s^T r_s,    w_s = 1 / |r_s|,

which is least squares, reweighted in each iteration for a distance rather than its square, with Marquardt's damping.
Three values of lambda are tried in each iteration, and the best is kept. The iterate with the least loss on noises that
are held out is returned, and the search ends once these get no better.

A few samples next to the border between two modes end in the other one, and are worth as much as a thousand others.
Whether they do is chance, and no derivative tells. So a distance counts for at most fifty times the median where steps
and iterates are compared, and beyond that w_s falls with the third power of |r_s|. The best step is doubled as long as
that leads nearer: the weights bound the distances from above, so that its own length is short.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffsolve.api.sampling import solve
from diffsolve.tableau import Tableau
from diffsolve.tuning.losses import Distance
from diffsolve.tuning.progress import Learnable, Progress
from diffsolve.tuning.runs import Noises, dealt, teacher_of
from diffsolve.tuning.student import STRAIGHT, Student
from diffsolve.tuning.tangents import along, differences, linearised
from diffsolve.tuning.task import MOST, Task
from diffsolve.tuning.tracks import Tracks, tracked

__all__ = ["LeastSquares"]

FIRST = 1e-3
"""The damping to begin with."""
LEAST = 1e-9
FACTORS = (0.1, 1.0, 10.0)
"""Of the dampings tried in an iteration."""
TRIES = 3  # rounds of larger dampings before an iterate is taken for the best
PATIENCE = 10  # iterations without a gain on the noises held out
FLOOR = 1e-2  # the least distance that weighs more, over the median
TINY = 1e-30
ENOUGH = 1e-4  # a smaller relative gain on the noises held out is none


class LeastSquares:
    """The iterations, on all noises to learn from."""

    def __init__(self, task: Task, student: Learnable, progress: Progress) -> None:
        assert isinstance(task.loss, Distance)
        assert isinstance(student, Student)
        self.task, self.student, self.progress = task, student, progress
        self.loss = task.loss
        self.tracks: dict[int, Tracks] = {}
        self.damping = progress.moments["damping"]

    @staticmethod
    def moments(student: Learnable) -> dict[str, Tensor]:
        """What it carries from iteration to iteration, beside the parameters."""
        return {"damping": torch.tensor(FIRST, dtype=torch.float64)}

    def learn(self, iterations: int) -> None:
        """Run the remaining iterations."""
        progress = self.progress
        self.validate()
        while progress.iteration < iterations and not progress.done:
            moved = self.iterate()
            self.validate()
            progress.done = not moved or self.stale()
            progress.save()

    def validate(self) -> None:
        if self.progress.fresh:
            self.progress.validated(self.task.verdict(self.student.tableau()))

    def stale(self) -> bool:
        """Whether the noises held out have got no nearer for a while."""
        losses = [loss for _, loss in self.progress.validation]
        return len(losses) > PATIENCE and min(losses[-PATIENCE:]) > (1 - ENOUGH) * min(losses[:-PATIENCE])

    def iterate(self) -> bool:
        """One step from the present iterate; False if none is better.

        Raises:
            FloatingPointError: if the loss or its derivative is not finite.
        """
        A, g, far = self.equations()
        if not (bool(far.isfinite().all()) and bool(A.isfinite().all())):
            raise FloatingPointError(
                f"the loss became {float(far.mean())}, or its derivative not finite, in iteration "
                f"{self.progress.iteration}: another solver to begin with may help"
            )
        most = MOST * float(far.median())
        here, best, least = self.place(), None, float(far.clamp(max=most).mean())
        for _ in range(TRIES):
            for damping in [max(float(self.damping) * factor, LEAST) for factor in FACTORS]:
                step = torch.linalg.solve(A + torch.diag(damping * A.diag() + TINY), g)
                if (found := self.tried(here - step, most)) < least:
                    best, least, kept = step, found, damping
            if best is not None:
                break
            self.damping.mul_(FACTORS[-1] ** 3)
        if best is not None:
            self.damping.fill_(kept)
            while (found := self.tried(here - 2 * best, most)) < least:
                best, least = 2 * best, found
            here = here - best
        self.put(here)
        self.progress.advance(float(far.mean()))
        return best is not None

    def tried(self, place: Tensor, most: float) -> float:
        """The mean distance of the noises to learn from with these parameters, none above `most`."""
        self.put(place)
        table = self.student.tableau()
        errors = self.along(table) if self.loss.nodes else self.task.errors(table, self.task.learning)
        return float(errors.clamp(max=most).mean())

    def equations(self) -> tuple[Tensor, Tensor, Tensor]:
        """A (P, P), g (P,), and the distances (n,) of the noises to learn from."""
        task, size = self.task, len(self.place())
        # One part for each batch, summed in their order: the same bits whichever rank has which.
        parts = torch.zeros(-(-len(task.learning) // task.batch), size, size + 1, dtype=torch.float64)
        distances = torch.zeros(len(task.learning), dtype=torch.float64)
        for number, place, index in dealt(task.learning, task.batch, task.ranks):
            some = task.noises.some(index)
            if self.loss.nodes:
                r, J = self._weighted(*along(self.student, some, self.track(number, some)))
            else:
                x, J = linearised(self.student, some)
                r, J = self._residual(x, J, task.ends[index.to(x.device)])
            far = r.norm(dim=1)
            median = float(far.median())
            bounded = far.clamp(min=FLOOR * median + TINY)
            weight = (MOST * median / bounded).clamp(max=1) ** 2 / bounded / len(task.learning)
            J = J.flatten(2)
            weighted = (J * weight[:, None]).flatten(1)
            parts[number, :, :size] = (weighted @ J.flatten(1).T).cpu().double()
            parts[number, :, size] = (weighted @ r.flatten()).cpu().double()
            distances[place] = far.cpu().double()
        task.calls += len(task.learning) * self.student.cost
        parts, distances = (task.ranks.summed(found, task.ends.device) for found in (parts, distances))
        both = parts.sum(0)
        return both[:, :size], both[:, size], distances

    def _residual(self, x: Tensor, J: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The residual (B, M) and its derivatives (P, B, M)."""
        if self.loss.features is None:
            return self.loss.residual(x, ends), J.flatten(2) / self.loss.size

        def residual(x: Tensor, copies: int = 1) -> Tensor:
            return self.loss.residual(x, ends.repeat(copies, *[1] * (x.dim() - 1)))

        return differences(residual, (x,), (J,))

    def track(self, number: int, noises: Noises) -> Tracks:
        """The teacher's way from a batch of the noises to learn from; it is run once."""
        if number not in self.tracks:
            self.tracks[number] = tracked(self.task.model, noises, self.teacher)
        return self.tracks[number]

    @property
    def teacher(self) -> Tableau:
        teacher, task = self.task.settings["teacher"], self.task
        if isinstance(teacher, Tableau):
            return teacher
        return teacher_of(task.model, teacher, self.student.tableau(), task.noises)

    def along(self, table: Tableau) -> Tensor:
        """The lengths (n,) of the residuals of a run along the whole way, of the noises to learn from."""
        task, found = self.task, torch.zeros(len(self.task.learning), dtype=torch.float64)
        at = task.model.path.nodes(table.times[1:])
        c, u = STRAIGHT.c(at), STRAIGHT.v(at)
        for number, place, index in dealt(task.learning, task.batch, task.ranks):
            some = task.noises.some(index)
            tracks = self.track(number, some)
            run = solve(
                task.model, noise=some.x, solver=table, cond=some.cond, guidance=some.guidance, dtype=some.x.dtype,
                trajectory="calls",
            )  # fmt: skip
            assert run.trajectory is not None
            off = [y / float(c[k]) - tracks.at(float(u[k]))[0] for k, y in enumerate(run.trajectory[1:])]
            r, _ = self._weighted(torch.stack(off, 1), run.trajectory.new_zeros(0, *off[0].shape))
            found[place] = r.norm(dim=1).cpu().double()
        task.calls += table.nfe * len(task.learning)
        return task.ranks.summed(found, task.ends.device).nan_to_num(nan=math.inf, posinf=math.inf)

    def _weighted(self, off: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
        """The residual (B, M) and its derivatives (P, B, M), of what a run is off by after each call (B, N, ...)."""
        N = off.shape[1]
        weights = torch.full((N, 1), self.loss.nodes / max(1, N - 1) ** 0.5)
        weights[-1] = 1.0
        weights = (weights / self.loss.size).to(off)
        r = (off.flatten(2) * weights).flatten(1)
        return r, (J.flatten(3) * weights).flatten(2) if len(J) else J

    def place(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.student.parameters.values()])

    def put(self, values: Tensor) -> None:
        parameters = self.student.parameters.values()
        for p, value in zip(parameters, torch.split(values, [p.numel() for p in parameters]), strict=True):
            p.data.copy_(value)
