"""Many threads, one network: a diffusers pipeline whose calls from several threads share batches."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import integer, required
from diffsolve.models.conditions import leaves, mapped
from diffsolve.serving.conditions import kind_of

__all__ = ["Gathered", "ThreadSafe"]


class _Call:
    """One thread's call, and what comes of it."""

    def __init__(self, given: tuple[tuple[Any, ...], Mapping[str, Any]]) -> None:
        (args, kwargs), self.rows = given, len(given[0][0])
        # A number that belongs to all rows, such as a time, is one for each: others may have another.
        self.given = mapped((tuple(args), dict(kwargs)), lambda x: x.expand(self.rows) if x.dim() == 0 else x)
        self.kind = kind_of(mapped(self.given, lambda x: x[0] if len(x) == self.rows else x))
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False


class Gathered:
    """A function of batches, called from many threads: whoever finds it free makes the calls of all who wait.

    No thread waits for others to come: while one batch runs the next one gathers. Calls go together if their arguments
    agree in all but the number of rows. Every tensor has one entry for each row, or is a number.

    Args:
        function: called with the first argument a tensor of rows; returns tensors of as many rows, in any structure.
        most: rows in one call.
    """

    def __init__(self, function: Any, most: int = 64) -> None:
        self.function, self.most = function, integer("most", most, 1)
        self._waiting: list[_Call] = []
        self._queue, self._turn = threading.Lock(), threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        required(bool(args) and isinstance(args[0], Tensor), "the first argument", args[:1], "a tensor", TypeError)
        call = _Call((args, kwargs))
        with self._queue:
            self._waiting.append(call)
        with self._turn:
            if not call.done:
                self._run(self._taken(call))
        if call.error is not None:
            raise call.error
        return call.result

    def _taken(self, call: _Call) -> list[_Call]:
        """This call, and of those that wait as many of its kind as fit."""
        with self._queue:
            lot, rows = [call], call.rows
            for other in self._waiting:
                if other is not call and other.kind == call.kind and rows + other.rows <= self.most:
                    lot.append(other)
                    rows += other.rows
            self._waiting = [other for other in self._waiting if other not in lot]
        return lot

    def _run(self, lot: list[_Call]) -> None:
        try:
            args, kwargs = _joined([call.given for call in lot])
            out = self.function(*args, **kwargs)
            first = 0
            for call in lot:
                rows = slice(first, first + call.rows)
                call.result = _each(out, rows)
                first += call.rows
        except BaseException as error:  # every thread gets it
            for call in lot:
                call.error = error
        finally:
            for call in lot:
                call.done = True


class ThreadSafe:
    """A diffusers pipeline that many threads may call at once: `ThreadSafe(pipe)(prompt, ..)`.

    Each thread has a pipeline of its own, with a scheduler of its own, over the same networks; calls of the denoising
    network, whose module is `unet` or `transformer`, share batches (`Gathered`).

    Args:
        pipe: the pipeline; its network's `forward` is replaced until `close`.
        most: rows in one network call.

    Raises:
        ValueError: if the pipeline has neither a unet nor a transformer.
    """

    def __init__(self, pipe: Any, most: int = 64) -> None:
        names = [name for name in ("unet", "transformer") if isinstance(getattr(pipe, name, None), nn.Module)]
        required(bool(names), "pipe", pipe, "a pipeline with a unet or a transformer")
        self.pipe, self.network = pipe, getattr(pipe, names[0])
        self.network.forward = Gathered(self.network.forward, most)
        self._local = threading.local()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline, from any thread."""
        if not hasattr(self._local, "pipe"):
            parts = {**self.pipe.components, "scheduler": copy.deepcopy(self.pipe.scheduler)}
            self._local.pipe = type(self.pipe)(**parts)
            if hasattr(self._local.pipe, "set_progress_bar_config"):
                self._local.pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            return self._local.pipe(*args, **kwargs)

    def close(self) -> None:
        """Give the network its own `forward` back."""
        del self.network.forward


def _joined(parts: Sequence[Any]) -> Any:
    """Arguments of one kind, each tensor along its first axis."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, Mapping):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(part) for part in zip(*parts, strict=True))
    return first


def _each(out: Any, rows: slice) -> Any:
    """The rows of an output: a tensor, or tensors in tuples, lists and mappings, which keep their type."""
    if isinstance(out, Mapping):
        return type(out)(**{name: _each(part, rows) for name, part in out.items()})
    return mapped(out, lambda x: x[rows]) if any(True for _ in leaves(out)) else out
