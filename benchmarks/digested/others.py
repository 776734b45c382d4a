"""Runs in every other way: parallel, differentiable, adaptive, with densities, Langevin, tuned, in hosts; noise."""

# ruff: noqa: B023 (each run is made before the loop that names it goes on)

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import diffsolve as ds
from diffsolve import reversible
from digested.models import (
    PATHS,
    Runs,
    adaptive,
    conv,
    digits,
    in_parallel,
    mixture,
    normal,
    of_chain,
    of_density,
    parameters,
    pulled,
    toy,
)


def parallel_runs() -> Runs:
    """Picard windows and Parareal."""
    ways: dict[str, ds.Picard | ds.Parareal] = {
        "picard": ds.Picard(),
        "picard, window 4": ds.Picard(window=4),
        "picard, window 1": ds.Picard(window=1),
        "picard, tol 0": ds.Picard(window=6, tol=0.0),
        "picard, plain": ds.Picard(accelerate=None, warm="copy", finish=0.0),
        "picard, Anderson": ds.Picard(accelerate=ds.Anderson()),
        "picard, Anderson, window 5": ds.Picard(window=5, accelerate=ds.Anderson(memory=3, ridge=1e-2)),
        "picard, Anderson, four rounds": ds.Picard(accelerate=ds.Anderson(), max_rounds=4, tol=1e-4),
        "picard, three rounds": ds.Picard(max_rounds=3),
        "picard, two rounds of a part": ds.Picard(window=5, max_rounds=2),
        "picard, workers": ds.Picard(window=8, workers=3, max_batch=5),
        "picard, noise frame": ds.Picard(frame="noise", atol=1e-3),
        "parareal": ds.Parareal(),
        "parareal, three blocks": ds.Parareal(blocks=3, tol=0.01),
        "parareal, coarse": ds.Parareal(coarse="ddim", max_batch=3),
        "parareal, coarse heun": ds.Parareal(blocks=4, coarse="heun", frame="trig"),
    }
    solvers = ("dpmpp-2m", "ddim(eta=1)", "unipc-3")
    for name, way in ways.items():
        turn = zlib.crc32(name.encode())
        for solver in (solvers[turn % 3], solvers[(turn + 1) % 3]):
            yield (
                f"parallel/{name}, {solver}",
                lambda: in_parallel(mixture("vp", "noise"), solver=solver, steps=12, parallel=way),
            )
    for name, accelerate in {"secant": "secant", "Anderson": ds.Anderson()}.items():
        yield (
            f"parallel/small, {name}",  # for Triton's interpreter, which takes its time
            lambda: in_parallel(
                mixture("vp", "noise"), (2, 2), solver="sa-2", steps=5,
                parallel=ds.Picard(window=3, accelerate=accelerate, max_rounds=4),
            ),
        )  # fmt: skip
    yield (
        "parallel/picard, warm table",
        lambda: in_parallel(
            mixture("vp", "noise"), solver="ddim", steps=16,
            parallel=ds.Picard(warm=ds.plan("vp", "dpmpp-2m", steps=5)),
        ),
    )  # fmt: skip
    label = torch.arange(5)
    guidance = ds.Guidance(3.0, {"label": torch.zeros(5, dtype=torch.int64)}, interval=(0.2, 5.0), rescale=0.3)
    both: dict[str, ds.Picard | ds.Parareal] = {"picard": ds.Picard(window=6), "parareal": ds.Parareal(blocks=3)}
    for name, way in both.items():
        for solver in ("heun", "sa-2"):
            yield (
                f"parallel/{name}, guided, {solver}",
                lambda: in_parallel(
                    toy("vp", "noise"), (5, 6), solver=solver, steps=8, cond={"label": label, "shift": normal(5, 6)},
                    guidance=guidance, parallel=way,
                ),
            )  # fmt: skip
            for kept in (True, "calls"):
                yield (
                    f"parallel/{name}, trajectory {kept}, {solver}",
                    lambda: in_parallel(mixture("edm", "edm"), solver=solver, steps=8, parallel=way, trajectory=kept),
                )
        yield (
            f"parallel/{name}, digits",
            lambda: in_parallel(digits(), (2, 1, 8, 8), solver="dpmpp-2m", steps=8, parallel=way),
        )
        yield (
            f"parallel/{name}, bf16",
            lambda: in_parallel(
                toy("edm", "edm", dtype=torch.bfloat16), (4, 6), solver="dpmpp-2m", steps=8, parallel=way
            ),
        )
        yield (
            f"parallel/{name}, float64",
            lambda: in_parallel(mixture(), solver="rk4", steps=4, parallel=way, dtype=torch.float64),
        )
        yield (
            f"parallel/{name}, encode",
            lambda: ds.encode(mixture(), normal(4, 2), solver="ab-2", steps=8, parallel=way),
        )


