"""The table of all solvers, in docs/solvers.md: what each is, its orders, its cost, and its error on exact mixtures.

python benchmarks/solvers.py > docs/solvers.md            (about 10 minutes on one core)
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import re
from functools import cache, lru_cache
from pathlib import Path as FilePath
from types import ModuleType

import numpy as np
import torch
import trained
from record import Recorder, Table

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means, ring
from diffsolve.solvers.sde import tau_named
from diffsolve.tableau.frames import FRAMES

INTERIOR = {"condot": (0.4, 0.85), "edm": (1.5, 0.2), "vp": (0.6, 0.12)}
NETWORK = {"condot": "velocity", "edm": "denoised", "vp": "v"}
RUNGE_KUTTA = ["heun", "midpoint", "ralston", "rk4"]
CALLS = (5, 6, 8, 10, 15, 20, 30, 50)
TARGETS = {"ring": ring(), "64-D": random_means(64)}
IMPERFECT = ("ring/ddpm/noise/0.05", "ring/edm/denoised/0.05", "ring/condot/velocity/0.05")

SOURCES = {
    "bosh3": "Bogacki, Shampine 1989",
    "deis|tab|rhoab": "2204.13902",
    "dopri5": "Dormand, Prince 1980",
    "dopri8": "Prince, Dormand 1981",
    "dpm-": "2206.00927",
    "dpmpp": "2211.01095",
    "etdrk": "Krogstad 2005",
    "heun|edm-heun": "2206.00364",
    "res-": "2308.02157",
    "res-[235]s": "Hochbruck, Ostermann 2005",
    "rk4-38": "Kutta 1901",
    "ssprk3": "Shu, Osher 1988",
    "tsit5": "Tsitouras 2011",
}
"""What a name begins with -> where the method is from."""

INTRODUCTION = """# Solvers

Written by `python benchmarks/solvers.py`. All of it is float64, on the CPU, with exact networks but where it
says that they err.

## What each one is

`order` is the order of convergence as run, first and last steps included. `calls` are network calls in a step, `K` the
history: K + 2 states are alive. `gain` is the standard deviation of the result over the exact one for Gaussian data of
deviation 0.5 on EDM's path, grid uniform in theta, in at most 5 calls: far from 1 is unstable at large steps.
"""

STOCHASTIC = """
## Stochastic solvers

`order` is the weak order. The slopes are those of |mean - exact| + |variance - exact| on Gaussian data, summed over the
deviations 0.2, 0.4 and 1, from 160 to 320 steps between times away from both ends; the sum at 320 steps beside each.
The last columns are the standard deviation of the result over the exact one for N(0, 0.5^2) on EDM's path from the
noise to the data, in its own grid. No sampling: the linear recursion is followed in closed form
(`tests/support/gaussian.py`).
`restart` does nothing where the grid has no node in its interval.
`consistency`, `lcm`, `scm` and `tcd` are for students ([distillation.md](distillation.md)): with an ordinary network,
as here, they have no order.
"""

ORDERS = """
## Measured orders of deterministic solvers

Slopes of log error against log steps on three Gaussians in the plane, grid uniform in theta, the error at the finer
grid beside each. `interior`: between times away from both ends. `data`: from the same start down to sigma = 0.

Down to the data a frame that is regular there keeps its order on CondOT, where the network may be called at the data
itself. A frame that is singular there makes one first-order step at the end, with error h^2. On EDM and VP the last
step is from `t_last`, which does not move with the number of steps: there the slope flattens at that step's own error.
"""

ERRORS = """
## Error at equal network calls

Mean over 256 particles of the distance to the exact endpoint, over the root mean square of the data, in the path's own
grid (`auto` has one of its own), from the noise end down to `t_last`. `ring`: 8 Gaussians of deviation 0.2 on a circle
of radius 4. `64-D`: 8 random means, deviation 0.3. Smallest of each column in bold.
"""

ERRING = """
## Error where the network errs

