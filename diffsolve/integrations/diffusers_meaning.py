"""What the networks are that a diffusers scheduler is made for: path, prediction and clock; and which are refused."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice, required
from diffsolve.models.model import Clock
from diffsolve.paths import EDM, CondOT, Custom, Discrete, Path, Rectified
from diffsolve.solvers.aliases import PURPOSES

__all__ = ["Counted", "class_of", "meaning", "table"]

PREDICTIONS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v", "flow_prediction": "velocity"}

REFUSED = {
    **{name: f"which is for {purpose}" for name, purpose in PURPOSES.items()},
    "CosineDPMSolverMultistepScheduler": "whose networks of v have EDM's scalings: ds.adapt(net, 'edm', 'denoised')",
    "DDPMWuerstchenScheduler": "of which the path is ds.paths.Cosine: ds.adapt(net, 'cosine', 'noise')",
    "IPNDMScheduler": "whose networks are told an angle, not a row of its betas",
    "KarrasVeScheduler": "of which the path is 'edm': ds.adapt(net, 'edm', 'denoised')",
    "MiniMaxH3Scheduler": "of which the path is 'condot': ds.adapt(net, 'condot', 'velocity')",
    "ScoreSdeVeScheduler": "of which the path is 've': ds.adapt(net, 've', 'score')",
    "UnCLIPScheduler": "whose pipelines tell it where each step ends",
}
"""Schedulers that `Scheduler` cannot stand in for, and why, or what to give `ds.adapt` in their place."""


@dataclass(frozen=True)
class Counted:
    """The clock `count` t of a flow's network, in the schedulers that do not count to 1000."""

    count: float

    def __call__(self, t: Tensor) -> Tensor:
        return t * self.count


def meaning(scheduler: Any) -> tuple[Path, str, str | Clock]:
    """(path, prediction, clock) of the networks that a scheduler is made for.

    Raises:
        ValueError: if the scheduler has no table of betas and is neither a flow's nor EDM's, no other method can stand
            in for its own, or its prediction type is not supported.
    """
    kind = type(scheduler).__name__
    names = [base.__name__ for base in type(scheduler).__mro__]
    why = next((REFUSED[name] for name in names if name in REFUSED), None)
    if why is not None:
        raise ValueError(
            f"scheduler must be one with betas, of a flow or of EDM that any solver can replace, got {kind}, {why}"
        )
    config = scheduler.config
    required(not config.get("scale_factors"), f"scale_factors of {kind}", config.get("scale_factors"), "None")
    prediction = choice(f"prediction_type of {kind}", config.get("prediction_type", "epsilon"), PREDICTIONS)
    predicts = PREDICTIONS[prediction]
    flow = any(name.startswith(("FlowMatch", "LTXEulerAncestral")) for name in names)
    if flow or config.get("use_flow_sigmas") or predicts == "velocity":
        count = config.get("num_train_timesteps", 1000)
        clock = "1000t" if count == 1000 else Counted(count)
        # Mochi's sigmas rise: what it calls sigma is the weight of the data.
        return (CondOT() if config.get("invert_sigmas") else Rectified()), "velocity", clock
    if any(name.startswith("EDM") for name in names):
        if predicts != "noise":
            raise ValueError(f"prediction_type must be 'epsilon' of a scheduler {kind}, got {config.prediction_type!r}")
        return EDM(config.sigma_min, config.sigma_max), "edm", "c_noise"
    if config.get("timestep_type") == "continuous":
        # x = cos(a) x_0 + sin(a) eps and the clock c_noise, as in video models.
        last = math.atan(config.sigma_min or 0.002)
        return Custom(torch.cos, torch.sin, math.atan(config.sigma_max or 700.0), 0.0, last), predicts, "c_noise"
    path = table(scheduler)
    if path is None:
        raise ValueError(
            f"scheduler must be one with betas, of a flow or of EDM, got {kind}; give ds.adapt the network with its "
            "path and prediction"
        )
    return path, predicts, "t"


def table(scheduler: Any) -> Discrete | None:
    """The path of a scheduler's table; None if it has none.

    The products of `betas` are more exact than `alphas_cumprod` in float32, and are used where they are the same.

    Raises:
        ValueError: if the table does not fall.
    """
    betas, products = getattr(scheduler, "betas", None), getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(betas, Tensor) and not isinstance(products, Tensor):
        return None
    if isinstance(betas, Tensor):
        betas = betas.cpu().double()
    if isinstance(products, Tensor):
        products = products.cpu().double()
        if betas is None or not torch.allclose((1 - betas).cumprod(0), products, rtol=1e-4, atol=1e-6):
            falls = bool((products.diff() < 0).all()) and 0 < float(products[0]) < 1 and float(products[-1]) >= 0
            required(falls, "alphas_cumprod", products.tolist()[:4], "falling, between 1 and 0")
            betas = 1 - products / torch.cat([products.new_ones(1), products[:-1]])
    assert betas is not None
    return Discrete(betas)


def class_of(config: Mapping[str, Any]) -> Any:
    """The class of a scheduler's configuration that does not say, as one that was never saved: by its options.

    None if no scheduler of diffusers has just these.
    """
    import diffusers
    from diffusers import schedulers

    options = {name for name in config if not name.startswith("_")}
    for name in sorted(dir(schedulers), key=len):  # DDIMScheduler before DDIMParallelScheduler
        found = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if isinstance(found, type) and options == {*inspect.signature(found).parameters} - {"kwargs"}:
            return found
    return None