def gradient_runs() -> Runs:
    """Gradients by the noise, the conditions and the parameters."""
    cases = {
        "direct": ("rk4", "unipc-3", "heun", "dpmpp-2m", "ddim(eta=1)", "edm-heun", "reversible-heun"),
        "checkpoint": ("rk4", "unipc-3", "dpmpp-2m", "sa-2"),
        "adjoint": ("rk4", "ab-3", "heun(frame='trig')", "reversible-heun"),
    }
    for gradient, solvers in cases.items():
        for solver in solvers:
            yield f"gradient/{gradient}, {solver}", partial(gradients, gradient, solver=solver, steps=6)
        yield (
            f"gradient/{gradient}, guided",
            partial(
                gradients, gradient, solver="rk4", steps=4,
                guidance=ds.Guidance(2.0, {"label": torch.zeros(5, dtype=torch.int64)}, rescale=0.3),
            ),
        )  # fmt: skip
        yield (
            f"gradient/{gradient}, adaptive",
            partial(gradients, gradient, solver=ds.Adaptive("dopri5", rtol=1e-3, atol=1e-3)),
        )
        yield f"gradient/{gradient}, encode", partial(encoded_gradients, gradient, solver="rk4", steps=4)
        yield (
            f"gradient/{gradient}, encode, adaptive",
            partial(encoded_gradients, gradient, solver=ds.Adaptive("bosh3", rtol=1e-3, atol=1e-3)),
        )
        yield f"gradient/{gradient}, mixture", partial(mixture_gradients, gradient)
    yield (
        "gradient/checkpoint, adaptive on a path to sigma 0",
        partial(gradients, "checkpoint", "edm", "denoised", solver=ds.Adaptive("tsit5", rtol=1e-3, atol=1e-3)),
    )
    yield "gradient/trajectory, adaptive", trajectory_gradients


def gradients(gradient: str, path: str = "condot", predicts: str = "velocity", **options: Any) -> list[Any]:
    model = toy(path, predicts)
    noise = normal(5, 6).requires_grad_()
    shift = normal(5, 6, seed=8, scale=0.1).requires_grad_()
    cond = {"label": torch.arange(5), "shift": shift}
    run = ds.solve(model, noise=noise, gradient=gradient, seed=0, cond=cond, **options)
    return [run.nfe, *pulled(run.x, noise, shift, *parameters(model))]


def encoded_gradients(gradient: str, **options: Any) -> list[Any]:
    model, x = toy(), normal(5, 6).requires_grad_()
    return pulled(ds.encode(model, x, gradient=gradient, **options), x, *parameters(model))


def mixture_gradients(gradient: str) -> list[Any]:
    noise = normal(4, 2).requires_grad_()
    return pulled(ds.sample(mixture(), noise=noise, solver="rk4", steps=6, gradient=gradient), noise)


def trajectory_gradients() -> list[Any]:
    model, noise = toy(), normal(5, 6).requires_grad_()
    run = ds.solve(
        model, noise=noise, solver=ds.Adaptive(rtol=1e-3, atol=1e-3), grid=[0.0, 0.3, 0.8, 1.0], trajectory=True,
        gradient="direct",
    )  # fmt: skip
    assert run.trajectory is not None
    return pulled(run.trajectory, noise, *parameters(model))


