"""Runs of what stands beside the drivers: Langevin, learned tableaux, hosts, noise by itself."""

# ruff: noqa: B023 (each run is made before the loop that names it goes on)

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

import diffsolve as ds
from digested.models import (
    Runs,
    conv,
    mixture,
    normal,
    of_chain,
    toy,
)


def langevin_runs() -> Runs:
    for name, options in {
        "step": {"step": 0.2},
        "snr": {"snr": 0.1},
        "later": {"step": 0.2, "first": 5, "index": 3},
        "accepted": {"step": 0.8, "log_density": lambda x: -x.square().sum(1) / 2},
        "per sample": {"step": 0.2, "seed": [4, 5, 6, 7, 8, 2**64 - 1]},
    }.items():
        for path, t in (("edm", 0.5), ("vp", 0.3)):
            yield (
                f"langevin/{name}, {path}",
                lambda: of_chain(
                    ds.langevin(mixture(path, "noise"), normal(6, 2), t, **{"steps": 6, "seed": 0, **options})
                ),
            )
    for name, options in {
        "levels": {"levels": 5, "steps": 4, "step": 0.2},
        "times": {"levels": [0.9, 0.5, 0.1], "steps": 3, "denoise": False},
    }.items():
        yield (
            f"langevin/annealed, {name}",
            lambda: of_chain(ds.annealed_langevin(mixture("vp", "v"), (6, 2), seed=0, **options)),
        )


def tune_runs() -> Runs:
    small: dict[str, Any] = {"nfe": 4, "teacher": 12, "iterations": 8, "batch": 8, "seed": 0}
    for name, options in {
        "auto": {},
        "weights alone": {"times": False, "solver": "dpmpp-2m"},
        "short history": {"history": 2, "solver": "unipc-2"},
        "checkpoint": {"gradient": "checkpoint", "solver": "ab-2"},
        "float64": {"dtype": torch.float64, "solver": "euler"},
        "taught by a table": {"teacher": ds.plan("condot", "rk4", steps=3), "solver": "euler", "iterations": 3},
    }.items():
        yield f"tune/{name}", lambda: ds.tune(mixture(), (24, 2), **{**small, **options})
    yield (
        "tune/guided",
        lambda: ds.tune(
            toy(), (24, 6), **{**small, "cond": {"label": torch.arange(24) % 5}, "guidance": 2.0, "solver": "ab-2"}
        ),
    )


def diffusers_runs() -> Runs:
    """A pipeline's loop around our scheduler."""
    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for solver in ("ddim", "dpmpp-2m", "heun", "unipc-3", "auto", "ddim(eta=1)", "sa-2"):
        yield f"diffusers/ddim, {solver}", partial(piped, "DDIMScheduler", {**scaled, "clip_sample": False}, solver)
    yield "diffusers/clipped", partial(piped, "DDIMScheduler", scaled, "dpmpp-2m")
    thresholds = {**scaled, "thresholding": True, "sample_max_value": 1.5}
    yield "diffusers/thresholds", partial(piped, "DPMSolverMultistepScheduler", thresholds, "dpmpp-2m")
    yield (
        "diffusers/v",
        partial(piped, "DPMSolverMultistepScheduler", {**scaled, "prediction_type": "v_prediction"}, "deis-3"),
    )
    yield (
        "diffusers/karras",
        partial(piped, "DPMSolverMultistepScheduler", {**scaled, "use_karras_sigmas": True}, "dpmpp-3m"),
    )
    yield "diffusers/flow", partial(piped, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "dpmpp-2m")
    yield "diffusers/edm", partial(piped, "EDMEulerScheduler", {}, "heun", start=80.0)
    yield "diffusers/own grid", partial(piped, "DDPMScheduler", {"clip_sample": False}, "unipc-2", grid="angle")
    yield (
        "diffusers/generator",
        partial(piped, "DDPMScheduler", {"clip_sample": False}, "ddim(eta=1)", seed=None, generator=True),
    )
    yield "diffusers/from part-way", partial(piped, "DDIMScheduler", {"clip_sample": False}, "dpmpp-2m", begin=2)
    yield "diffusers/edited", partial(piped, "DDIMScheduler", {"clip_sample": False}, "dpmpp-2m", edit=0.5)
    yield (
        "diffusers/half precision",
        partial(piped, "DDIMScheduler", {"clip_sample": False}, "unipc-3", dtype=torch.bfloat16),
    )


