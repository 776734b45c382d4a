"""The options of `ds.tune`, what they may be, and what a checkpoint must have of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from diffsolve.common.checks import choice, integer, number, required
from diffsolve.common.files import in_folder
from diffsolve.common.fingerprint import describe, weights_of
from diffsolve.execute.plan import GridLike
from diffsolve.execute.start import Problem
from diffsolve.kernels.combine import LIMIT
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tuning.distributions import Distribution
from diffsolve.tuning.losses import Distance, Loss
from diffsolve.tuning.student import COLUMNS

__all__ = ["DEFAULTS", "LONGEST", "METHODS", "SAME_ENDS", "OneOptions", "TuneOptions", "about", "checked"]

LONGEST = LIMIT - 1
"""The longest history: with the state, the inputs of one linear combination."""
TIMED = ("gits", "ays", "dpm-v3")
"""The methods that measure something and learn nothing: times by dynamic programming, or weights by statistics."""
METHODS = ("least-squares", "adam", "differences", *TIMED)
ITERATIONS = {"least-squares": 40, "adam": 300, "differences": 40, **dict.fromkeys(TIMED, 1)}
BATCH = {**dict.fromkeys(METHODS, 256), "adam": 64}
RATE = {"differences": 0.1}
SAME_ENDS = ("ends", "network", "noise", "shape", "cond", "teacher", "guidance")
"""Of the settings, those that the ends of the teacher's runs depend on."""


class OneOptions(TypedDict, total=False):
    """The options of `ds.tune` but for nfe, documented in `fit`."""

    noise: Tensor | None
    solver: str | Solver | Tableau | None
    grid: GridLike | None
    start: float | None
    stop: float | None
    teacher: int | Tableau | Tensor
    history: int | None
    times: bool
    also: str | Sequence[str]
    together: int
    loss: Loss | None
    ball: float
    method: Literal["least-squares", "adam", "differences", "gits", "ays", "dpm-v3"] | None
    iterations: int | None
    batch: int | None
    lr: float | None
    held_out: float
    cond: Mapping[str, Any] | None
    guidance: float | Guidance | None
    gradient: Literal["direct", "checkpoint"]
    seed: int | Key | torch.Generator | None
    checkpoint: str | os.PathLike[str] | None
    cache: str | os.PathLike[str] | None
    out: str | os.PathLike[str] | None
    force: bool
    progress: bool
    dtype: torch.dtype | None
    device: str | torch.device | None


class TuneOptions(OneOptions, total=False):
    """The options of `ds.tune`."""

    nfe: int | Sequence[int] | None


