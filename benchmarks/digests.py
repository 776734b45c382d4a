r"""Digests of some hundreds of runs: whether a change of the code left the bits of every result as they were.

    python benchmarks/digests.py --out before.json        # at the old commit
    python benchmarks/digests.py --compare before.json    # at the new one: the names that differ, exit status 1 if any

The file has, for each run by name, the SHA-256 of the bytes (dtype, shape and data) of all that it returned, or
"error: TypeName". It is one machine's: processor, compiler, PyTorch and libraries decide about the last bits too, so
that both commands are to be run on the same machine, in the same environment. What is imported is printed first;
PYTHONPATH=<checkout> puts another checkout before an installed one.

Every run is made with the kernels that a user gets, and many once more in a process of its own for each value of
DIFFSOLVE_KERNELS in `PASSES` (Triton's on the CPU, in its interpreter), with that value before the name:
"torch:solve/heun". With DIFFSOLVE_KERNELS set it is that pass alone. `--only solve/ heun` takes the names that contain
one of the words, when looking for a cause.

Only the public face of the library is used, so that this file need not change when modules move. To add a run, add a
line to a group below; its name must be new, and everything that is random must have a seed. What a run leaves unwritten
must not be looked at: the history of a state after the last call, for one.
"""

# ruff: noqa: B023 (each run is made before the loop that names it goes on)

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import diffsolve as ds
from diffsolve import reversible

PASSES: dict[str, tuple[str, ...]] = {
    "torch": (
        "solve/", "options/", "dtype/", "shape/", "layout/", "bf16/", "trajectory/", "transitions/", "hook/",
        "corrector/", "resumed/", "key/", "begin/", "guidance/", "parallel/small", "parallel/parareal, guided",
        "gradient/direct", "adaptive/guided", "adaptive sde/key", "langevin/", "noise/", "brownian path/",
    ),
    "native": (
        "solve64/", "shape/", "layout/", "bf16/", "resumed/", "guidance/", "parallel/small", "gradient/direct",
        "adaptive/bosh3", "adaptive/dopri5", "adaptive/guided", "adaptive/not finite", "noise/",
    ),
    "triton": (
        "options/auto 5", "options/sa-3", "shape/odd", "digits/guided, rescale", "bf16/unipc-3", "bf16/conv",
        "bf16/guided", "resumed/unipc-3", "resumed/sa-3", "key/per sample", "key/antithetic", "guidance/all",
        "parallel/small", "adaptive/bosh3",
    ),
}  # fmt: skip
"""Values of DIFFSOLVE_KERNELS that are tried beside the default, and on which runs: beginnings of their names."""

Runs = Iterator[tuple[str, Callable[[], Any]]]
"""Names, and what makes each run; it is called before the next name is asked for."""

PATHS = ("edm", "ddpm", "condot", "vp", "ve", "rectified", "cosine", "subvp")
EVERYWHERE = ("denoised", "velocity", "v", "edm")
"""Predictions that any path allows; noise and score say nothing where alpha = 0."""
NOISE_ALONE = ("condot", "rectified", "cosine")
"""Paths that begin at alpha = 0."""
PAIRS = [
    (path, predicts)
    for path in PATHS
    for predicts in (*EVERYWHERE, *(() if path in NOISE_ALONE else ("noise", "score")))
]


# Networks and what is asked of runs -------------------------------------------------------------------------------


def mixture(path: str = "condot", predicts: str = "velocity") -> ds.Model:
    """The ring of eight Gaussians with its exact network."""
    return ds.load(f"mixture-2d(path={path!r}, predicts={predicts!r})")


