"""Models of the flow_matching package: velocities u(x, t, **extras) with t = 0 noise and t = 1 data."""

from __future__ import annotations

from typing import Any

from diffsolve.models import Model, adapt

__all__ = ["wrapped"]


def wrapped(model: Any) -> Model:
    """A flow_matching `ModelWrapper` as a Model, for the conditional optimal-transport path.

    A wrapper does not know its path. For a model trained on another (`CosineScheduler`, ..) give it: `ds.adapt(wrapper,
    path=ds.paths.Custom(alpha, sigma, t_noise=0.0, t_data=1.0), predicts="velocity")`.
    """
    return adapt(model, "condot", "velocity")
