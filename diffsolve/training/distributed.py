"""A training on several ranks of `torch.distributed`, or on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffsolve.common.checks import required
from diffsolve.common.fingerprint import describe

__all__ = ["World", "sharded_as", "together", "unsynchronised", "whole", "world"]

T = TypeVar("T")
TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for another one, in groups that `fit` makes."""


@dataclass(frozen=True)
class World:
    """The ranks of a training; of one process a world of size 1."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This rank's part of a batch.

        Raises:
            ValueError: if the ranks do not get equal parts.
        """
        required(batch % self.size == 0, "batch", batch, f"a multiple of the number of ranks, {self.size}")
        return slice(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)

    def mean(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The mean over all ranks, of each number, in float64.

        Raises:
            ConnectionError: if a rank is gone.
        """
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=device)
        with together():
            dist.all_reduce(total)
        return (total / self.size).tolist()

    def summed(self, tensor: Tensor, device: torch.device) -> Tensor:
        """The sum over all ranks; `device` is where the group can add.

        Raises:
            ConnectionError: if a rank is gone.
        """
        if self.size == 1:
            return tensor
        total = tensor.to(device)
        with together():
            dist.all_reduce(total)
        return total.to(tensor.device)

    def agree(self, parts: Mapping[str, Any]) -> None:
        """Check that all ranks make the same call, by what its parts are.

        Raises:
            RuntimeError: if they do not, naming what differs.
            ConnectionError: if a rank is gone.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        with together():
            dist.all_gather_object(found, describe(parts))
        names = dict.fromkeys(name for part in found for name in part)
        odd = [name for name in names if any(part.get(name) != found[0].get(name) for part in found)]
        if odd:
            raise RuntimeError(f"the ranks differ in {', '.join(odd)}; each must make the same call, got others")

    def once(self, work: Callable[[], T]) -> T | None:
        """The result of work that the first rank alone does, and None on the others; what it raises, all raise.

        Raises:
            ConnectionError: if a rank is gone.
        """
        result, raised = None, None
        if self.first:
            try:
                result = work()
            except Exception as error:
                raised = error
        raised = self.shared(raised)
        if raised is not None:
            raise raised
        return result

    def shared(self, value: T) -> T:
        """The first rank's value, on all ranks; it is pickled."""
        if self.size == 1:
            return value
        values = [value]
        with together():
            dist.broadcast_object_list(values)
        return values[0]

    def equalise(self, net: nn.Module) -> None:
        """Give every rank the first one's parameters and buffers."""
        if self.size > 1:
            with together():
                for tensor in net.state_dict().values():
                    dist.broadcast(tensor, 0)


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """The ranks of the default group; under `torchrun` the group is made, and closed at the end, if there is none."""
    if not dist.is_available():
        yield World()
        return
    made = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if made:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
    finally:
        if made:
            dist.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """Turn what the loss of a rank raises inside into one kind of error.

    Raises:
        ConnectionError: if a rank ended, or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ConnectionError(
            f"every rank must answer within the group's time limit, got none from at least one ({error}): start all "
            "ranks again, and they go on from the checkpoint"
        ) from error


def unsynchronised(net: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Around the backward pass of a part of a batch: gradients are exchanged after the last part alone."""
    sharded: Any = getattr(net, "set_requires_gradient_sync", None)  # FSDP2
    if sharded is not None:
        sharded(not more)
    no_sync: Any = getattr(net, "no_sync", nullcontext)  # DDP
    return no_sync() if more else nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU, of all shards if the tensor is sharded: then a collective call."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True)


def sharded_as(like: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, the same on every rank, in the shards of another if that has any."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
