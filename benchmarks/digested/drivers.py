"""Runs by every driver but the sequential one: parallel, differentiable, adaptive, with densities."""

# ruff: noqa: B023 (each run is made before the loop that names it goes on)

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import diffsolve as ds
from diffsolve import reversible
from digested.models import (
    PATHS,
    Runs,
    adaptive,
    digits,
    in_parallel,
    mixture,
    normal,
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