def piped(
    kind: str,
    config: Mapping[str, Any],
    solver: str,
    *,
    grid: str | None = None,
    seed: int | None = 0,
    start: float = 1.0,
    begin: int = 0,
    edit: float = 0.0,
    generator: bool = False,
    dtype: torch.dtype = torch.float32,
) -> list[Any]:
    import diffusers

    from diffsolve.integrations.diffusers import Scheduler

    scheduler = Scheduler(getattr(diffusers, kind)(**config), solver, grid=grid, seed=seed)
    scheduler.set_timesteps(5)
    if begin:
        scheduler.set_begin_index(begin)
    net, x = conv(dtype=dtype).net, normal(3, 1, 8, 8, scale=start, dtype=dtype)
    found = [scheduler.timesteps, scheduler.init_noise_sigma, scheduler.add_noise(x, x * 0.5, scheduler.timesteps[1:2])]
    more = {"generator": torch.Generator().manual_seed(3)} if generator else {}
    with torch.no_grad():
        for t in scheduler.timesteps[begin:]:
            out = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
            x = scheduler.step(out, t, x, return_dict=False, **more)[0]
            x = x * (1 - edit) + 0.1 if edit else x
            found.append(x)
    return found


def noise_runs() -> Runs:
    """The noise itself."""
    shapes: dict[str, tuple[int, ...]] = {
        "flat": (7,), "short": (5, 3), "image": (3, 3, 7, 5), "none": (0, 4), "large": (3, 70001), "many": (20000, 3)
    }  # fmt: skip
    for name, shape in shapes.items():
        yield f"noise/{name}", lambda: [ds.Key(11).normal(shape, row=row) for row in (0, 1, 2**32 - 1)]
    keys = {
        "index": ds.Key(2**40 + 3, 12345),
        "seeds": ds.Key([1, 2**64 - 1, 0, 9, 9, 2**33]),
        "antithetic": ds.Key(5, 3, antithetic=True),
        "shared": ds.Key(5, 3, shared=True),
        "both": ds.Key(5, antithetic=True, shared=True),
    }
    for name, key in keys.items():
        yield f"noise/{name}", lambda: [key.normal((6, 5), row=row) for row in (0, 4)]
        yield f"brownian path/{name}", lambda: queried(ds.Brownian((6, 5), key))
    for name in ("float64", "bfloat16", "float16"):
        dtype = getattr(torch, name)
        yield f"noise/{name}", lambda: ds.Key(1).normal((6, 5), dtype=dtype)
        yield f"brownian path/{name}", lambda: queried(ds.Brownian((6, 5), 3, dtype=dtype))
    yield "noise/into", lambda: ds.Key(1).normal((6, 5), out=torch.empty(5, 6).T)
    for depth in (0, 24):
        yield f"brownian path/depth {depth}", lambda: queried(ds.Brownian((4, 3), 3, depth=depth))
    yield "brownian path/from 1", lambda: queried(ds.Brownian((4, 3), 3, index=7, t0=1.0), 1.0)
    yield "brownian path/many times", lambda: ds.Brownian((3, 2, 2), 5)(np.linspace(0, 3, 500))
    yield (
        "brownian path/wide range",
        lambda: [
            ds.Brownian((4, 3), 3).normal_between(1e-30, 1e20),
            ds.Brownian((4, 3), 3)([1e-9, 1e-3, 1.0, 1e6], [2e-9, 2.0, 1.5, 3e6]),
        ],
    )


def queried(w: ds.Brownian, t0: float = 0.0) -> list[Any]:
    found = [w(t0 + 0.5), w(t0 + 0.25, t0 + 0.5), w(t0 + 3.7), w(t0 + 0.1, t0 + 0.1000001)]
    found += [w([t0 + 0.7, t0 + 0.1, t0 + 5.0], [t0 + 0.9, t0 + 0.05, t0 + 4.0])]
    return [*found, w.normal_between(t0 + 0.3, t0 + 0.31), w.normal_between([t0 + 2.0, t0 + 1.0], [t0 + 2.5, t0 + 0.5])]
