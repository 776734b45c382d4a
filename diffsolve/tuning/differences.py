"""Adam on differences of whole runs: for losses of whole sets, of runs that draw noise, with few parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.tuning.adam import Adam
from diffsolve.tuning.task import Task

__all__ = ["Differences"]

STEP = 0.02
"""By which a parameter, of order 1, is moved: far above rounding, and the noise is the same on both sides."""


class Differences(Adam):
    """Each derivative is of two runs of the batch, from the same noises with the same noise on the way."""

    def check(self) -> None:
        """Nothing: the network needs no derivative."""

    def gradients(self, index: Tensor, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        found = self.loss(index)
        slopes = []
        for p in parameters:
            values, slope = p.data.view(-1), torch.zeros_like(p).view(-1)
            for place in range(len(values)):
                kept, ends = float(values[place]), []
                for side in (STEP, -STEP):
                    values[place] = kept + side
                    ends.append(float(self.loss(index)))
                values[place] = kept
                slope[place] = (ends[0] - ends[1]) / (2 * STEP)
            slopes.append(slope.view_as(p))
        return found, slopes

    def loss(self, index: Tensor) -> Tensor:
        """That of the present run on these noises."""
        task: Task = self.task
        return task.loss(task.run(self.student.tableau(), index), task.ends[index.to(task.ends.device)]).mean()