The ring at a fourth of the size, with a network that errs by a smooth field of root mean square 0.05 on what it
predicts; the truth is its own flow in 400 steps. 128 particles down to the data, float64, on the better of the path's
own grid and uniform-lambda (`auto` and `designed` have grids of their own). Trained networks are like these, not like
the exact ones above: [accuracy.md](accuracy.md).
"""


def smooth() -> GaussianMixture:
    """Three wide Gaussians in the plane: smooth enough to reach asymptotic orders with few steps."""
    means = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture.isotropic(means, 0.5)


@lru_cache
def start_and_end(
    target: GaussianMixture, path: str, start: float, stop: float, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points at `start`, and their exact images at `stop`."""
    where = ds.paths.named(path)
    ends = [(float(where.alpha(t)), float(where.sigma(t))) for t in (start, stop)]
    noise = torch.randn(count, target.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = where.prior_std() if start == where.t_noise else math.hypot(*ends[0])
    return scale * noise, target.flow(scale * noise, *ends)


def order(solver: str, path: str, to_data: bool, target: GaussianMixture) -> str:
    """The slope between two step counts, and the error at the larger."""
    model = mixture_model(target, path, NETWORK[path])
    start, stop = INTERIOR[path]
    x, exact = start_and_end(target, path, start, model.path.t_data if to_data else stop, 24)
    finish = {} if to_data else {"stop": stop}
    steps = (24, 48) if ds.solvers.named(solver).order >= 4 else (128, 256)
    errors = [
        float(
            (
                ds.sample(model, noise=x, solver=solver, steps=n, grid="uniform-theta", start=start, **finish) - exact
            ).norm()
        )
        for n in steps
    ]
    slope = math.log(errors[0] / errors[1], 2)
    return f"{slope + 0.0:.2f} ({errors[1]:.0e})"


def gain(solver: str) -> str:
    """Standard deviation of the result over the exact one, for N(0, 0.5^2) on EDM's path in at most 5 calls."""
    model = mixture_model(GaussianMixture.isotropic(torch.zeros(1, 1), 0.5), "edm", "denoised")
    try:
        x = ds.sample(
            model, noise=80 * torch.ones(1, 1, dtype=torch.float64), solver=solver, nfe=5, grid="uniform-theta"
        )
    except ValueError:
        return "-"
    return f"{abs(float(x)) / (80 * 0.5 / math.hypot(80, 0.5)):.3g}"


def error(solver: str, path: str, target: GaussianMixture, nfe: int) -> float:
    """Mean endpoint error relative to the data, at t_last (CondOT: the data)."""
    model = mixture_model(target, path, NETWORK[path])
    where = model.path
    x, exact = start_and_end(target, path, where.t_noise, where.t_last, 256)
    scale = float((target.covariance.trace() + (target.mean**2).sum()).sqrt())
    stop = {} if where.t_last == where.t_data else {"stop": where.t_last}
    try:
        found = ds.sample(model, noise=x, solver=solver, nfe=nfe, **stop)
    except ValueError:  # a step costs more than the budget
        return math.nan
    return float((found - exact).norm(dim=1).mean()) / scale


@cache
def gaussian() -> ModuleType:
    """tests/support/gaussian.py: what a tableau makes of Gaussian data."""
    spec = importlib.util.spec_from_file_location(
        "diffsolve_test_gaussian", FilePath(__file__).resolve().parent.parent / "tests" / "support" / "gaussian.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weak_order(solver: str, path: str) -> str:
    start, stop = INTERIOR[path]
    errors = []
    for n in (160, 320):
        table = ds.plan(path, solver, steps=n, start=start, stop=stop, grid="uniform-theta")
        errors.append(sum(sum(gaussian().errors(table, std=std)) for std in (0.2, 0.4, 1.0)))
    return f"{math.log(errors[0] / errors[1], 2):.2f} ({errors[1]:.0e})"


def spread(solver: str, nfe: int) -> str:
    y, _ = gaussian().propagate(ds.plan("edm", solver, nfe=nfe), mean=0.0, std=0.5, prior=80.0)
    return f"{math.sqrt(float(gaussian().moments(y)[1][-1])) / 0.5:.3f}"


def source(name: str) -> str:
    """The papers that the class names, those of its SDE, and that of a method which is a point of a larger class."""
    solver = ds.solvers.named(name)
    docs = [inspect.getdoc(type(solver)) or ""]
    if getattr(solver, "tau", 0):
        docs.append(inspect.getdoc(type(tau_named(solver.tau))) or "")  # type: ignore[attr-defined]
    found = [paper for start, paper in SOURCES.items() if re.match(start, name)]
    return ", ".join(dict.fromkeys([*found, *re.findall(r"\b\d{4}\.\d{4,5}\b", " ".join(docs))]))


def row(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def head(table: Table) -> None:
    row([*table.labels, *table.columns])
    print("|" + "---|" * (len(table.labels) + len(table.columns)))


def main() -> None:
    torch.set_num_threads(1)
    every = ds.solvers.names()
    stochastic = [name for name in every if ds.plan("vp", name, steps=12).stochastic]
    names = [name for name in every if name not in stochastic]
    recorder = Recorder("solvers")
    print(INTRODUCTION)
    table = recorder.table(
        "deterministic", ["name"], dict.fromkeys(["class", "source", "order", "calls", "K", "gain"], "")
    )
    for name in names:
        solver = ds.solvers.named(name)
        history = ds.plan("condot", name, steps=12).history
        table.add([f"`{name}`"], [f"`{solver}`", source(name), solver.order, solver.calls, history, gain(name)])

    print(STOCHASTIC)
    columns = ["class", "source", "order", "calls", "K", *INTERIOR, *(f"{nfe} calls" for nfe in (10, 20, 50, 100))]
    table = recorder.table("stochastic", ["name"], dict.fromkeys(columns, ""))
    for name in stochastic:
        solver = ds.solvers.named(name)
        about = [source(name), solver.order, solver.calls, ds.plan("condot", name, steps=12).history]
        slopes = [weak_order(name, path) for path in INTERIOR]
        table.add([f"`{name}`"], [f"`{solver}`", *about, *slopes, *(spread(name, nfe) for nfe in (10, 20, 50, 100))])

    print(ORDERS)
    target = smooth()
    columns = ["declared", *(f"{path} {kind}" for path in INTERIOR for kind in ("interior", "data"))]
    table = recorder.table("orders", ["solver"], dict.fromkeys(columns, ""))
    for name in [*dict.fromkeys([*names, *(f"{m}(frame={f!r})" for m in RUNGE_KUTTA for f in FRAMES)])]:
        slopes = [order(name, path, to_data, target) for path in INTERIOR for to_data in (False, True)]
        table.add([f"`{name}`"], [ds.solvers.named(name).order, *slopes])

    print(ERRORS)
    for path in INTERIOR:
        for label, mixture in TARGETS.items():
            print(f"\n### {path}, {label}, grid {ds.paths.named(path).grid}\n")
            records = recorder.table(f"error, {path}, {label}", ["solver"], {str(nfe): ".1e" for nfe in CALLS})
            errors = np.array([[error(name, path, mixture, nfe) for nfe in CALLS] for name in names])
            write_errors(records, names, errors)
    print(ERRING)
    for label in IMPERFECT:
        target = trained.Target.of(label)
        print(f"\n### {label}\n")
        records = recorder.table(f"error, {label}", ["solver"], {str(nfe): ".1e" for nfe in trained.BUDGETS})
        errors = np.array([[own_error(name, target, nfe) for nfe in trained.BUDGETS] for name in names])
        write_errors(records, names, errors)


def own_error(solver: str, target: trained.Target, nfe: int) -> float:
    """The distance to the own flow of a network that errs, on the better of two grids."""
    grids = (None,) if solver in ("auto", "designed") else (None, "uniform-lambda")
    try:
        return min(target.error(nfe, solver=solver, grid=grid) for grid in grids)
    except ValueError:  # a step costs more than the budget
        return math.nan


def write_errors(records: Table, names: list[str], errors: np.ndarray) -> None:
    """A row for each solver, the least error of each column in bold."""
    head(records)
    best = np.nanmin(errors, axis=0)
    for name, found in zip(names, errors, strict=True):
        cells = [
            "-" if np.isnan(e) else f"**{e:.1e}**" if e == b else f"{e:.1e}" for e, b in zip(found, best, strict=True)
        ]
        row([f"`{name}`", *cells])
        records.add([f"`{name}`"], [None if np.isnan(e) else float(e) for e in found], live=False)


if __name__ == "__main__":
    main()
