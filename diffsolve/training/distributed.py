"""A training on several ranks of `torch.distributed`, or on one."""

from __future__ import annotations

from torch import Tensor

__all__ = ["sharded_as", "whole"]


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
