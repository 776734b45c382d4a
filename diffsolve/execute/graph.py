"""A whole run as one CUDA graph: recorded once, then replayed by a single launch.

The kernels of a run, the network's among them, are recorded with the memory they work on; a replay issues all of them
at once and costs the host nothing in between. What changes from run to run is copied into that memory first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

__all__ = ["Capture", "replay"]

Inputs = Mapping[Hashable, Any]
"""What a run starts from: the tensors among them are copied into the recorded memory, the rest is part of the key."""
Work = Callable[[Inputs], Tensor]
"""inputs -> result, by operations on their device alone; nothing waits for it."""
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]
"""Runs the work, and gives its result and what repeats it on the same memory."""

KEPT = 4
"""Captures kept per network; each holds the memory of a whole run."""


class Capture:
    """A recorded run with the memory for its inputs."""

    def __init__(self, work: Work, inputs: Inputs, record: Recorder) -> None:
        own = {name: v.clone() if isinstance(v, Tensor) else v for name, v in inputs.items()}
        self._result, self._again = record(lambda: work(own))
        self._tensors = {name: v for name, v in own.items() if isinstance(v, Tensor)}

    def __call__(self, inputs: Inputs) -> Tensor:
        """The result for other tensors in the same places; it has memory of its own."""
        for name, tensor in self._tensors.items():
            tensor.copy_(inputs[name])
        self._again()
        return self._result.clone()


_captures: WeakKeyDictionary[Any, dict[Hashable, Capture]] = WeakKeyDictionary()


def replay(net: object, work: Work, inputs: Inputs, about: Hashable, record: Recorder | None = None) -> Tensor:
    """work(inputs), from a capture of it; recorded first where there is none.

    Args:
        net: the network, which the captures are kept with; they are dropped when it is.
        about: what else the recorded operations depend on. A capture serves the same `about`, the same shapes, dtypes
            and strides, and the same values of inputs that are not tensors.

    Raises:
        ValueError: on a device that has no CUDA graphs.
    """
    if record is None:
        where = next(v.device for v in inputs.values() if isinstance(v, Tensor))
        if where.type != "cuda":
            raise ValueError(f"graph=True on {where}; accepted: a CUDA device")
        record = _record
    key = (about, tuple((name, _look(value)) for name, value in inputs.items()))
    captures = _captures.setdefault(net, {})
    if key not in captures:
        while len(captures) >= KEPT:
            del captures[next(iter(captures))]
        captures[key] = Capture(work, inputs, record)
    return captures[key](inputs)


def _look(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
    return repr(value)


def _record(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
    """Two runs: one beside the graph, in which kernels are compiled and tables copied, and the recorded one."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay
