"""Runs one call after another: solvers, paths, options, networks, guidance."""

# ruff: noqa: B023 (each run is made before the loop that names it goes on)

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffsolve as ds
from digested.models import (
    PAIRS,
    PATHS,
    Runs,
    conv,
    digits,
    mixture,
    normal,
    of_run,
    of_state,
    parameters,
    plain,
    pulled,
    solved,
    toy,
)


def solver_runs() -> Runs:
    """Every solver by name, its tables and a run; every path with every prediction."""
    for name in ds.solvers.names():
        turn = zlib.crc32(name.encode())  # of the name alone, so that a new solver does not change the others' runs
        pair = PAIRS[turn % len(PAIRS)]
        yield f"tableau/{name}", partial(tables, name, PATHS.index(pair[0]))
        yield f"solve/{name}", lambda: solved(mixture(*pair), solver=name, steps=5)
        if turn % 3 == 0:
            other = PAIRS[(turn + 17) % len(PAIRS)]
            yield f"solve64/{name}", lambda: solved(mixture(*other), solver=name, steps=5, dtype=torch.float64)
    for path, predicts in PAIRS:
        yield f"pairs/{path}-{predicts}", partial(conversions, path, predicts)


def tables(name: str, first: int) -> list[Any]:
    """Of the path in that place, and of two others."""
    return [ds.plan(PATHS[(first + more) % len(PATHS)], name, steps=5) for more in (0, 2, 5)]


def conversions(path: str, predicts: str) -> list[Any]:
    """The network's output as any other prediction, in the middle of the path, and two runs."""
    model = mixture(path, predicts)
    x, t = normal(3, 2), float(model.path.time(0.3))
    several = model.path.time([-1.0, 0.0, 1.5])
    found: list[Any] = [model.denoised(x, t), model.noise(x, t), model.score(x, several)]
    found += [model.velocity(x, several), model.predict("v", x, t)]
    sde = model.as_sde(tau=0.8)
    s = sde.span(start=t).float()[0]
    found += [model.as_ode()(torch.tensor(t), x), sde.f(s, x), sde.g(s, x)]
    for solver in ("heun(frame='trig')", "dpmpp-2m"):
        found += solved(model, (3, 2), solver=solver, steps=4)
    return found


def path_runs() -> Runs:
    """Paths and grids by themselves."""
    own = {
        "custom": lambda: ds.paths.Custom(torch.cos, torch.sin, math.pi / 2, 0.0),
        "discrete": lambda: ds.paths.Discrete(torch.linspace(1e-4, 0.05, 50)),
    }
    for name in (*ds.paths.names(), "rectified(shift=3.0)", *own):
        yield f"paths/{name}", partial(path_numbers, own.get(name, partial(ds.paths.named, name)))
    for name in ds.grids.names():
        yield f"grids/{name}", partial(grid_times, name)
    yield (
        "grids/parts",
        lambda: [
            ds.plan("edm", "euler", steps=6, grid="karras(rho=5)", start=10.0, stop=0.1),
            ds.plan("condot", "heun", nfe=9, grid="shifted(shift=2)", start=0.2),
            ds.plan("ddpm", "ddim", steps=7, grid="leading(offset=1)"),
            ds.plan("vp", "auto", nfe=12, guidance=5.0),
            ds.plan("edm", "unipc-3", grid=[80.0, 8.0, 1.5, 0.3, 0.01, 0.0]),
        ],
    )


def path_numbers(make: Callable[[], Any]) -> list[Any]:
    path = make()
    t = path.time(np.linspace(max(float(path.lam(path.t_noise)), -6.0), 6.0, 11))
    at = path.at(t)
    found = [t, path.alpha(t), path.sigma(t), path.lam(t), path.rho(t), at.dalpha, at.dsigma, path.prior_std()]
    return [*found, path.t_noise, path.t_data, path.t_last]


def grid_times(name: str) -> list[Any]:
    return [ds.plan(path, "euler", steps=7, grid=name).times for path in PATHS]