def adaptive_runs() -> Runs:
    """Steps chosen per sample."""
    pairs = (("edm", "denoised"), ("condot", "velocity"), ("vp", "v"), ("subvp", "noise"))
    for method, pair in zip(("bosh3", "dopri5", "tsit5", "dopri8"), pairs, strict=True):
        solver = ds.Adaptive(method, rtol=1e-2, atol=1e-2)
        yield f"adaptive/{method}", lambda: adaptive(mixture(*pair), (4, 2), solver=solver)
        yield (
            f"adaptive/{method}, trajectory",
            lambda: adaptive(
                mixture("edm", "denoised"), (4, 2), solver=solver, grid=[80.0, 5.0, 1.0, 0.1, 0.0], trajectory=True
            ),
        )
        yield (
            f"adaptive/{method}, float64",
            lambda: adaptive(mixture("cosine", "denoised"), (2, 2), solver=solver, dtype=torch.float64),
        )
    for frame in ("straight", "lambda", "noise", "denoised", "native"):
        yield (
            f"adaptive/frame {frame}",
            lambda: adaptive(mixture("vp", "denoised"), solver=ds.Adaptive(rtol=1e-2, atol=1e-2, frame=frame)),
        )
    some: dict[str, dict[str, Any]] = {
        "steps": {"first_step": 0.01, "max_step": 0.2},
        "controller": {"pid": (0.1, 0.7, 0.05)},
        "budget": {"max_nfe": 30, "rtol": 1e-6, "atol": 1e-6},
    }
    for name, options in some.items():
        yield (
            f"adaptive/{name}",
            lambda: adaptive(
                mixture("vp", "noise"), solver=ds.Adaptive("dopri5", **{"rtol": 1e-3, "atol": 1e-3, **options})
            ),
        )
    rough = ds.Adaptive(rtol=1e-2, atol=1e-2)
    yield (
        "adaptive/start and stop",
        lambda: adaptive(mixture("edm", "noise"), None, noise=normal(6, 2), start=3.0, stop=0.1, solver=rough),
    )
    label = torch.arange(5)
    yield (
        "adaptive/guided",
        lambda: adaptive(toy("vp", "noise"), (5, 6), solver=rough, cond={"label": label}, guidance=3.0),
    )
    yield "adaptive/bf16", lambda: adaptive(toy("edm", "edm", dtype=torch.bfloat16), (5, 6), solver=rough)
    yield (
        "adaptive/not finite",
        lambda: adaptive(
            ds.adapt(lambda x, t: torch.where(t[:, None] > 0.5, math.nan, -x), "condot", "velocity"), solver=rough
        ),
    )
    yield "adaptive/digits", lambda: adaptive(digits(), (2, 1, 8, 8), solver=rough)
    for tau, pair in zip((0.5, 1.0, 1.3, 1.0), pairs, strict=True):
        yield (
            f"adaptive sde/tau {tau}, {pair[0]}",
            lambda: adaptive(mixture(*pair), (3, 2), solver=ds.AdaptiveSDE(tau=tau, rtol=0.1)),
        )
    sde = ds.AdaptiveSDE(rtol=0.2, atol=0.05)
    yield (
        "adaptive sde/key",
        lambda: adaptive(mixture("vp", "noise"), (4, 2), solver=sde, seed=ds.Key(2, index=4, antithetic=True)),
    )
    yield (
        "adaptive sde/guided",
        lambda: adaptive(toy("vp", "noise"), (5, 6), solver=sde, cond={"label": label}, guidance=2.0),
    )
    yield (
        "adaptive sde/brownian",
        lambda: adaptive(mixture("edm", "denoised"), (3, 2), solver=sde, brownian=ds.Brownian((3, 2), seed=1)),
    )
    yield (
        "adaptive sde/start",
        lambda: adaptive(
            mixture("edm", "denoised"), None, noise=normal(3, 2, scale=3.0), start=3.0, stop=0.2, solver=sde
        ),
    )


