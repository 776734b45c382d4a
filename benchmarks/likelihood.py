"""Error of log-densities in nats against network calls: docs/likelihood.md says what the columns are.

python benchmarks/likelihood.py > benchmarks/results/likelihood.md            (some minutes on one core)
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import torch
from torch import Tensor
from torchdiffeq import odeint

import diffsolve as ds
from diffsolve.noise import Key
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means, ring
from diffsolve.traces import Hutchinson

NETWORK = {"condot": "velocity", "edm": "denoised", "vp": "noise"}


def normal(x: Tensor, deviation: float) -> Tensor:
    return -(x / deviation).square().sum(1) / 2 - x.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))


def truth(mixture: GaussianMixture, path: ds.paths.Path, x: Tensor) -> Tensor:
    """log p_0(x) - log p_T(x_T) + log N(x_T; 0, prior): the density of the model with its own prior."""
    level = float(path.alpha(path.t_noise)), float(path.sigma(path.t_noise))
    end = mixture.flow(x, (1.0, 0.0), level)
    return mixture.log_prob(x) - mixture.log_prob(end, *level) + normal(end, path.prior_std())


def standard(model: ds.Model, x: Tensor, tol: float) -> tuple[Tensor, int]:
    """torchdiffeq's dopri5 on the native clock with one Rademacher probe, from alpha x at the last time."""
    path, calls, ode, trace = model.path, [0], model.as_ode(), Hutchinson(1)
    probe = trace.directions(x.shape, Key(0), x)

    def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls[0] += 1
        out, found = trace(lambda y: ode(t, y), state[0], probe)
        return out.clone(), found[:, 0].contiguous()

    times, alpha = torch.tensor([path.t_last, path.t_noise], dtype=torch.float64), float(path.alpha(path.t_last))
    start = x * alpha, torch.zeros(len(x), dtype=torch.float64)
    end, growth = (part[-1] for part in odeint(field, start, times, rtol=tol, atol=tol))
    return normal(end, path.prior_std()) + growth + x.shape[1] * math.log(alpha), calls[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 64])
    parser.add_argument("--samples", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| data | path | method | trace | tol or steps | calls, mean | most | error, nats | error bar | s |")
    print("|--|--|--|--|--|--|--|--|--|--|")
    for dim in options.dims:
        mixture = ring() if dim == 2 else random_means(dim)
        x = mixture.sample(options.samples, seed=0)
        for path, predicts in NETWORK.items():
            model = mixture_model(mixture, path, predicts)
            exact = truth(mixture, model.path, x)
            runs = [("dopri5", "exact" if dim <= 128 else "hutchinson(probes=8)", tol) for tol in (1e-3, 1e-5, 1e-6)]
            runs += (
                [("dopri5", "hutchinson(probes=8)", 1e-3), ("dopri5", "hutch++(probes=24)", 1e-3)] if dim > 2 else []
            )
            runs += [("tsit5", "exact", 1e-5), ("dopri8", "exact", 1e-5)] if dim == 2 else []
            for method, trace, tol in runs:
                began = time.perf_counter()
                found = ds.log_prob(model, x, solver=ds.Adaptive(method, rtol=tol, atol=tol), trace=trace)
                report(dim, path, method, trace, f"{tol:.0e}", found, exact, began)
            began = time.perf_counter()
            found = ds.log_prob(model, x, solver="rk4", steps=12, grid="angle", trace=runs[0][1])
            report(dim, path, "rk4", runs[0][1], "12", found, exact, began)
            began = time.perf_counter()
            value, calls = standard(model, x, 1e-5)
            cost = f"{calls} | {calls} | {(value - exact).abs().mean():.1e} | none | {time.perf_counter() - began:.1f}"
            print(f"| {dim}-D | {path} | torchdiffeq dopri5 | one Rademacher | 1e-05 | {cost} |", flush=True)


def report(
    dim: int, path: str, method: str, trace: str, setting: str, found: ds.LogProb, exact: Tensor, began: float
) -> None:
    error, bar = (found.value - exact).abs().mean(), found.stderr.mean()
    cost = f"{found.nfe.mean():.0f} | {found.nfe.max()} | {error:.1e} | {bar:.1e} | {time.perf_counter() - began:.1f}"
    print(f"| {dim}-D | {path} | {method} | {trace} | {setting} | {cost} |", flush=True)


if __name__ == "__main__":
    main()
