"""Ticks as CUDA graphs: the network and the update, recorded once for a number of rows, then replayed in one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.execute.graph import Capture, Recorder, record_cuda
from diffsolve.kernels import Turn
from diffsolve.kernels.requests import idle_table, launch_table, on_device, table_of
from diffsolve.models import Model, Shared
from diffsolve.models.conditions import leaves, mapped

__all__ = ["Captures", "recorder"]


def recorder(device: torch.device) -> Recorder:
    """What records work on a device.

    Raises:
        ValueError: if it is no CUDA device.
    """
    required(device.type == "cuda", "device", device, "a CUDA device with graph=True")
    return record_cuda


class Captures:
    """The recorded ticks of a ring: one for each power of two of rows, and each kind of conditions.

    What changes from tick to tick is copied into the recorded memory: states, times, conditions, and the table that
    says which rows of the ring are updated how. Rows beyond those that are asked for repeat the first one, and their
    outputs are not used.

    Args:
        memory: the ring's, which the recorded update reads and writes.
        history: the most past predictions of a request.
    """

    def __init__(self, memory: Tensor, history: int) -> None:
        self.memory, self.history, self._record = memory, max(history, 1), recorder(memory.device)
        self._made: dict[Hashable, Capture] = {}

    def __call__(
        self, model: Model, kind: Hashable, cond: Mapping[str, Any], y: Tensor, times: Tensor, scales: Tensor | None
    ) -> Callable[[Sequence[Turn]], Tensor]:
        """The recorded tick for these rows: from turns to the outputs. It is recorded here if there is none."""
        rows = len(y)
        size = 1 << (rows - 1).bit_length()
        idle = on_device(idle_table(size, self.history), self.memory.device)
        inputs: dict[Hashable, Any] = {"y": _padded(y, size), "times": _padded(times, size), "table": idle}
        if scales is not None:
            inputs["scales"] = _padded(scales, size)
        for i, leaf in enumerate(leaves(cond)):
            inputs[i] = leaf if isinstance(leaf, Shared) else _padded(leaf, size)

        def work(given: Mapping[Hashable, Any]) -> Tensor:
            x = given["y"] if scales is None else given["y"] * given["scales"]
            parts = iter([given[i] for i in range(len(given)) if i in given])

            def told(_: Any) -> Any:
                part = next(parts)
                return part.value if isinstance(part, Shared) else part

            out = model.call(x if model.dtype is None else x.to(model.dtype), given["times"], mapped(cond, told))
            launch_table(self.memory, out, given["table"], None)
            return out

        key = size, kind, y.dtype
        if key not in self._made:  # recording runs the work: on a table that moves nothing
            self._made[key] = Capture(work, inputs, self._record)
        captured = self._made[key]

        def tick(turns: Sequence[Turn]) -> Tensor:
            table = idle_table(size, self.history)
            table[: len(turns)] = table_of(turns, self.history)
            return captured({**inputs, "table": on_device(table, self.memory.device)})[:rows]

        return tick


def _padded(x: Tensor, size: int) -> Tensor:
    """x with its first row repeated up to `size` rows."""
    return x if len(x) == size else torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])
