"""Error of log-densities in nats against network calls, Jacobian-vector products and time; see docs/likelihood.md.

    python benchmarks/likelihood.py            results/likelihood.json and .md; some 15 minutes on an idle core
    python benchmarks/likelihood.py --quick    2-D alone, to the terminal

A row that the .json file has is not measured again: the same command goes on where it was stopped. Exact mixtures,
whose log-density under each model is known from their own flow; float64, one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import Recorder, processor
from torch import Tensor
from torchdiffeq import odeint

import diffsolve as ds
from diffsolve.likelihood.traces import Exact, Hutchinson
from diffsolve.metrics.bits import DATA
from diffsolve.noise import Key
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means, ring

NETWORK = {"condot": "velocity", "edm": "denoised", "vp": "noise"}
SAMPLES = {2: 64, 64: 32, 1024: 8}
GRID = "angle(scale=1.4, power=1.75)"
RESULTS = Path(__file__).parent / "results"
COLUMNS = ("data", "path", "method", "trace", "tolerance or calls", "calls, mean", "calls, most", "JVPs",
           "error, nats", "error bar", "s")  # fmt: skip
Found = tuple[float, int, float, float, float]
"""(calls on the mean, calls at most, JVPs of a sample, error, error bar)"""


def normal(x: Tensor, deviation: float) -> Tensor:
    return -(x / deviation).square().sum(1) / 2 - x.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))


def truth(mixture: GaussianMixture, path: ds.paths.Path, x: Tensor) -> Tensor:
    """log p_0(x) - log p_T(x_T) + log N(x_T; 0, prior): the density of the model with its own prior."""
    level = float(path.alpha(path.t_noise)), float(path.sigma(path.t_noise))
    end = mixture.flow(x, (1.0, 0.0), level)
    return mixture.log_prob(x) - mixture.log_prob(end, *level) + normal(end, path.prior_std())


def ours(model: ds.Model, x: Tensor, exact: Tensor, method: str, trace: str, setting: float) -> Found:
    """An adaptive method at a tolerance, or a fixed one at a number of calls."""
    if setting < 1:
        found = ds.log_prob(model, x, solver=ds.Adaptive(method, rtol=setting, atol=setting), trace=trace)
    else:
        nfe = int(setting) - (model.path.t_last != model.path.t_data)
        found = ds.log_prob(model, x, solver=f"{method}(frame='trig')", nfe=nfe, grid=GRID, trace=trace)
    error, bar = (found.value - exact).abs().mean(), found.stderr.mean()
    return float(found.nfe.mean()), int(found.nfe.max()), float(found.jvps.mean()), float(error), float(bar)


def standard(model: ds.Model, x: Tensor, exact: Tensor, method: str, trace: str, setting: float) -> Found:
    """torchdiffeq's dopri5 on the native clock, from alpha x at the last time."""
    path, calls, ode = model.path, [0], model.as_ode()
    how = Exact() if trace == "exact" else Hutchinson(1)
    probe = how.directions(x.shape, Key(0), x)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        out, found = how(lambda y: ode(t, y), state[0], probe)
        return out.clone(), found[:, 0].contiguous()

    times, alpha = torch.tensor([path.t_last, path.t_noise], dtype=torch.float64), float(path.alpha(path.t_last))
    start = x * alpha, torch.zeros(len(x), dtype=torch.float64)
    end, growth = (part[-1] for part in odeint(field, start, times, rtol=setting, atol=setting))
    value = normal(end, path.prior_std()) + growth + x.shape[1] * math.log(alpha)
    return calls[0], calls[0], calls[0] * how.count(x.shape[1]), float((value - exact).abs().mean()), math.nan


