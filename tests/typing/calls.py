"""Right and wrong calls of the public face, for mypy alone: `mypy` checks this file and nothing runs it.

A wrong call carries the error that a user's type checker shows. Since the check is strict, an error that is no longer
found fails it as well (`unused-ignore`).
"""

from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import diffsolve as ds

model = ds.adapt(lambda x, t: -x, path="condot", predicts="velocity")
shape = (4, 3, 8, 8)
options: dict[str, Any] = {"nfe": 5}


def right(net: nn.Module, pipe: diffusers.DiffusionPipeline, x: Tensor) -> None:
    """Every option is visible, and the result is of the right type."""
    assert_type(ds.sample(model, shape, solver="unipc-3", nfe=10, seed=0), Tensor)
    assert_type(ds.sample(model, shape, steps=10, seed=[1, 2, 3, 4], guidance=3.0, cond={"label": x}), Tensor)
    assert_type(ds.sample(model, shape, nfe=8, seed=torch.Generator()), Tensor)
    assert_type(ds.sample(pipe, shape, nfe=10), Tensor)
    assert_type(ds.sample(net, shape, nfe=10), Tensor)
    assert_type(ds.sample(model, noise=x, start=0.5, solver=ds.solvers.DPMpp(2), nfe=5), Tensor)
    assert_type(ds.sample(model, shape, steps=100, parallel=ds.Picard(window=10)), Tensor)
    assert_type(ds.solve(model, shape, solver="heun", steps=5, trajectory=True), ds.Run)
    assert_type(ds.solve(model, shape, solver="ddpm", steps=5, log_prob=True), ds.Run)
    assert_type(ds.solve(model, shape, solver=ds.Adaptive(rtol=1e-5)), ds.AdaptiveRun)
    assert_type(ds.solve(model, shape, solver=ds.AdaptiveSDE()), ds.AdaptiveRun)
    assert_type(ds.solve(model, shape, nfe=10, log_prob="model").log_prob, ds.LogProb)
    assert_type(ds.sample_with_log_prob(model, shape, solver="rk4", steps=5), tuple[Tensor, ds.LogProb])
    assert_type(ds.encode(model, x, solver="heun", steps=50, stop=0.2), Tensor)
    assert_type(ds.log_prob(model, x, trace="exact", seed=1), ds.LogProb)
    assert_type(ds.bits_per_dim(model, x, solver="rk4", steps=10), ds.BitsPerDim)
    assert_type(ds.begin(model, shape, solver="euler", steps=3), ds.Executor)
    assert_type(ds.tune(model, shape, nfe=6, iterations=10, seed=0), ds.Tableau)
    assert_type(ds.tune(model, shape, nfe=range(4, 7), seed=0), ds.Family)
    assert_type(ds.metrics.sweep(model, (3, 8, 8), nfe=[5, 10], num=8, grid="karras"), ds.metrics.Table)
    assert_type(ds.plan(model, "unipc-3", nfe=5), ds.Tableau)
    ds.sample(model, shape, **options)


def wrong(x: Tensor) -> None:
    """A name that is no option, a value of the wrong kind, an option that this call does not have."""
    ds.sample(model, shape, stepps=3)  # type: ignore[call-arg]
    ds.sample(model, shape, nfe="ten")  # type: ignore[arg-type]
    ds.sample(model, shape, nfe=10, sede=0)  # type: ignore[call-arg]
    ds.sample("digits", shape, nfe=10)  # type: ignore[arg-type]
    ds.sample(model, shape, nfe=10, gradient="exact")  # type: ignore[arg-type]
    ds.sample(model, shape, nfe=10, trajectory=True)  # type: ignore[call-arg]
    ds.solve(model, shape, gride="karras", nfe=10)  # type: ignore[call-overload]
    ds.solve(model, shape, nfe=10, trajectory="nodes")  # type: ignore[call-overload]
    ds.encode(model, x, stepps=3)  # type: ignore[call-arg]
    ds.log_prob(model, x, stepps=3)  # type: ignore[call-arg]
    ds.bits_per_dim(model, x, stepps=3)  # type: ignore[call-arg]
    ds.begin(model, shape, steps=3, callback=print)  # type: ignore[call-arg]
    ds.tune(model, shape, nonsense=1)  # type: ignore[call-overload]
    ds.metrics.sweep(model, shape, nfe=[5], nonsense=1)  # type: ignore[call-arg]
