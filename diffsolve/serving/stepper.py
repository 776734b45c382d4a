"""`Stepper`: many requests, one network call after another.

A request is a list of rows, so a batch of requests at different steps, of different solvers, grids, guidance and seeds
is a batch of rows. A tick calls the network once on the rows of all that run, and updates each by its own weights.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import exactly_one, instance, integer, number, required
from diffsolve.common.result import Status
from diffsolve.execute import bind
from diffsolve.execute.options import ModelLike
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike
from diffsolve.execute.start import Problem, planned
from diffsolve.kernels import Guided
from diffsolve.models import Guidance, as_model
from diffsolve.models.hints import hints, warn_training
from diffsolve.noise import SeedLike
from diffsolve.noise.key import sizes_of
from diffsolve.serving.capture import recorder
from diffsolve.serving.request import NEVER, Request
from diffsolve.serving.ring import Ring
from diffsolve.serving.ticket import Served, Ticket
from diffsolve.serving.watch import Watch
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["Stepper"]


class Stepper:
    """Runs requests of any kind together; each gets the bits that it gets alone.

        stepper = ds.Stepper(model, max_batch=32)
        ticket = stepper.submit(shape=(3, 32, 32), solver="dpmpp-2m", nfe=20, seed=0)
        while not stepper.done:
            stepper.tick()
        stepper.result(ticket).x

    That holds for a network whose outputs for a sample do not depend on the rest of its batch. `submit`, `cancel` and
    what reads a ticket may be called from any thread; `tick` from one at a time.

    Args:
        model: as in `ds.solve`.
        max_batch: the most rows of a network call. A guided request takes two of them.
        max_history: the most past predictions that a request may keep (K of its tableau); the memory has
            3 + max_history states for each of max_batch requests.
        dtype, device: of the states; by default the model's.
        graph: replay ticks as CUDA graphs, recorded for each power of two of rows and each kind of conditions. The
            network must support recording. Ticks with rows of several kinds, or rescaled guidance, run as without.
        clock: seconds, for deadlines.

    Raises:
        ValueError: if max_batch or max_history is out of range, or the device is not CUDA with graph=True.
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        max_batch: int = 32,
        max_history: int = 4,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        graph: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = as_model(model)
        warn_training(self.model.net)
        self.max_batch = integer("max_batch", max_batch, 1)
        self.max_history = integer("max_history", max_history, 0)
        self._clock = clock
        dtype = self.model.state_dtype if dtype is None else dtype
        self._like = torch.empty(0, dtype=dtype, device=self.model.device if device is None else device)
        self._graph = instance("graph", graph, bool, "True or False")
        if graph:
            recorder(self._like.device)
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._queue: list[tuple[tuple[float, float, int], Request]] = []
        self._waiting: dict[Ticket, Request] = {}
        self._rings: dict[tuple[int, ...], Ring] = {}
        self._watch = Watch()
        self._ended: list[Ticket] = []
        self._open = 0

    def submit(
        self,
        shape: Sequence[int] | None = None,
        *,
        noise: Tensor | None = None,
        solver: str | Solver | Tableau = DEFAULT_SOLVER,
        nfe: int | None = None,
        steps: int | None = None,
        grid: GridLike | None = None,
        start: float | None = None,
        stop: float | None = None,
        seed: SeedLike | None = None,
        cond: Mapping[str, Any] | None = None,
        guidance: float | Guidance | None = None,
        priority: float = 0,
        deadline: float | None = None,
    ) -> Ticket:
        """Hand in one sample to be made; it joins the batch at the next tick at which there is room.

        Args:
            shape: (C, H, W) of the sample, whose noise is drawn from `seed`. Or
            noise: (C, H, W), the initial state, as in `ds.solve`.
            solver, nfe, steps, grid, start, stop, seed, guidance: as in `ds.solve`.
            cond: keyword arguments for the network, of this one sample: the network gets each tensor with a first axis
                of the batch. Rows whose conditions agree in the names and shapes of tensors, and in all else, share a
                call.
            priority: requests of a higher one are admitted first; of equal ones, that with the nearest deadline, then
                the oldest. None that runs is interrupted.
            deadline: seconds from now, after which the request ends with Status.DEADLINE.

        Returns:
            The ticket by which to ask for progress and result.

        Raises:
            ValueError: if an option is out of range, or the request can never run: it keeps more than `max_history`
                predictions, or takes more rows than `max_batch`.
            TypeError: if an option is of the wrong type.
        """
        exactly_one(shape=shape, noise=noise)
        given = {"solver": solver, "nfe": nfe, "steps": steps, "grid": grid, "start": start, "stop": stop}
        about = {"seed": seed, "cond": cond, "guidance": guidance, "noise": noise if noise is None else _one(noise)}
        if shape is not None:
            instance("shape", shape, Sequence, "the sizes of one sample")
            shape = (1, *sizes_of(shape)) if len(shape) else (1,)
        where = {"dtype": self._like.dtype, "device": self._like.device}
        problem = Problem.of(self.model, shape, {**given, **about, **where})
        problem.check_start()
        if noise is not None:  # which is there already: checked and converted now
            problem = replace(problem, noise=problem.state(0.0))
        assert problem.sizes is not None
        problem.key.check(list(problem.sizes))
        tableau = planned(problem, given, problem.sizes)
        program = bind(tableau, self.model)
        priority, seconds = number("priority", priority), NEVER
        if deadline is not None:
            seconds = self._clock() + number("deadline", deadline, above=0)
        ticket = Ticket(next(self._numbers), tableau.nfe)
        request = Request(ticket, problem, program, self._like, priority, seconds)
        depth = f"a solver that keeps at most max_history={self.max_history} predictions"
        required(program.depth <= self.max_history, "solver", f"{tableau.solver}, {program.depth}", depth)
        rows = f"of at most max_batch={self.max_batch} rows in a call"
        required(request.width <= self.max_batch, "the request", f"one of {request.width}", rows)
        with self._lock:
            self._open += 1
            self._waiting[ticket] = request
            heapq.heappush(self._queue, (request.rank, request))
        return ticket

    def tick(self) -> list[Ticket]:
        """Admit what there is room for, call the network once on all that run, and update them.

        The network is called once for each kind of row: samples of one shape with conditions of one structure are of
        one kind. If it raises an exception nothing has moved, and the next tick makes the same call again.

        Returns:
            The tickets of requests that have ended since the last tick.
        """
        with torch.no_grad():
            self._settle()
            self._admit()
            for ring in self._rings.values():
                if ring.active:
                    with hints(self.model, ring.running[0].problem.cond, ring.running[0].problem.guidance):
                        self._watch.add(ring.advance(self.model), ring.calls)
            self._settle()
        self._rings = {shape: ring for shape, ring in self._rings.items() if ring.running or len(self._rings) == 1}
        with self._lock:
            ended, self._ended = self._ended, []
        return ended

    def run(self) -> None:
        """Tick until all that was submitted has ended."""
        while not self.done:
            self.tick()

    @property
    def done(self) -> bool:
        """Whether all that was submitted has ended."""
        return self._open == 0

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back: it ends with Status.CANCELLED, at once if it waits, else by the next tick."""
        instance("ticket", ticket, Ticket, "a Ticket")
        with self._lock:
            ticket.cancelled = True
            waiting = self._waiting.pop(ticket, None)
            if waiting is not None:
                self._end(waiting, Status.CANCELLED, None)

    def result(self, ticket: Ticket) -> Served:
        """What came of a request.

        Raises:
            ValueError: if it has not ended yet.
        """
        instance("ticket", ticket, Ticket, "a Ticket")
        required(ticket.served is not None, "ticket", ticket, "of a request that has ended")
        assert ticket.served is not None
        return ticket.served

    def preview(self, ticket: Ticket) -> Tensor | None:
        """The denoised estimate of the last call, of the sample's shape; the result once there is one.

        It is made when it is asked for, from what the last tick left: call it between two ticks. None before the first
        call, and where the network does not determine it.
        """
        instance("ticket", ticket, Ticket, "a Ticket")
        if ticket.served is not None:
            return ticket.served.x
        for seen in [ring.seen for ring in list(self._rings.values()) if ring.seen is not None]:
            for request, turn in seen.turns.items():
                if request.ticket is ticket:
                    out = turn.output(seen.outputs)
                    out = out.tensor() if isinstance(out, Guided) else out
                    y = seen.y[turn.out : turn.out + 1]
                    denoised = request.estimate(request.call - 1, y, out).denoised
                    return None if denoised is None else denoised[0]
        return None

    def _admit(self) -> None:
        """Let requests begin in the order of their rank, as long as the next one finds room."""
        used = sum(request.width for ring in self._rings.values() for request in ring.running)
        fresh: dict[tuple[int, ...], list[Request]] = {}
        with self._lock:
            while self._queue:
                _, request = self._queue[0]
                if request.ticket in self._waiting:
                    if used + request.width > self.max_batch:
                        break
                    del self._waiting[request.ticket]
                    used += request.width
                    assert request.problem.sizes is not None
                    fresh.setdefault(tuple(request.problem.sizes[1:]), []).append(request)
                heapq.heappop(self._queue)
        for shape, requests in fresh.items():
            if shape not in self._rings:
                self._rings[shape] = Ring(shape, self.max_batch, self.max_history, self._like, self._graph)
            self._rings[shape].admit(requests)

    def _settle(self) -> None:
        """End what is over, cancelled, late, or has an output that is not finite."""
        now, failed = self._clock(), self._watch.failed()
        with self._lock:
            for request in [r for r in self._waiting.values() if r.deadline <= now]:
                del self._waiting[request.ticket]
                self._end(request, Status.DEADLINE, None)
            for ring in self._rings.values():
                for request in list(ring.running):
                    status = self._status(request, failed, now)
                    if status is not None:
                        ring.leave(request)
                        self._end(request, status, ring.memory)

    def _status(self, request: Request, failed: set[Request], now: float) -> Status | None:
        """How a running request ends now; None if it goes on."""
        if request in failed:
            return Status.NON_FINITE
        if request.over and not self._watch.awaits(request):
            return Status.DONE
        if request.ticket.cancelled:
            return Status.CANCELLED
        return Status.DEADLINE if request.deadline <= now else None

    def _end(self, request: Request, status: Status, memory: Tensor | None) -> None:
        """With the lock held."""
        request.end(status, memory)
        self._ended.append(request.ticket)
        self._open -= 1


def _one(noise: Tensor) -> Tensor:
    """The state of a sample, as that of a batch of one."""
    return instance("noise", noise, Tensor, "a floating tensor")[None]
