"""Picard iteration on a sliding window: Jacobi sweeps on the triangular system that a run is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import integer, required
from diffsolve.common.tensors import flat
from diffsolve.execute import Executor, executor_at_end
from diffsolve.execute.results import Rounds
from diffsolve.kernels.window import Window
from diffsolve.parallel.anderson import Anderson, Mixer
from diffsolve.parallel.base import Calls, Parallel, in_order
from diffsolve.parallel.distributed import Ranks
from diffsolve.parallel.rows import Rows, advance_window, gather_slots, shifted
from diffsolve.parallel.secant import Slopes
from diffsolve.parallel.warm import InitialGuess
from diffsolve.solvers.base import frame_named
from diffsolve.tableau import Tableau

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard(Parallel):
    r"""Sweeps over a window of calls, all of which are made at once (ParaDiGMS, Shih et al., 2305.16317).

    A sweep calls the network at the guesses x_l of all points of the window, holds the derivatives of `frame` that it
    gives fixed, and runs the tableau's recurrence exactly: points y_l. Then the window moves on, to the first point
    that changed by more than is allowed,

    .. math:: |y_l - x_l|^2 / n > \mathrm{tol}^2 v_l + \mathrm{atol}^2,

    n the size of a sample and v_l the variance of ancestral noise in that step (`rows.step_variance`). The point that
    changed is itself good, for everything before it is: the window moves by at least one call in each round, and
    after k rounds at least k points equal those of the sequential run. With tol = atol = 0 all of them do in the
    end. Each sample has a window of its own. The host waits for the device once a round.

    Points that a window has passed are final, and all later ones depend on them; nothing depends on the last window. So
    a sample is finished as soon as its window reaches the end and the expected *next* change of each point in it, the
    one that another sweep would make, is within `finish` times that bound: shrinking changes c_k are followed by less
    than c_k (c_k / c_{k-1}).

    Args:
        window: the calls of each sample per sweep. 1 is the sequential run, bit for bit.
        tol: allowed root mean square change of a point, relative to the step's noise.
        atol: the same, in units of x. The two are added in squares.
        finish: the factor on the bound for the expected changes in the last window. 0 is the published rule: no point
            may have changed by more than tol and atol allow.
        max_rounds: stop after this many rounds in any case, with the current points; `Rounds.converged` says which
            samples met the tolerance.
        frame: whose derivative is held fixed in a sweep, a name in `diffsolve.tableau.FRAMES`. The velocity of the
            straight path changes least along a run. Where the network does not determine it, the output itself is held.
        warm: the first guess of a point that enters the window: "extrapolate" continues with the last derivative,
            "copy" takes the last point (as ParaDiGMS does), and a Tableau is run first, sequentially, for derivatives
            to interpolate: `ds.plan(model, "dpmpp-2m", steps=10)`.
        accelerate: "secant" lets f follow the point, f + j (y - x), with the slope j of its last two values along
            the last change of x, one number per call and sample: still a linear recurrence. Or Anderson mixing of
            the guesses, `ds.Anderson()`; or None. Points that the window has passed are never mixed.
        workers: the calls of a sample that can be made at once, if fewer than the window: the window is then swept
            in parts, each of which starts from the outputs of those before (Gauss-Seidel).
        max_batch: the largest batch for one network call.
        ranks: the `ds.Ranks` of torch.distributed that share the calls.

    Raises:
        ValueError: if an option is out of range or a name is unknown.
        TypeError: if ranks is not a `ds.Ranks`.
    """

    window: int = 64
    tol: float = 0.1
    atol: float = 0.0
    finish: float = 4.0
    max_rounds: int | None = None
    frame: str = "straight"
    warm: str | Tableau = "extrapolate"
    accelerate: str | Anderson | None = "secant"
    workers: int | None = None
    max_batch: int | None = None
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        integer("window", self.window, 1)
        self._check("workers", "max_batch", "max_rounds", bounds=("tol", "atol", "finish"))
        frame_named(self.frame)
        if isinstance(self.warm, Tableau):
            required(not self.warm.stochastic, "warm", self.warm.solver, "the tableau of a deterministic solver")
        else:
            required(self.warm in ("extrapolate", "copy"), "warm", self.warm, "'extrapolate', 'copy' or a Tableau")
        accelerated = self.accelerate in ("secant", None) or isinstance(self.accelerate, Anderson)
        required(accelerated, "accelerate", self.accelerate, "'secant', a ds.Anderson or None")

    def run(
        self, ex: Executor, calls: Calls, moved: Callable[[int], object], points: Tensor | None = None
    ) -> tuple[Executor, Rounds]:
        n = ex.tableau.nfe
        if len(ex.y) == 0 or (min(self.window, n) == 1 and (self.max_rounds or n) >= n):
            return in_order(ex, calls, moved, points)
        return _Window(self, ex, calls, points).run(moved)


class _Window:
    """The iteration itself. Slot l of sample b is call `at[b] + l`; x has its points, those of slot W after the last.

    Finished samples leave: `who` holds the sample of each column of all tensors. `points` receives every point that a
    window has passed.
    """

    def __init__(self, options: Picard, ex: Executor, calls: Calls, points: Tensor | None = None) -> None:
        self.options, self.ex, self.calls, self.points = options, ex, calls, points
        start = ex.state
        like = flat(start.y)
        self.N, (batch, size), K = ex.tableau.nfe, like.shape, ex.tableau.history
        self.W = min(options.window, self.N)
        self.rows = Rows(ex.tableau, calls.model, options.frame, like)
        self.limit = (options.tol**2 * self.rows.variance + options.atol**2).to(torch.float64)
        self.limit[self.N :] = math.inf
        self.slot = torch.arange(self.W, device=like.device)[:, None]
        self.who = torch.arange(batch, device=like.device)
        self.at = torch.zeros_like(self.who)
        self.y, self.s = like, flat(start.s)
        self.d = like.new_zeros(K - 1, batch, size)
        self.noise = _Noise(ex, self.rows.noisy)
        self.warm = InitialGuess(options.warm, self.rows, calls, like)
        self.mixer = Mixer(options.accelerate) if isinstance(options.accelerate, Anderson) else None
        row = self.row
        self.f = self.warm.first(row)
        self.past = torch.zeros(row.shape, dtype=torch.float64, device=like.device)
        self.x = advance_window(self.rows, row, self.s, self.y, self.d, self.f, self.noise(row, self.who))[1]
        self.slopes = Slopes(self.f) if options.accelerate == "secant" else None
        if options.warm == "copy":
            self.x[:] = self.y
        self.end_s, self.end_y = torch.empty_like(like), torch.empty_like(like)
        self.each = torch.zeros(batch, dtype=torch.int64)
        self.converged = torch.ones(batch, dtype=torch.bool)

    @property
    def row(self) -> Tensor:
        """(W, B): the calls in the window; N beyond the end."""
        return (self.at + self.slot).clamp(max=self.N)

    def run(self, moved: Callable[[int], object]) -> tuple[Executor, Rounds]:
        rounds, passed = 0, 0
        while len(self.who):
            rounds += 1
            s, y, d, stride = self.round()
            if rounds == self.options.max_rounds:
                s, y, stride = self.run_out(s, y, d, stride)
            self.slide(s, y, d, stride, rounds)
            slowest = int(self.at.min()) if len(self.who) else self.N
            self.noise.drop(slowest)
            moved(slowest - passed)
            passed = slowest
        y = self.end_y.view_as(self.ex.y)
        s = y if self.rows.single else self.end_s.view_as(y)
        batch, made = len(self.each), self.calls.made + self.warm.made
        depth = self.calls.depth + self.warm.depth
        statistics = Rounds(rounds, made, made - batch * self.N, depth, self.each, self.converged)
        return executor_at_end(self.ex.program, s, y, self.ex.key), statistics

    # Example: one sample, a window of W = 4 at call 10, workers = 2; the points x are x_10 .. x_14.
    #     part 0:2  call the network at x_10, x_11; the recurrence gives y_11, y_12, changes of x_11, x_12
    #     rest      from y_12, with f of 12, 13 as it was: new guesses x_12 = y_12, x_13, x_14
    #     part 2:4  call the network at x_12, x_13; the recurrence gives y_13, y_14, changes of x_13, x_14
    # y_12 is where the network was called, so its change counts as 0. If the changes are (small, 0, small, large), all
    # that y_14 was made of is good, and so is y_14: the stride is 4, and the next window begins at call 14.
    def round(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One sweep: s, y and d at all points of the window, and the number of calls that each sample moves on."""
        row, W = self.row, self.W
        z = self.noise(row, self.who)
        step = min(self.options.workers or W, W)
        here = self.s, self.y, self.d
        pieces, changes = [(self.s[None], self.y[None], self.d)], []
        for first in range(0, W, step):
            part, rest = slice(first, first + step), slice(first + step, W)
            self.evaluate(row, part)
            *swept, change = self.advance_window(row, part, here, z, self.x[1:][part])
            here = swept[0][-1], swept[1][-1], swept[2][len(swept[2]) - len(self.d) :]
            pieces.append((swept[0][1:], swept[1][1:], swept[2][len(self.d) :]))
            assert change is not None
            changes.append(change)
            if first + step < W:
                self.x[first + step :] = self.advance_window(row, rest, here, z)[1]
                change[-1] = 0.0  # the next part calls the network at this very point
        ss, points, ds = (torch.cat(piece) for piece in zip(*pieces, strict=True))
        return ss, points, ds, self.stride(torch.cat(changes).double() / self.y.shape[1], self.limit[row])

    def stride(self, change: Tensor, limit: Tensor) -> Tensor:
        """(B,): how far each window moves, from the mean squares of the changes of its points."""
        left = self.N - self.at
        within = change <= limit
        good = within.int().cumprod(0).sum(0) + 1
        # The expected next change. A point new to the window, with a past of 0, is not sure.
        sure = within | (change * (change / self.past) <= self.options.finish**2 * limit)
        self.past = change
        return torch.where(sure.int().cumprod(0).sum(0) >= left, left, good.clamp(max=self.W).minimum(left))

    def advance_window(
        self,
        row: Tensor,
        part: slice,
        here: tuple[Tensor, Tensor, Tensor],
        z: Tensor | None,
        old: Tensor | None = None,
    ) -> Window:
        f, slope = self.f[part], None
        if self.slopes is not None:
            f, slope = self.slopes(f, part)
        return advance_window(self.rows, row[part], *here, f, None if z is None else z[part], slope, old)

    def evaluate(self, row: Tensor, part: slice) -> None:
        """Call the network at the points of some slots before the end, and keep the derivatives as f."""
        slots = (row[part] < self.N).nonzero()
        slot, column = slots.unbind(1)
        rows, x = row[part][slot, column], self.x[:-1][part][slot, column]
        out = self.calls(rows, self.who[column], x)
        f = self.rows.fixed(rows, x, out)
        if self.slopes is not None:
            self.slopes.learn(part, slot, column, x, f - self.f[part][slot, column])
        self.f[part][slot, column] = f

    def onward(self, reach: int, s: Tensor, y: Tensor, d: Tensor) -> tuple[Tensor, Window]:
        """f of the first `reach` calls past the window, and the recurrence over them, from the window's end."""
        row = (self.at + torch.arange(self.W, self.W + reach, device=y.device)[:, None]).clamp(max=self.N)
        f = self.warm.next(row, self.row[-1], self.f[-1], self.who)
        d = d[len(d) - self.ex.tableau.history + 1 :]
        return f, advance_window(self.rows, row, s[-1], y[-1], d, f, self.noise(row, self.who))

    def run_out(self, s: Tensor, y: Tensor, d: Tensor, stride: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s, y and the strides that take all samples to the end, converged or not."""
        left = self.N - self.at
        self.converged[self.who.cpu()] = (stride >= left).cpu()
        reach = int(left.max()) - self.W
        if reach > 0:
            _, (more_s, more_y, *_) = self.onward(reach, s, y, d)
            s, y = torch.cat([s, more_s[1:]]), torch.cat([y, more_y[1:]])
        return s, y, left

    def slide(self, s: Tensor, y: Tensor, d: Tensor, stride: Tensor, rounds: int) -> None:
        """Move each window on, to points that are good, and guess the points that enter it."""
        W, K = self.W, self.ex.tableau.history
        if self.points is not None:
            slot, column = (torch.arange(len(y) - 1, device=y.device)[:, None] < stride).nonzero().unbind(1)
            self.points[self.at[column] + slot + 1, self.who[column]] = y[slot + 1, column]
        finished = self.at + stride >= self.N
        if finished.any():
            ended, last = self.who[finished], stride[None]
            self.end_s[ended], self.end_y[ended] = (
                gather_slots(s, last)[0][finished],
                gather_slots(y, last)[0][finished],
            )
            self.each[ended.cpu()] = rounds
        on = (~finished).nonzero()[:, 0]
        if len(on) == 0:
            self.at, self.who = self.at[on], self.who[on]
            return
        guess = y
        if self.mixer is not None:
            guess = self.mixer((y - self.x)[1:], y[1:], self.rows.variance[self.row])
            guess = torch.cat([y[:1], guess])
        f, (_, beyond, *_) = self.onward(int(stride.max()), s, y, d)
        beyond = y[-1:].expand_as(beyond[1:]) if self.options.warm == "copy" else beyond[1:]
        keep = stride + torch.arange(W + 1, device=y.device)[:, None]
        self.f = gather_slots(torch.cat([self.f, f]), keep[:-1])[:, on]
        if self.slopes is not None:
            self.slopes.slide(keep[:-1], on)
        self.x = gather_slots(torch.cat([guess, beyond]), keep)[:, on]
        self.s, self.y = gather_slots(s, keep[:1])[0, on], gather_slots(y, keep[:1])[0, on]
        self.x[0] = self.y
        self.d = gather_slots(d, stride + torch.arange(K - 1, device=y.device)[:, None])[:, on]
        if self.mixer is not None:
            self.mixer.slide(keep[:-1], on)  # points 1 .. W are the mixer's slots
        self.past = shifted(self.past[..., None], keep[:-1])[..., 0][:, on]
        self.at, self.who = (self.at + stride)[on], self.who[on]


class _Noise:
    """The noise of the rows in any sample's window: drawn once for the whole batch, dropped when all have passed."""

    def __init__(self, ex: Executor, noisy: list[bool]) -> None:
        self.ex, self.noisy = ex, noisy
        self.first = 0
        self.drawn: list[Tensor] = []

    def __call__(self, row: Tensor, who: Tensor) -> Tensor | None:
        """(L, B, n): the noise of the calls `row` (L, B) of the samples `who`; None if there is none at all."""
        if not any(self.noisy):
            return None
        for i in range(self.first + len(self.drawn), int(row.max()) + 1):
            y = self.ex.y
            z = self.ex.noise(i + 1, y) if self.noisy[i] else torch.zeros_like(y)
            self.drawn.append(flat(z))
        return torch.stack(self.drawn)[row - self.first, who]

    def drop(self, before: int) -> None:
        """Forget the rows before this one."""
        if self.drawn:
            del self.drawn[: before - self.first]
            self.first = before
