"""A request: a run whose state is a few rows of a memory that it shares with others."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.result import Status
from diffsolve.execute import Program, network_times
from diffsolve.execute.results import DenoisedEstimate, seed_of
from diffsolve.execute.start import Problem
from diffsolve.kernels import Row, Turn
from diffsolve.noise import Draw, Stream
from diffsolve.serving.conditions import kind_of
from diffsolve.serving.ticket import Served, Ticket

__all__ = ["FIXED", "Request"]

FIXED = 3
"""Rows of a request without its history: the state, the network's input and one to write to."""


class Request:
    """A run between submission and end.

    Args:
        problem: of one sample, with a first axis of 1.
        program: its rows, bound to the network.
        deadline: a time of the Stepper's clock; infinite for none.
    """

    def __init__(
        self, ticket: Ticket, problem: Problem, program: Program, like: Tensor, priority: float, deadline: float
    ) -> None:
        self.ticket, self.problem, self.program = ticket, problem, program
        self.rank = (-priority, deadline, ticket.number)
        self.deadline = deadline
        tableau, model, guidance = program.tableau, problem.model, problem.guidance
        self.rows: tuple[Row, ...] = program.rows_on(like, together=True)
        self.times: np.ndarray = network_times(model, tableau, torch.empty(0, dtype=like.dtype)).numpy()
        guidance.check_pair("a Stepper")
        fits = program.blur is None or not guidance.rescale
        required(fits, "solver", tableau.solver, "one that blurs nothing, where guidance is rescaled")
        self.scales = guidance.schedule(tableau)
        self.guided = self.scales != 1
        self.kinds: dict[bool, Hashable] = {True: kind_of(problem.cond), False: kind_of(guidance.uncond)}
        self.call = 0
        self.base = self.s = self.y = -1
        self.free: tuple[int, ...] = ()
        self.history: list[int] = []

    @property
    def width(self) -> int:
        """The rows that it takes in a network call: two where it is guided."""
        return 1 + any(self.guided)

    @property
    def over(self) -> bool:
        """Whether every call has been made."""
        return self.call == self.program.tableau.nfe

    def condition(self, with_: bool) -> Mapping[str, Any]:
        """The network's arguments with or without the condition."""
        return self.problem.cond if with_ else self.problem.guidance.uncond

    def begin(self, base: int, memory: Tensor) -> Turn:
        """Put the initial state into the memory, from row `base` on; the turn that makes the first input of it."""
        x = self.problem.state(float(self.program.tableau.times[0]))
        memory[base].copy_(x[0])
        self.base = self.s = self.y = base
        self.free = (base + 1, base + 2)
        return self._turn(-1, -1)

    def turn(self, out: int, uncond: int) -> Turn:
        """The turn after a call, whose outputs stand in these rows; `uncond` is -1 for an unguided one."""
        self.call += 1
        self.ticket.call = self.call
        depth = self.program.depth
        if depth:  # the newest goes where the oldest stood
            full = len(self.history) == depth
            slot = self.history.pop() if full else self.base + FIXED + len(self.history)
            self.history.insert(0, slot)
        return self._turn(out, uncond)

    def _turn(self, out: int, uncond: int) -> Turn:
        row, guidance = self.rows[self.call], self.problem.guidance
        turn = Turn(
            row,
            self.s,
            self.y,
            self.free,
            tuple(self.history),
            out,
            (uncond, float(self.scales[self.call - 1]), guidance.rescale) if uncond >= 0 else None,
            Draw(self.problem.key, self.call, Stream.ROW) if row.noise else None,
        )
        self.s, self.y, self.free = turn.after
        return turn

    @cached_property
    def estimate(self) -> DenoisedEstimate:
        """The denoised estimate of each call."""
        return DenoisedEstimate(self.problem.model, self.program.tableau, needed=False)

    def end(self, status: Status, memory: Tensor | None) -> None:
        """Hand the result over to the ticket."""
        x = None if memory is None else memory[self.y].clone()
        seed = seed_of(self.problem.seed, self.problem.key)
        self.ticket.served = Served(x, self.call, seed, (status,))


NEVER = math.inf
"""The deadline of a request that has none."""
