"""The calls of a window, divided among the ranks of `torch.distributed`."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.common.fingerprint import describe, weights_of
from diffsolve.execute import Executor
from diffsolve.execute.start import Problem

__all__ = ["Ranks"]

PARTS = 32
"""The most parts that the ranks compare, one number each, and the names of them all."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that share the network calls of a run; each has the network, and each returns all samples.

    Every round is one all-gather of the network's outputs, from which each rank computes the same sweep. So all ranks
    must make the same call of `ds.sample`, with the same seed, on devices of one kind; this is checked at the start
    and in each round.

    Args:
        group: a process group; the default one of `torch.distributed.init_process_group` (gloo or nccl) if None.
        timeout: seconds to wait for the other ranks in each round. With gloo this is exact; with nccl the timeout
            of the group applies too, whichever is shorter.

    Raises:
        ValueError: if the timeout is not > 0, or torch.distributed is not initialized.
    """

    group: Any = None
    timeout: float = 60.0

    def __post_init__(self) -> None:
        number("timeout", self.timeout, above=0)
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "ds.Ranks must be made after torch.distributed.init_process_group, which has not been called"
            )

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    def gather(self, work: Callable[[], Tensor], share: int, like: Tensor) -> Tensor:
        """The rows of all ranks' work, at most `share` from each, in order; `like` (M, n) has the shape of them all.

        Raises:
            RuntimeError: if another rank failed, died, is at another point of the run, or did not answer in time.
        """
        mine = like.new_zeros(share * like.shape[1] + 2, dtype=torch.promote_types(like.dtype, torch.float32))
        failure: BaseException | None = None
        try:
            rows = work()
            mine[2 : 2 + rows.numel()] = rows.flatten()
        except Exception as error:  # tell the others, then raise
            failure, mine[0] = error, 1.0
        mine[1] = len(like) % 2**20
        parts = self._gather(mine)
        if failure is not None:
            raise failure
        for rank, part in enumerate(parts):
            if part[0]:
                raise RuntimeError(f"rank {rank} of {self.size} failed in a network call; its own error says why")
        self._agree([int(part[1]) for part in parts], "calls in a round")
        return torch.cat([part[2:] for part in parts]).view(-1, like.shape[1])[: len(like)].to(like.dtype)

    def agree(self, ex: Executor, problem: Problem, parallel: Any) -> None:
        """Check that all ranks make the same call: the same run, options of `parallel`, conditions and network.

        Raises:
            RuntimeError: if they do not, naming what differs, and as in `gather`.
        """
        parts = _parts(ex, problem, parallel)
        # Of one size on all ranks, whatever they call: tensors that differ in size would end the processes.
        mine = torch.zeros(PARTS, dtype=torch.int64)
        mine[: len(parts)] = torch.tensor([_number(value) for value in parts.values()])
        mine[-1] = _number(list(parts))
        found = torch.stack(self._gather(mine.to(ex.y.device))).cpu()
        odd = [name for i, name in enumerate(parts) if len(set(found[:, i].tolist())) > 1]
        if len(set(found[:, -1].tolist())) > 1:
            odd = ["parallel"]
        if odd:
            raise RuntimeError(
                f"the ranks differ in {', '.join(odd)}; each must make the same call, with the same network, on the "
                "same kind of device"
            )

    def _agree(self, values: list[int], what: str) -> None:
        if len(set(values)) > 1:
            raise RuntimeError(
                f"the ranks differ in {what}: {values}; each must make the same run, on the same kind of device"
            )

    def _gather(self, mine: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        try:
            work = dist.all_gather(parts, mine, group=self.group, async_op=True)
            assert work is not None
            work.wait(timedelta(seconds=self.timeout))
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size}: another rank died, or did not answer within {self.timeout:g} s"
            ) from error
        return parts


def _parts(ex: Executor, problem: Problem, parallel: Any) -> dict[str, Any]:
    """What must be the same on all ranks, by the names that an error gives."""
    model, tableau = problem.model, ex.tableau
    return {
        "shape": [*ex.y.shape, str(ex.y.dtype)],
        "seed": repr(ex.key),
        "start": weights_of(ex.start),
        "solver": [tableau.solver, tableau.calls, tableau.weights, tableau.entry, tableau.clock, tableau.unusual],
        "path": [tableau.path, model.path],
        "prediction": [ex.program.prediction, model.predicts, model.clock, model.dtype],
        "guidance": problem.guidance,
        "cond": problem.cond,
        "network": weights_of(model.net),
        "parallel": type(parallel).__name__,
        **{f.name: getattr(parallel, f.name) for f in fields(parallel) if f.name != "ranks"},
    }


def _number(value: Any) -> int:
    return zlib.crc32(repr(describe(value)).encode())