class Toy(nn.Module):
    """A small network with random weights, and conditions: a label, and a tensor that is added."""

    def __init__(self, numbers: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Linear(numbers + 1, 16)
        self.label = nn.Embedding(5, 16)
        self.outer = nn.Linear(16, numbers)
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        clock = (t / (1 + t.abs())).to(x.dtype)
        h = self.inner(torch.cat([x.flatten(1), clock[:, None]], 1))
        if label is not None:
            h = h + self.label(label)
        out = self.outer(torch.tanh(h)).view_as(x)
        return out if shift is None else out + shift.to(x.dtype)


class Conv(nn.Module):
    """Two convolutions, for images of one channel."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 1, 3, padding=1)
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        clock = (t / (1 + t.abs())).to(x.dtype)[:, None, None, None]
        out: Tensor = self.outer(nn.functional.silu(self.inner(x) + clock))
        return out


def toy(path: str = "condot", predicts: str = "velocity", numbers: int = 6, dtype: Any = torch.float32) -> ds.Model:
    """The same weights at each call."""
    torch.manual_seed(1)
    return ds.adapt(Toy(numbers, dtype), path, predicts)


def conv(path: str = "condot", predicts: str = "velocity", dtype: torch.dtype = torch.float32) -> ds.Model:
    torch.manual_seed(2)
    return ds.adapt(Conv(dtype), path, predicts)


def plain(path: Any = "condot", predicts: str = "velocity") -> ds.Model:
    """A network of a few elementwise operations, for any shape."""
    return ds.adapt(lambda x, t: x * -0.5 + 0.25 * x.square().clamp(max=1), path, predicts)


@lru_cache(maxsize=1)
def digits() -> ds.Model:
    return ds.load("digits")


def normal(*shape: int, seed: int = 7, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers for states and conditions, of PyTorch's generator: not of the library."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) * scale


def of_run(run: Any) -> list[Any]:
    """What a run of a table of weights returns."""
    return [run.x, run.nfe, run.times, run.trajectory, run.log_prob, run.done]


def of_state(state: Any) -> list[Any]:
    """Of a run between two calls."""
    return [state.call, state.s, state.y, *state.history]


def of_parallel(run: Any) -> list[Any]:
    found = run.parallel
    return [
        *of_run(run), found.rounds, found.calls, found.wasted, found.depth, found.each, found.converged
    ]  # fmt: skip


def of_adaptive(run: Any) -> list[Any]:
    return [run.x, run.status, run.nfe, run.t, run.h, run.trajectory]


def of_density(found: Any) -> list[Any]:
    arrays = [found.value, found.stderr, found.latent, found.nfe, found.jvps, found.solver_error]
    return [*arrays, found.status, found.bits_per_dim(), found.stop]


def of_chain(chain: Any) -> list[Any]:
    return [chain.x, chain.nfe, chain.acceptance]


def solved(model: Any, shape: Sequence[int] | None = (8, 2), **options: Any) -> list[Any]:
    return of_run(ds.solve(model, shape, **{"seed": 0, **options}))


def in_parallel(model: Any, shape: Sequence[int] = (4, 2), **options: Any) -> list[Any]:
    return of_parallel(ds.solve(model, shape, **{"seed": 0, **options}))


def adaptive(model: Any, shape: Sequence[int] | None = (6, 2), **options: Any) -> list[Any]:
    return of_adaptive(ds.solve(model, shape, **{"seed": 0, **options}))


def pulled(result: Tensor, *leaves: Tensor) -> list[Any]:
    """A result and the gradients of the sum of its squares; None for what it does not depend on."""
    return [result, *torch.autograd.grad(result.double().square().sum(), leaves, allow_unused=True)]


def parameters(model: Any) -> list[Tensor]:
    return list(model.net.parameters()) if isinstance(model.net, nn.Module) else []


# The runs ---------------------------------------------------------------------------------------------------------


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


GROUPS: tuple[Callable[[], Runs], ...] = (
    solver_runs,
    path_runs,
    option_runs,
    network_runs,
    extra_runs,
    guidance_runs,
    parallel_runs,
    gradient_runs,
    adaptive_runs,
    density_runs,
    langevin_runs,
    tune_runs,
    diffusers_runs,
    noise_runs,
)


# Digests ----------------------------------------------------------------------------------------------------------


def feed(into: Any, value: Any) -> None:
    """The bytes of a value, with what tells them from those of another."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        into.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        into.update(data)
    elif isinstance(value, np.ndarray):
        into.update(f"array {value.dtype} {value.shape}:".encode())
        into.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, ds.Tableau):
        into.update(b"tableau:")
        into.update(value.to_json().encode())
    elif isinstance(value, list | tuple):
        into.update(f"{len(value)} values:".encode())
        for one in value:
            feed(into, one)
    elif isinstance(value, bool | np.bool_):
        into.update(f"bool {bool(value)}:".encode())
    elif isinstance(value, int | np.integer):  # enumerations too
        into.update(f"int {int(value)}:".encode())
    elif isinstance(value, float | np.floating):
        into.update(f"float {float(value).hex()}:".encode())
    elif value is None:
        into.update(b"none:")
    else:
        raise TypeError(f"{type(value).__name__} has no digest")


def digest(run: Callable[[], Any]) -> str:
    """The SHA-256 of what a run returns, or which error it raised."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = run()
        found = hashlib.sha256()
        feed(found, value)
    except Exception as error:
        return f"error: {type(error).__name__}"
    return found.hexdigest()


def wanted(name: str, kernels: str, only: Sequence[str]) -> bool:
    """Whether a run belongs to the pass of these kernels, and is one of those asked for."""
    here = "/" not in name or kernels not in PASSES or name.startswith(PASSES[kernels])
    return here and (not only or any(word in name for word in only))


def every_run() -> Runs:
    """All groups. Of one that breaks off between two runs, the group's name and the error stand for the rest."""
    for group in GROUPS:
        try:
            yield from group()
        except Exception as error:
            yield group.__name__, partial(again, error)


def again(error: Exception) -> None:
    raise error


def one_pass(kernels: str, only: Sequence[str], verbose: bool = False) -> dict[str, str]:
    """The digests of a pass, in this process."""
    found: dict[str, str] = {}
    for name, run in every_run():
        if not wanted(name, kernels, only):
            continue
        full = f"{kernels}:{name}" if kernels else name
        if full in found:
            raise ValueError(f"two runs are named {full!r}")
        begun = time.perf_counter()
        found[full] = digest(run)
        if verbose:
            print(f"{time.perf_counter() - begun:7.3f} s  {full}  {found[full][:16]}", flush=True)
    return found


def all_passes(only: Sequence[str], verbose: bool = False) -> dict[str, str]:
    """The digests of this process, and of one more for each of `PASSES` unless DIFFSOLVE_KERNELS is set."""
    kernels = os.environ.get("DIFFSOLVE_KERNELS", "")
    found = one_pass(kernels, only, verbose)
    for other in () if kernels else PASSES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "digests.json"
            command = [sys.executable, os.path.abspath(__file__), "--out", str(file)]
            command += [*(["--verbose"] if verbose else []), *(["--only", *only] if only else [])]
            quiet = None if verbose else subprocess.DEVNULL
            env = {**os.environ, "DIFFSOLVE_KERNELS": other, "TRITON_INTERPRET": str(int(other == "triton"))}
            subprocess.run(command, check=True, stdout=quiet, env=env)
            found.update(json.loads(file.read_text()))
    return found


def selected(name: str, only: Sequence[str]) -> bool:
    """Whether a name in a file is one that `all_passes` is asked for."""
    chosen = os.environ.get("DIFFSOLVE_KERNELS", "")
    kernels, _, rest = name.partition(":")
    if kernels not in PASSES:
        kernels, rest = "", name
    return (not chosen or kernels == chosen) and (not only or any(word in rest for word in only))


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Print what differs; whether nothing does."""
    gone, new = [n for n in before if n not in after], [n for n in after if n not in before]
    other = [name for name in after if name in before and before[name] != after[name]]
    for title, names in (("differs", other), ("is gone", gone), ("is new", new)):
        for name in names:
            failed = [f"{when} {d[name]}" for when, d in (("before:", before), ("now:", after))
                      if d.get(name, "").startswith("error")]  # fmt: skip
            print(f"{title}: {name}{'  (' + ', '.join(failed) + ')' if failed else ''}")
    if gone or new or other:
        print(f"{len(other)} of {len(after)} differ, {len(gone)} are gone, {len(new)} are new")
        return False
    print(f"all {len(after)} equal")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write the digests there")
    what.add_argument("--compare", type=Path, metavar="FILE", help="make the runs again and say which differ")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="runs whose name contains one of these")
    parser.add_argument("--verbose", action="store_true", help="print every run with its time")
    args = parser.parse_args()

    before = None if args.compare is None else json.loads(args.compare.read_text())
    begun = time.perf_counter()
    print(f"{os.path.dirname(ds.__file__)}, torch {torch.__version__}", flush=True)
    torch.set_num_threads(1)
    found = all_passes(args.only, args.verbose)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    errors = {name: value for name, value in found.items() if value.startswith("error")}
    for name, value in errors.items():
        print(f"{name}: {value}")
    print(f"{len(found)} runs, {len(errors)} errors, {time.perf_counter() - begun:.0f} seconds")
    if before is None:
        return 0
    return 0 if compare({name: value for name, value in before.items() if selected(name, args.only)}, found) else 1


if __name__ == "__main__":
    sys.exit(main())