def flow_matching(model: ds.Model, x: Tensor, exact: Tensor, method: str, trace: str, setting: float) -> Found:
    """`ODESolver.compute_likelihood` with dopri5, whose clock is CondOT's: backward products, not forward ones."""
    from flow_matching.solver import ODESolver

    calls, ode = [0], model.as_ode()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return ode(t, x)

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # its probe and its integral are made in that
    _, value = ODESolver(velocity_model=velocity).compute_likelihood(
        x.clone(), lambda end: normal(end, 1.0), None, "dopri5", setting, setting, torch.tensor([1.0, 0.0]).double(),
        exact_divergence=trace == "exact",
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    products = calls[0] * (x.shape[1] if trace == "exact" else 1)
    return calls[0], calls[0], products, float((value.detach() - exact).abs().mean()), math.nan


def runs(dim: int, path: str) -> list[tuple[Callable[..., Found], str, str, float]]:
    """(what, method, trace, tolerance or calls) for a mixture on a path."""
    whole = "exact" if dim <= 128 else "deflated(probes=16)"
    few = dim > 64  # where a call is dear
    made: list[tuple[Callable[..., Found], str, str, float]] = []
    made += [(ours, "abm-4", whole, 40), (ours, "abm-5", whole, 80)]
    made += [(ours, "abm-5", whole, 130), (ours, "rk4", whole, 60)] * (not few)
    made += [(ours, "dopri5", whole, tol) for tol in ((1e-3, 1e-5) if few else (1e-3, 1e-4, 1e-5, 1e-6))]
    made += [(ours, method, whole, 1e-5) for method in ("bosh3", "tsit5", "dopri8") if dim == 2]
    if dim > 2:
        kinds = [f"hutchinson(probes={n})" for n in (1, 8, 32)] + ["deflated(probes=16)"] * (not few)
        made += [(ours, "abm-4", trace, 40) for trace in (*kinds, "hutch++(probes=24)")]
    kinds = ["one Rademacher", "exact"] if dim == 2 else ["one Rademacher"]
    made += [(standard, "torchdiffeq dopri5", trace, 1e-5) for trace in kinds]
    if path == "condot":
        made += [(flow_matching, "flow_matching dopri5", trace, 1e-5) for trace in kinds]
    return made


def digits(method: str, trace: str, setting: float, count: int) -> list[Any]:
    """Bits per dimension of the first digits under the digits network, with the error bars of data and of probes."""
    integers, _, bins = DATA["digits"]()
    how: dict[str, Any] = {"solver": f"{method}(frame='trig')", "nfe": int(setting), "grid": GRID}
    if setting < 1:
        how = {"solver": ds.Adaptive(method, rtol=setting, atol=setting)}
    found = ds.bits_per_dim(ds.load("digits"), integers[:count], trace=trace, **bins, **how)
    mean, error = found.mean
    cost = [float(found.nfe.mean()), int(found.nfe.max()), float(found.jvps.mean())]
    return [*cost, f"{mean:.4f} +- {error:.4f} bits/dim", f"{float(found.stderr.mean()):.4f} bits/dim"]


def table(rows: dict[str, list[Any]], about: str) -> str:
    def cell(value: Any) -> str:
        if isinstance(value, str):
            return value
        if value != value:
            return "none"
        return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1e}"

    lines = [about, "", f"| {' | '.join(COLUMNS)} |", "|--" * len(COLUMNS) + "|"]
    for key, row in rows.items():
        lines.append("| " + " | ".join([*key.split(" | "), *map(cell, row[:-1]), f"{row[-1]:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def save(rows: dict[str, list[Any]], about: str) -> None:
    for name, text in (("likelihood.json", json.dumps(rows, indent=0)), ("likelihood.md", table(rows, about))):
        whole = RESULTS / f".{name}.partial"
        whole.write_text(text)
        os.replace(whole, RESULTS / name)


METRICS = {"calls, mean": ".3g", "calls, most": ".0f", "JVPs": ".3g", "error": ".1e", "error bar": ".1e", "s": ".1f"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2-D alone, and nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    about = (
        f"`python benchmarks/likelihood.py`: torch {torch.__version__}, one thread of a CPU ({processor()}); "
        f'fixed methods in "trig" on the grid {GRID}. {", ".join(f"{n} points in {d}-D" for d, n in SAMPLES.items())}. '
        "JVPs are those of a sample; seconds are of the whole batch, on a machine that may have been busy."
    )
    kept = RESULTS / "likelihood.json"
    rows: dict[str, list[Any]] = json.loads(kept.read_text()) if kept.exists() and not options.quick else {}
    recorder = Recorder("likelihood", None if options.quick else "", resume=True)
    records = recorder.table("log-densities", COLUMNS[:5], METRICS)

    def measured(names: list[str], work: Callable[[], Any]) -> None:
        key = " | ".join(names)
        if key in rows:
            return
        began = time.perf_counter()
        rows[key] = [*work(), time.perf_counter() - began]
        print(table({key: rows[key]}, "").splitlines()[-1], flush=True)
        records.add(names, rows[key], live=False)
        if not options.quick:
            save(rows, about)

    for dim in [2] if options.quick else SAMPLES:
        mixture = ring() if dim == 2 else random_means(dim)
        x = mixture.sample(SAMPLES[dim], seed=0)
        for path, predicts in NETWORK.items():
            model = mixture_model(mixture, path, predicts)
            exact = truth(mixture, model.path, x)
            ours(model, x[:1], exact[:1], "abm-4", "exact" if dim < 128 else "deflated(probes=4)", 4)  # warm
            for what, method, trace, setting in runs(dim, path):
                names = [f"{dim}-D", path, method, trace, f"{setting:.0e}" if setting < 1 else f"{setting:.0f}"]
                measured(names, partial(what, model, x, exact, method, trace, setting))
    if not options.quick:
        for method, trace, setting in (("dopri5", "hutchinson(probes=8)", 1e-4), ("abm-4", "hutchinson(probes=8)", 30),
                                       ("abm-4", "deflated(probes=16)", 30), ("abm-4", "exact", 30)):  # fmt: skip
            names = ["digits", "condot", method, trace, f"{setting:.0e}" if setting < 1 else f"{setting:.0f}"]
            measured(names, partial(digits, method, trace, setting, 48))


if __name__ == "__main__":
    main()
