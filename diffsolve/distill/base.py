"""What every loss of a student is: a function of a batch, pure but for the networks' own dropout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.models import Model
from diffsolve.noise import Stream
from diffsolve.training.update import Update

__all__ = ["Loss", "Parts", "uniforms"]


class Parts(NamedTuple):
    """What a loss was made of."""

    t: Tensor
    """(B,): where each stretch begins, on the path's clock, float64."""
    m: Tensor
    s: Tensor
    x: Tensor
    """(B, ...): the samples at t."""
    output: Tensor
    target: Tensor
    """(B, ...): the student's output, and what it should have been."""
    error: Tensor
    """(B,): the mean square of their difference in the measure of the loss, before metric and weight."""


class Loss(ABC):
    """A loss of `ds.distill`.

    Everything random depends on (seed, step, index + i) alone, as in `ds.training.objective`, but for the dropout of
    the networks, which is the same in the student and its target.
    """

    has_target: ClassVar[bool] = False
    """Whether a slow copy of the student may stand for it in what is not differentiated."""
    averaged: bool = False
    """Whether `fit` gives its running average as that copy."""

    def __call__(
        self,
        student: Model,
        x0: Tensor,
        *,
        cond: Mapping[str, Any] | None = None,
        seed: int,
        step: int,
        index: int = 0,
        noise: Tensor | None = None,
        target: Model | None = None,
    ) -> tuple[Tensor, Any]:
        """The loss of each sample of a batch, with a graph back to the student's parameters.

        Args:
            student: of `ds.adapt`, with jumps= for a network told two times.
            x0: (B, ...), data, floating; what else it may be, the loss says.
            cond: of both networks; tensors whose first axis is B have a row per sample.
            seed: any integer, of the whole training.
            step: the number of the update, in [0, 2**32).
            index: of the first sample.
            noise: (B, ...), in place of drawn normals.
            target: a slow copy of the student for what is not differentiated; the student itself if None.

        Returns:
            (B,), float32 or wider; and the `Parts`.

        Raises:
            ValueError: if an argument is out of range, the teacher's path is another, or a network does not determine
                what it is asked for at a time that is drawn.
            TypeError: if x0 is not floating, or the student is no Model.
        """
        update = Update.of(student, x0, cond, seed, step, index, noise, name="student")
        required(target is None or self.has_target, "target", target, f"left out for {type(self).__name__}", TypeError)
        return self.of(student, update, target or student)

    @abstractmethod
    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Any]:
        """The loss of an update that was checked."""


def uniforms(update: Update) -> Any:
    """(B, 4) uniform numbers of an update, as an array, of which the first are spread evenly over the batch."""
    u = update.uniform(Stream.TRAIN_TIME, 4)
    return torch.cat([update.even(Stream.DISTILL)[:, None], u[:, 1:]], 1).numpy()