def option_runs() -> Runs:
    """Solvers with options, grids, ends, budgets, dtypes, layouts."""
    specs: dict[str, tuple[str, dict[str, Any]]] = {
        "ddim(eta=0.5)": ("vp", {"steps": 6}),
        "heun(frame='noise')": ("edm", {"steps": 6, "grid": "karras(rho=5)"}),
        "DPM++ 2M Karras": ("ddpm", {"steps": 6}),
        "dpmpp-2m(lower_final=15)": ("ddpm", {"steps": 6}),
        "sa-3(tau=0.5)": ("edm", {"nfe": 11}),
        "edm-heun(s_churn=2)": ("edm", {"steps": 6}),
        "edm-euler(inner='dpmpp-2m')": ("edm", {"steps": 6}),
        "dpmpp-2s-ancestral(eta=0.4)": ("ve", {"steps": 6}),
        "abm-4(frame='trig')": ("cosine", {"nfe": 9, "grid": "angle(scale=1.4, power=1.75)"}),
        "dpm-3s(r1=0.25, r2=0.75)": ("subvp", {"steps": 4}),
        "euler-maruyama(tau=0.7)": ("vp", {"steps": 6}),
        "reversible-heun(frame='straight')": ("rectified", {"steps": 6}),
        "abm-3(mode='pece')": ("condot", {"steps": 5}),
        "ab-2(points=(1, 2, 3, 2, 1))": ("vp", {"steps": 5}),
        "unipc-3(uncorrected=(0, 1))": ("edm", {"steps": 6}),
        "restart(low=0.1, high=3.0)": ("edm", {"steps": 8}),
    }
    for name, (path, options) in specs.items():
        yield f"options/{name}", lambda: solved(mixture(path, "v"), solver=name, **options)
    S = ds.solvers
    yield (
        "options/interval of tau",
        lambda: solved(
            mixture("edm", "denoised"),
            solver=S.Multistep(3, "denoised", "lambda", corrector=4, tau=S.Interval(1.0, low=0.05, high=1.0)),
            nfe=10,
        ),
    )
    yield (
        "options/own diffusion",
        lambda: solved(
            mixture(), solver=S.Multistep(2, "denoised", "lambda", tau=S.Diffusion(lambda t: 0.5 + 0 * t)), nfe=6
        ),
    )
    yield (
        "options/tableau",
        lambda: solved(
            mixture("edm", "noise"), solver=ds.Tableau.from_json(ds.plan("edm", "unipc-3", nfe=6).to_json())
        ),
    )
    yield "options/own grid", lambda: solved(mixture("edm", "denoised"), solver="heun", grid=[80.0, 9, 2, 0.4, 0.02, 0])
    yield (
        "options/start and stop",
        lambda: solved(
            mixture("edm", "denoised"), None, noise=normal(8, 2, scale=2.0), start=2.0, stop=0.1, solver="ab-2", steps=5
        ),
    )
    yield "options/image to image", image_to_image
    yield "options/check", lambda: solved(mixture(), solver="unipc-2", steps=5, check=True)
    for nfe in (1, 2, 5, 10, 20, 40):
        yield f"options/auto {nfe}", lambda: solved(mixture("vp", "noise"), nfe=nfe)
    yield (
        "options/custom path",
        lambda: solved(plain(ds.paths.Custom(torch.cos, torch.sin, math.pi / 2, 0.0), "v"), solver="unipc-3", steps=5),
    )
    yield (
        "options/own betas",
        lambda: solved(plain(ds.paths.Discrete(torch.linspace(1e-4, 0.05, 50)), "noise"), solver="plms", steps=5),
    )
    for clock in ("1-t", "1000t", "sigma", "rho", "c_noise", "lambda"):
        yield f"options/clock {clock}", partial(told, clock)
    for name in ("float64", "bfloat16", "float16"):
        for solver in ("unipc-3", "sa-2"):
            dtype = getattr(torch, name)
            yield (
                f"dtype/{name} state, {solver}",
                lambda: solved(mixture("vp", "v"), solver=solver, steps=5, dtype=dtype),
            )
    for name, shape in {
        "odd": (3, 5), "image": (2, 3, 7, 9), "one": (1, 1), "none": (0, 2), "flat": (5,), "large": (2, 40000)
    }.items():  # fmt: skip
        for solver in ("unipc-2", "ddim(eta=1)", "edm-heun"):
            yield f"shape/{name}, {solver}", lambda: solved(plain("vp", "v"), shape, solver=solver, steps=3)
    for name, noise in {
        "transposed": lambda: normal(2, 8).T,
        "channels last": lambda: normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "every other": lambda: normal(8, 6)[:, ::2],
    }.items():
        for solver in ("unipc-2", "sa-2"):
            yield f"layout/{name}, {solver}", lambda: solved(plain(), None, noise=noise(), solver=solver, steps=4)
    yield "layout/inference mode", in_inference_mode
    yield (
        "layout/network that returns its input",
        lambda: solved(ds.adapt(lambda x, t: x, "vp", "noise"), solver="ab-3", steps=5),
    )


def image_to_image() -> list[Any]:
    model = mixture("edm", "denoised")
    x = ds.diffuse(model, normal(8, 2), t=2.0, seed=1, index=3)
    return [x, *solved(model, None, noise=x, start=2.0, solver="dpmpp-2m", nfe=6)]


