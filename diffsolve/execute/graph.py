"""A whole run as one CUDA graph: recorded once, then replayed by a single launch.

The kernels of a run, the network's included, are recorded with the memory they use; a replay launches all of them at
once. Inputs that change from run to run are first copied into that memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

__all__ = ["Capture", "Recorder", "record_cuda", "replay"]

Inputs = Mapping[Hashable, Any]
"""The inputs of a run: tensors are copied into the recorded memory, other values are part of the key."""
Work = Callable[[Inputs], Tensor]
"""inputs -> result, by operations on their device without synchronisation."""
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], object]]]
"""Runs the work; returns its result and a function that repeats it on the same memory."""

KEPT = 4
"""Captures kept per network; each holds the memory of one run."""


class Capture:
    """A recorded run with the memory for its inputs."""

    def __init__(self, work: Work, inputs: Inputs, record: Recorder) -> None:
        own = {name: v.clone() if isinstance(v, Tensor) else v for name, v in inputs.items()}
        self._result, self._replay = record(lambda: work(own))
        self._tensors = {name: v for name, v in own.items() if isinstance(v, Tensor)}

    def __call__(self, inputs: Inputs) -> Tensor:
        """The result for other input tensors, in new memory."""
        for name, tensor in self._tensors.items():
            tensor.copy_(inputs[name])
        self._replay()
        return self._result.clone()


_captures: WeakKeyDictionary[Any, dict[Hashable, Capture]] = WeakKeyDictionary()


def replay(net: object, work: Work, inputs: Inputs, about: Hashable, record: Recorder | None = None) -> Tensor:
    """work(inputs), replayed from a capture, which is recorded first if there is none.

    Args:
        net: the network; its captures are freed with it.
        about: what else the recorded operations depend on. A capture is used for equal `about`, equal shapes, dtypes,
            devices and strides of tensors, and equal values of other inputs.
        record: records the work; None for a CUDA graph.

    Raises:
        ValueError: if the inputs are not on a CUDA device.
    """
    if record is None:
        where = next(v.device for v in inputs.values() if isinstance(v, Tensor))
        if where.type != "cuda":
            raise ValueError(f"device must be a CUDA device with graph=True, got {where}")
        record = record_cuda
    key = (about, tuple((name, _signature(value)) for name, value in inputs.items()))
    captures = _captures.setdefault(net, {})
    if key not in captures:
        while len(captures) >= KEPT:
            del captures[next(iter(captures))]
        captures[key] = Capture(work, inputs, record)
    return captures[key](inputs)


def _signature(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
    return repr(value)


def record_cuda(work: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], object]]:
    """Run twice: once to warm up, when kernels are compiled and tables copied, and once to record."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return result, graph.replay
