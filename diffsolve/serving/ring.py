"""The memory of running requests of one sample shape, and the network's batch that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.kernels import Turn, update_requests
from diffsolve.kernels.requests import on_device
from diffsolve.models import Model
from diffsolve.models.buffers import note, reuses, same_memory
from diffsolve.models.conditions import told
from diffsolve.serving.capture import Captures
from diffsolve.serving.conditions import stacked
from diffsolve.serving.request import FIXED, Request

__all__ = ["Ring"]


@dataclass(frozen=True)
class Part:
    """Rows of a batch that go through the network together: their conditions are of one kind."""

    rows: slice
    cond: Mapping[str, Any]

    @cached_property
    def told(self) -> Mapping[str, Any]:
        """The conditions as the network gets them."""
        plain: Mapping[str, Any] = told(self.cond)
        return plain


@dataclass(frozen=True)
class Batch:
    """Who takes part in a tick, and where the network's outputs for each are."""

    requests: tuple[Request, ...]
    guided: tuple[bool, ...]
    members: tuple[Request, ...]
    """Of each row of the network's batch."""
    parts: tuple[Part, ...]
    places: tuple[tuple[int, int], ...]
    """For each request, the row of its output and of the unconditional one, or -1."""

    @classmethod
    def of(cls, requests: Sequence[Request], guided: Sequence[bool]) -> Batch:
        """The batch of these requests: unguided and guided rows together, as far as their conditions allow."""
        rows: dict[Any, list[tuple[int, bool]]] = {}
        for i, (request, pair) in enumerate(zip(requests, guided, strict=True)):
            for with_ in (True, False) if pair else (True,):
                rows.setdefault(request.kinds[with_], []).append((i, with_))
        members, parts = list[Request](), []
        places = [[-1, -1] for _ in requests]
        for group in rows.values():
            first = len(members)
            for i, with_ in group:
                places[i][0 if with_ else 1] = len(members)
                members.append(requests[i])
            conds = stacked([requests[i].condition(with_) for i, with_ in group])
            parts.append(Part(slice(first, len(members)), conds))
        return cls(tuple(requests), tuple(guided), tuple(members), tuple(parts), tuple((out, un) for out, un in places))


@dataclass(frozen=True)
class Seen:
    """The last call of each request, from which previews are made: states, outputs and turns."""

    y: Tensor
    outputs: Tensor
    turns: Mapping[Request, Turn]


class Ring:
    """The states of at most `slots` requests, each in FIXED + `history` rows of one tensor.

    Attributes:
        memory: (rows, *shape).
        running: the requests in it, in the order in which they came.
    """

    def __init__(self, shape: Sequence[int], slots: int, history: int, like: Tensor, graph: bool) -> None:
        self.width = FIXED + history
        self.memory = torch.zeros(slots * self.width, *shape, dtype=like.dtype, device=like.device)
        self._captures = Captures(self.memory, history) if graph else None
        self.free = list(range(slots))[::-1]
        self.running: list[Request] = []
        self.seen: Seen | None = None
        self._batch: Batch | None = None

    def admit(self, requests: Sequence[Request]) -> None:
        """Let requests begin: their first rows call nothing."""
        turns = [request.begin(self.free.pop() * self.width, self.memory) for request in requests]
        self.running += requests
        update_requests(self.memory, None, turns)

    def leave(self, request: Request) -> None:
        """Free the rows of a request."""
        self.running.remove(request)
        self.free.append(request.base // self.width)

    @property
    def active(self) -> list[Request]:
        """The requests with calls to make; others only wait for word of their last output."""
        return [request for request in self.running if not request.over]

    def advance(self, model: Model) -> Tensor:
        """One network call over all that are active, and the update. Returns (n,): the sum of each row's output."""
        batch = self._composed()
        y, times, scales = self._asked(batch)
        captured = self._captured(model, batch, y, times, scales)
        outputs = _blurred(batch, y, self._outputs(model, batch, y, times, scales)) if captured is None else None
        turns = {r: r.turn(*where) for r, where in zip(batch.requests, batch.places, strict=True)}
        if captured is not None:
            outputs = captured(list(turns.values()))
        else:
            update_requests(self.memory, outputs, list(turns.values()))
        assert outputs is not None
        if self.seen is not None and same_memory(self.seen.outputs, outputs):
            note(model.net)
        self.seen = Seen(y, outputs.clone() if reuses(model.net) else outputs, turns)
        return outputs.flatten(1).sum(1, dtype=torch.promote_types(outputs.dtype, torch.float32))

    def _captured(
        self, model: Model, batch: Batch, y: Tensor, times: Tensor, scales: Tensor | None
    ) -> Callable[[Sequence[Turn]], Tensor] | None:
        """The recorded tick of a batch: of one part, without rescaled guidance, and of runs that blur nothing."""
        rescaled = any(
            pair and r.problem.guidance.rescale for r, pair in zip(batch.requests, batch.guided, strict=True)
        )
        blurs = any(r.program.blur is not None for r in batch.requests)
        if self._captures is None or len(batch.parts) > 1 or rescaled or blurs:
            return None
        return self._captures(model, batch.requests[0].kinds[True], batch.parts[0].cond, y, times, scales)

    def _asked(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the batch's rows: the states, the network's times, and the factors on its input, if there are any."""
        members, memory = batch.members, self.memory
        y = memory.index_select(0, on_device(np.array([r.y for r in members]), memory.device))
        times = on_device(np.stack([r.times[r.call] for r in members]), memory.device)
        if not members[0].program.scaled:
            return y, times, None
        scales = on_device(np.array([r.rows[r.call].scale for r in members]), memory.device)
        return y, times, scales.to(y.dtype).view(-1, *[1] * (y.dim() - 1))

    def _outputs(self, model: Model, batch: Batch, y: Tensor, times: Tensor, scales: Tensor | None) -> Tensor:
        """The network's outputs, a call for each part; of several, each is copied before the next call."""
        x = y if scales is None else y * scales
        if model.dtype is not None:
            x = x.to(model.dtype)
        if len(batch.parts) == 1:
            return model.call(x, times, batch.parts[0].told)
        outputs = None
        for part in batch.parts:
            out = model.call(x[part.rows], times[part.rows], part.told)
            outputs = torch.empty(y.shape, dtype=out.dtype, device=y.device) if outputs is None else outputs
            outputs[part.rows].copy_(out)
        assert outputs is not None
        return outputs

    def _composed(self) -> Batch:
        """The batch of all that are active: that of the last tick, if nothing has changed."""
        requests = tuple(self.active)
        guided = tuple(r.guided[r.call] for r in requests)
        if self._batch is None or (self._batch.requests, self._batch.guided) != (requests, guided):
            self._batch = Batch.of(requests, guided)
        return self._batch

    @property
    def calls(self) -> dict[Request, list[int]]:
        """The rows of the last call's outputs that are of each request."""
        batch = self._batch
        assert batch is not None
        return {r: [row for row in rows if row >= 0] for r, rows in zip(batch.requests, batch.places, strict=True)}


def _blurred(batch: Batch, y: Tensor, outputs: Tensor) -> Tensor:
    """The outputs at y as the requests' tableaux blur them; of a guided one both, which is what their pair becomes."""
    for request, places in zip(batch.requests, batch.places, strict=True):
        if request.program.blur is not None:
            rows = [place for place in places if place >= 0]
            outputs = outputs.to(y.dtype)  # the network's may be of less
            blurred = request.program.blur(request.call, y[rows], outputs[rows])
            outputs = outputs.index_copy(0, torch.tensor(rows, device=y.device), blurred)
    return outputs