def told(clock: str) -> list[Any]:
    return solved(ds.adapt(lambda x, t: -x * torch.sigmoid(t)[:, None], "vp", "v", clock=clock), solver="heun", steps=4)


def in_inference_mode() -> list[Any]:
    with torch.inference_mode():
        found = solved(mixture("vp", "v"), solver="sa-2", steps=5, trajectory=True)
    return found


def network_runs() -> Runs:
    """Networks with weights: the digits, and small ones in half precision."""
    shape, label = (4, 1, 8, 8), torch.tensor([3, 1, 4, 1])
    for solver in ("auto", "heun", "dpmpp-2m", "unipc-3", "ddim(eta=1)", "edm-heun", "sa-2", "rk4", "deis-3", "pndm"):
        yield f"digits/{solver}", lambda: solved(digits(), shape, solver=solver, nfe=10)
    uncond = {"label": torch.full((4,), -1)}
    for name, guidance in {
        "plain": 3.0, "batched": ds.Guidance(3.0, uncond, batched=True), "rescale": ds.Guidance(5.0, rescale=0.7)
    }.items():  # fmt: skip
        yield (
            f"digits/guided, {name}",
            lambda: solved(digits(), shape, nfe=8, cond={"label": label}, guidance=guidance),
        )
    for path, predicts in (("condot", "velocity"), ("edm", "edm"), ("vp", "noise")):
        for solver in ("unipc-3", "ddim(eta=1)", "dpmpp-2m"):
            yield (
                f"bf16/{solver}, {path}",
                lambda: solved(toy(path, predicts, dtype=torch.bfloat16), (5, 6), solver=solver, steps=4),
            )
        yield (
            f"fp16/heun, {path}",
            lambda: solved(toy(path, predicts, dtype=torch.float16), (5, 6), solver="heun", steps=4),
        )
    for solver in ("abm-3", "sa-2", "restart"):
        yield (
            f"bf16/conv, {solver}",
            lambda: solved(conv("edm", "edm", torch.bfloat16), shape, solver=solver, steps=4),
        )
    yield (
        "bf16/guided",
        lambda: solved(
            toy("edm", "edm", dtype=torch.bfloat16), (5, 6), solver="unipc-2", steps=5,
            cond={"label": torch.arange(5)}, guidance=ds.Guidance(3.0, rescale=0.5),
        ),
    )  # fmt: skip
    yield (
        "bf16/state in float64",
        lambda: solved(toy(dtype=torch.bfloat16), (5, 6), solver="ab-3", steps=5, dtype=torch.float64),
    )
    yield "float64/network", lambda: solved(toy(dtype=torch.float64), (5, 6), solver="unipc-3", steps=5)


def extra_runs() -> Runs:
    """What can be asked beside the samples: trajectories, hooks, correctors, keys, runs in two parts."""
    for solver in ("unipc-3", "heun", "sa-2", "edm-heun", "pndm"):
        for kept in (True, "calls"):
            yield (
                f"trajectory/{solver}, {kept}",
                lambda: solved(mixture("edm", "noise"), solver=solver, steps=5, trajectory=kept),
            )
    for solver in ("ddim(eta=1)", "ddpm", "sa-3", "er-sde-2", "dpm-2-ancestral", "stochastic-heun"):
        yield (
            f"transitions/{solver}",
            lambda: solved(mixture("vp", "v"), solver=solver, steps=5, log_prob=True, trajectory="calls"),
        )
    for name, rows in {"all": None, "two": [1, 3]}.items():
        for solver in ("ddim(eta=1)", "dpmpp-2m-sde"):
            yield f"transitions/replayed, {solver}, {name} rows", partial(replayed, solver, rows)
    for solver in ("dpmpp-2m", "unipc-3", "edm-heun"):
        yield (
            f"hook/{solver}",
            lambda: solved(
                mixture("ddpm", "noise"), solver=solver, steps=5, hook=lambda step: step.denoised.clamp(-1, 1)
            ),
        )
        yield f"callback/{solver}", partial(watched, solver)
    correctors = {"snr": ds.Langevin(snr=0.1), "step": ds.Langevin(steps=2, step=0.2)}
    for name, corrector in correctors.items():
        for solver in ("ddim(eta=1)", "ab-3", "heun"):
            yield (
                f"corrector/{name}, {solver}",
                lambda: solved(mixture("vp", "noise"), solver=solver, steps=5, corrector=corrector, trajectory=True),
            )
    for solver in ("sa-2", "dpmpp-2m-sde", "seeds-2", "ddim(eta=1)"):
        yield (
            f"brownian/{solver}",
            lambda: solved(mixture("edm", "denoised"), solver=solver, steps=6, brownian=ds.Brownian((8, 2), seed=1)),
        )
    for solver in ("unipc-3", "sa-3", "edm-heun", "pndm", "reversible-heun"):
        yield f"resumed/{solver}", partial(resumed, solver)
    keys: dict[str, dict[str, Any]] = {
        "per sample": {"seed": [5, 2**63 + 11, 0, 7, 7, 1, 2, 3]},
        "large": {"seed": 2**64 - 1},
        "index": {"seed": 3, "index": 1001},
        "antithetic": {"seed": ds.Key(0, index=1, antithetic=True)},
        "shared": {"seed": ds.Key(0, shared=True)},
        "both": {"seed": ds.Key(4, antithetic=True, shared=True)},
    }
    for name, options in keys.items():
        for solver in ("sa-2", "edm-heun"):
            yield f"key/{name}, {solver}", lambda: solved(mixture("vp", "v"), solver=solver, steps=5, **options)
    yield "begin/loop", partial(own_loop, "unipc-3")
    yield "begin/loop, edm network", partial(own_loop, "sa-2", "edm", "edm")
    yield "begin/edited", partial(own_loop, "dpmpp-2m", "vp", "noise", edit=True)


def replayed(solver: str, rows: Sequence[int] | None) -> list[Any]:
    model = toy()
    cond = {"label": torch.arange(5)}
    run = ds.solve(model, (5, 6), solver=solver, steps=5, seed=0, trajectory="calls", log_prob=True, cond=cond)
    assert run.trajectory is not None
    now = ds.transition_log_prob(model, run.trajectory, run.tableau, rows=rows, cond=cond)
    return [run.log_prob, *pulled(now, *parameters(model))]


def watched(solver: str) -> list[Any]:
    seen: list[Any] = []

    def watch(step: ds.Step) -> None:
        denoised = None if step.denoised is None else step.denoised.clone()
        seen.append([step.call, step.calls, step.t, step.alpha, step.sigma, step.x.clone(), denoised])

    return [solved(mixture("condot", "v"), solver=solver, steps=5, callback=watch), seen]


def resumed(solver: str) -> list[Any]:
    """A run in three parts, of which the second begins from a file."""
    model = mixture("edm", "noise")
    first = ds.solve(model, (8, 2), solver=solver, steps=5, seed=0, max_calls=2, trajectory="calls")
    with tempfile.TemporaryDirectory() as folder:
        first.state.save(Path(folder) / "state")
        state = ds.State.load(Path(folder) / "state")
    second = ds.solve(model, solver=first.tableau, state=state, max_calls=1)
    third = ds.solve(model, solver=first.tableau, state=second.state, trajectory=True)
    return [of_run(first), of_state(state), of_run(second), of_state(second.state), of_run(third)]


def own_loop(solver: str, path: str = "condot", predicts: str = "velocity", edit: bool = False) -> list[Any]:
    model = mixture(path, predicts)
    ex, seen = ds.begin(model, (8, 2), solver=solver, steps=5, seed=0), []
    while not ex.done:
        x, t = ex.query()
        seen.append([x.clone(), t.clone()])
        ex.advance(model.net(x, t))
        if edit:
            ex.correct(ex.y * 0.5 + 0.1)
    return [seen, ex.y, ex.state.call, ex.state.s]


def guidance_runs() -> Runs:
    """Classifier-free guidance of a small network."""
    label, none = torch.arange(5), {"label": torch.zeros(5, dtype=torch.int64)}
    ways: dict[str, float | ds.Guidance] = {
        "scale": 4.0,
        "one": 1.0,
        "below one": 0.5,
        "uncond": ds.Guidance(3.0, none),
        "interval": ds.Guidance(3.0, none, interval=(0.2, 5.0)),
        "batched": ds.Guidance(3.0, none, batched=True),
        "rescale": ds.Guidance(6.0, none, rescale=0.7),
        "all": ds.Guidance(6.0, none, interval=(0.1, 20.0), batched=True, rescale=1.0),
    }
    for name, guidance in ways.items():
        for solver in ("unipc-2", "ddim(eta=1)", "auto"):
            yield (
                f"guidance/{name}, {solver}",
                lambda: solved(
                    toy("vp", "noise"), (5, 6), solver=solver, nfe=6, cond={"label": label}, guidance=guidance
                ),
            )
    for name, more in {
        "hook": {"hook": lambda step: step.denoised.clamp(-1, 1)},
        "corrector": {"corrector": ds.Langevin(snr=0.1)},
        "transitions": {"log_prob": True},
        "check": {"check": True},
    }.items():
        yield (
            f"guidance/{name}",
            lambda: solved(
                toy("vp", "noise"), (5, 6), solver="ddim(eta=1)", steps=5, cond={"label": label},
                guidance=ds.Guidance(3.0, none, rescale=0.5), **more,
            ),
        )  # fmt: skip