def density_runs() -> Runs:
    """Encoding and log-densities."""
    for path in PATHS:
        yield f"encode/{path}", lambda: ds.encode(mixture(path, "v"), normal(6, 2), solver="rk4", steps=5)
        yield f"reversible/{path}", partial(round_trip, path)
    yield "encode/auto", lambda: ds.encode(mixture("edm", "denoised"), normal(6, 2), nfe=12)
    yield "encode/ddim", lambda: ds.encode(mixture("edm", "denoised"), normal(6, 2), solver="ddim", steps=5)
    yield "encode/unipc-3", lambda: ds.encode(mixture("vp", "v"), normal(6, 2), solver="unipc-3", nfe=9, grid="angle")
    yield (
        "encode/adaptive",
        lambda: ds.encode(mixture("edm", "noise"), normal(6, 2), solver=ds.Adaptive(rtol=1e-3, atol=1e-3)),
    )
    yield "encode/digits", lambda: ds.encode(digits(), normal(2, 1, 8, 8), solver="heun", steps=4, guidance=2.0)

    rough = ds.Adaptive("dopri5", rtol=3e-2, atol=3e-2)
    for path, predicts in (("edm", "denoised"), ("condot", "velocity"), ("vp", "noise"), ("ddpm", "v")):
        yield f"log_prob/adaptive, {path}", lambda: density(toy(path, predicts), normal(3, 6), solver=rough)
        for solver in ("heun", "dpmpp-2m", "unipc-3"):
            yield (
                f"log_prob/{solver}, {path}",
                lambda: density(mixture(path, predicts), normal(3, 2), solver=solver, steps=4, grid="angle"),
            )
    traces = (
        "exact", "exact(chunk=5)", "hutchinson(probes=4)", "hutchinson(probes=4, kind='gaussian')",
        "hutchinson(probes=4, kind='sphere')", "hutch++(probes=9)", "deflated(probes=8)",
    )  # fmt: skip
    for trace in traces:
        for name, how in {"rk4": {"solver": "rk4", "steps": 3}, "adaptive": {"solver": rough}}.items():
            yield (
                f"log_prob/{trace}, {name}",
                lambda: density(
                    toy(numbers=12), normal(3, 12), trace=trace, seed=2, index=5, cond={"label": torch.arange(3)}, **how
                ),
            )
    yield (
        "log_prob/digits",
        lambda: density(digits(), normal(2, 1, 8, 8), solver="heun", steps=2, trace="hutchinson(probes=2)"),
    )
    yield (
        "log_prob/adaptive, frame lambda",
        lambda: density(
            toy("vp", "noise"), normal(3, 6), solver=ds.Adaptive("bosh3", rtol=3e-2, atol=3e-2, frame="lambda")
        ),
    )
    yield "log_prob/mixture", lambda: density(mixture("edm", "denoised"), normal(2, 2), solver=rough)
    yield "log_prob/stop", lambda: density(toy("vp", "denoised"), normal(3, 6), solver=rough, stop=0.05)
    yield (
        "log_prob/float64, guided",
        lambda: density(
            toy(numbers=3, dtype=torch.float64), normal(4, 3, dtype=torch.float64), solver=rough,
            cond={"label": torch.arange(4)}, guidance=2.0,
        ),
    )  # fmt: skip
    for name, how in {
        "rk4": {"solver": "rk4", "steps": 4},
        "dpmpp-2m": {"solver": "dpmpp-2m", "nfe": 6},
        "adaptive": {"solver": rough},
        "tableau": {"solver": ds.plan("edm", "heun", steps=4)},
    }.items():
        yield f"log_prob/model, {name}", partial(with_density, how)
    for name, how in {"rk4": {"solver": "rk4", "steps": 3}, "adaptive": {"solver": rough}}.items():
        for trace in ("exact", "hutchinson(probes=3)", "deflated(probes=5)"):
            yield f"log_prob/gradient, {trace}, {name}", partial(density_gradients, trace, how)
    for kind in ("uniform", "truncated-normal"):
        yield f"bits_per_dim/{kind}", partial(bits, kind)


def round_trip(path: str) -> list[Any]:
    model, x = mixture(path, "v"), normal(6, 2, dtype=torch.float64)
    pair = reversible.encode(model, x, steps=8)
    return [*pair, reversible.decode(model, pair, steps=8)]


def density(model: Any, x: Tensor, **options: Any) -> list[Any]:
    return of_density(ds.log_prob(model, x, **options))


def with_density(how: Mapping[str, Any]) -> list[Any]:
    run = ds.solve(mixture("edm", "denoised"), (4, 2), seed=0, log_prob="model", **how)
    return [run.x, of_density(run.log_prob)]


def density_gradients(trace: str, how: Mapping[str, Any]) -> list[Any]:
    model, x = toy(), normal(3, 6).requires_grad_()
    return pulled(ds.log_prob(model, x, trace=trace, gradient=True, **how).value, x, *parameters(model))


def bits(kind: str) -> list[Any]:
    n = torch.randint(0, 256, (4, 2), generator=torch.Generator().manual_seed(5))
    how = {"samples": 2, "seed": 3, "solver": "heun", "steps": 3}
    found = ds.bits_per_dim(mixture("vp", "noise"), n, data_range=(-5.0, 5.0), dequantisation=kind, **how)
    return [found.value, found.stderr, found.nfe, found.jvps, found.mean]


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
