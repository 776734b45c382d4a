"""Training of a student from data to a file of weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from diffsolve import training
from diffsolve.common.checks import required
from diffsolve.models import Model

__all__ = ["fit"]


def fit(
    loss: Callable[..., Any], student: Model, data: Any, out: str | os.PathLike[str], **options: Any
) -> dict[str, Any]:
    """Train a student and write its averaged weights: `ds.training.fit` with this loss, with everything that it does.

        loss = ds.distill.consistency(teacher)
        ds.distill.fit(loss, student, images, "student.safetensors", steps=5_000)

    Where a loss wants a slow copy of the student for its target, that is the running average of `ema`. An interrupted
    run goes on with the same bits.

    Args:
        loss: of `ds.distill`.
        student: of `ds.adapt`, whose network is a module.
        data: as of `ds.training.fit`; or states of `ds.distill.runs` for `trajectory`.
        out: the safetensors file.
        options: of `ds.training.fit`, but `objective`.

    Returns:
        The report of `ds.training.fit`, whose errors are those here too.
    """
    required(callable(loss), "loss", loss, "a loss of ds.distill", TypeError)
    required("objective" not in options, "objective", options.get("objective"), "left out: the loss is it", TypeError)
    return training.fit(student, data, out, objective=loss, **options)