DEFAULTS: dict[str, Any] = {
    "teacher": 100,
    "times": True,
    "also": (),
    "together": 1,
    "ball": 0.0,
    "held_out": 0.25,
    "gradient": "direct",
    "force": False,
    "progress": False,
}
"""Of the options whose default is not None."""


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
        ValueError: if one is out of range, or is not of the method.
    """
    settings: dict[str, Any] = {**dict.fromkeys(TuneOptions.__annotations__), **DEFAULTS, **options}
    distance = settings["loss"] is None or isinstance(settings["loss"], Distance)
    ball = number("ball", settings["ball"], low=0)
    default = "least-squares" if distance and settings["lr"] is None and not ball else "adam"
    if isinstance(settings["loss"], Distribution):
        default = "differences"
    method = settings["method"] = choice("method", settings["method"] or default, METHODS)
    if method == "least-squares":
        required(distance, "loss", settings["loss"], "a tuning.Distance with method='least-squares'")
        required(settings["lr"] is None, "lr", settings["lr"], "left out with method='least-squares'")
    nodes = distance and settings["loss"] is not None and settings["loss"].nodes
    if nodes:
        required(method == "least-squares", "loss", settings["loss"], f"one without nodes with method={method!r}")
        run = not isinstance(settings["teacher"], Tensor)
        required(run, "teacher", settings["teacher"], "a run, with a loss that has nodes")
    if settings["nfe"] is not None and isinstance(settings["nfe"], Sequence | np.ndarray):
        budgets = sorted({integer("nfe", nfe, 2) for nfe in settings["nfe"]})
        required(bool(budgets), "nfe", settings["nfe"], "at least one budget")
        settings["nfe"] = budgets
    if method in TIMED:
        own = "solver" if method == "dpm-v3" else "grid"
        for name in ("iterations", "history", "lr", "checkpoint", own, "start", "stop"):
            required(settings[name] is None, name, settings[name], f"left out with method={method!r}")
        required(settings["nfe"] is not None, "nfe", None, f"given with method={method!r}")
        required(
            not isinstance(settings["teacher"], Tensor), "teacher", settings["teacher"], f"a run with method={method!r}"
        )
        for nfe in np.ravel(settings["nfe"]).tolist() if method == "dpm-v3" else ():
            integer("nfe", nfe, 2, LONGEST)
    for name, usual in (("iterations", ITERATIONS[method]), ("batch", BATCH[method])):
        settings[name] = integer(name, usual if settings[name] is None else settings[name], 1)
    required(not ball or method == "adam", "ball", ball, "0 but with method='adam'")
    if method in (*TIMED, "differences"):
        for name in ("also", "together"):
            required(settings[name] == DEFAULTS[name], name, settings[name], f"left out with method={method!r}")
    if method == "differences":
        required(settings["history"] is None, "history", settings["history"], "left out with method='differences'")
    also = settings["also"]
    settings["also"] = tuple(choice("also", name, COLUMNS) for name in ([also] if isinstance(also, str) else also))
    together = integer("together", settings["together"], 1, LONGEST - 1)
    if settings["history"] is not None:
        integer("history", settings["history"], max(2, together + 1), LONGEST)
    settings["lr"] = RATE.get(method, 0.02) if settings["lr"] is None else number("lr", settings["lr"], above=0)
    number("held_out", settings["held_out"], above=0, below=1)
    choice("gradient", settings["gradient"], ("direct", "checkpoint"))
    if settings["out"] is not None:
        in_folder(settings["out"], "out")
    if settings["seed"] is None and settings["checkpoint"] is not None:
        file = os.fspath(settings["checkpoint"])
        raise ValueError(f"seed must be given with checkpoint={file!r}, to go on from it, got None")
    return settings


def about(problem: Problem, noise: Tensor, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint must have, as JSON values."""
    guidance, solver, loss = problem.guidance, settings["solver"], settings["loss"]
    newer = [guidance.newer] if guidance.newer else []
    more = {name: settings[name] for name in ("also", "together", "ball") if settings[name] != DEFAULTS[name]}
    return {
        "solver": solver.to_json() if isinstance(solver, Tableau) else None if solver is None else str(solver),
        "nfe": settings["nfe"],
        "ends": [describe(settings[name]) for name in ("grid", "start", "stop")],
        "network": weights_of(problem.model.net),
        "noise": _digest(noise),
        "shape": list(noise.shape),
        "cond": describe(problem.cond),
        "teacher": _digest(settings["teacher"]),
        "seed": problem.key.seed,
        "features": describe(loss.features) if isinstance(loss, Distance) else None,
        **({"loss": describe(loss)} if isinstance(loss, Distribution) else {}),
        **({"nodes": loss.nodes} if isinstance(loss, Distance) and loss.nodes else {}),
        **{name: settings[name] for name in ("method", "history", "times", "iterations", "batch", "lr", "held_out")},
        "guidance": describe([guidance.scale, *guidance.interval, guidance.rescale, guidance.uncond, *newer]),
        **describe(more),
    }


def _digest(value: int | Tableau | Tensor) -> int | str:
    """What identifies a teacher or a noise in a checkpoint."""
    if isinstance(value, Tensor):
        kind = f"{value.dtype} {tuple(value.shape)}".encode()
        return sha256(kind + value.detach().cpu().double().numpy().tobytes()).hexdigest()
    return value.to_json() if isinstance(value, Tableau) else value
