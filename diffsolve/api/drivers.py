"""The drivers of a run: each declares the options that it accepts, and `driver_for` refuses the rest.

No option is silently ignored; `tests/api/test_drivers.py` checks every driver with every option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive import Adaptive, AdaptiveRun, AdaptiveSDE, solve_ode, solve_sde
from diffsolve.common.checks import described
from diffsolve.common.options import given
from diffsolve.common.tensors import flat
from diffsolve.dynamics import Correction
from diffsolve.execute import Executor, executor_at_end
from diffsolve.execute.graph import replay
from diffsolve.execute.loop import Observers, solve_in_order
from diffsolve.execute.plan import DEFAULT_SOLVER, own_times, refuse
from diffsolve.execute.results import DenoisedEstimate, Run, Step, seed_of
from diffsolve.execute.start import Problem, begin_run
from diffsolve.execute.watch import Watch, bar, check_finite
from diffsolve.gradients import differentiable
from diffsolve.gradients.adaptive import attached
from diffsolve.likelihood import DensityRun, sample_with_density
from diffsolve.models import Guidance
from diffsolve.models.conditions import Shared, leaves, mapped
from diffsolve.parallel.base import Calls
from diffsolve.solvers import resolve
from diffsolve.tableau import Tableau

__all__ = ["DRIVERS", "Driver", "driver_for"]

Options = Mapping[str, Any]

ALWAYS = frozenset({"noise", "solver", "seed", "index", "cond", "guidance", "dtype", "device", "progress", "check"})
PLANNED = frozenset({"steps", "nfe", "grid", "start", "stop"})


@dataclass(frozen=True)
class Driver:
    """A mode of running: sequential, parallel, adaptive and so on."""

    name: str
    """The option or solver that selects it, as in error messages."""
    accepts: frozenset[str]
    """The options that it honours; all others are refused."""
    wanted: Callable[[Options], bool]
    """Whether the options select it."""
    solve: Callable[[Problem, Options], Any]
    in_step: bool = False
    """Whether it takes guidance for which all samples must be at the same call."""


def driver_for(options: Options) -> Driver:
    """The first driver that the options select.

    Raises:
        ValueError: if an option is given that the driver does not accept.
    """
    driver = next(driver for driver in DRIVERS if driver.wanted(options))
    for name, value in given(options).items():
        if name not in driver.accepts:
            raise ValueError(f"{name}={described(value)} cannot be given with {driver.name}")
    guidance = options.get("guidance")
    if isinstance(guidance, Guidance) and not driver.in_step:
        guidance.check_free(driver.name)
    return driver


def _sequential(problem: Problem, options: Options) -> Run:
    hook, corrector = options.get("hook"), options.get("corrector")
    if corrector is not None:
        problem.guidance.check_free("corrector")
        refuse("corrector", nfe=options.get("nfe"), hook=hook, log_prob=options.get("log_prob") or None)
    if problem.guidance.plus:
        refuse("guidance with plus=True", hook=hook)
    if options.get("variance") is not None:
        refuse("variance", corrector=corrector, log_prob=options.get("log_prob") or None)
    ex = begin_run(problem, {**options, "prediction": None if hook is None else "denoised"})
    if options.get("log_prob") and not ex.tableau.stochastic:
        raise ValueError(f"solver must be stochastic with log_prob=True, got {ex.tableau.solver}")
    names = ("hook", "callback", "trajectory", "log_prob", "progress", "check", "max_calls", "variance")
    observers = Observers(**{name: options[name] for name in names if name in options})
    correct = None if corrector is None else Correction(corrector, problem.model, ex.tableau, problem.guidance)
    return solve_in_order(ex, problem, observers, correct)


def _parallel(problem: Problem, options: Options) -> Run:
    parallel, trajectory = options["parallel"], options.get("trajectory", False)
    ex = begin_run(problem, options)
    if parallel.ranks is not None:
        if problem.seed is None:
            raise ValueError("seed must be given with ranks, the same on each of them, got None")
        parallel.ranks.agree(ex, problem, parallel)
    calls = Calls(
        problem.model, ex.tableau, ex.y, problem.guidance, problem.cond, max_batch=parallel.max_batch,
        ranks=parallel.ranks, check=options.get("check", False),
    )  # fmt: skip
    points = flat(ex.y).repeat(ex.tableau.nfe + 1, 1, 1) if trajectory else None
    with torch.no_grad(), bar(options.get("progress", False), ex.tableau.nfe) as progress:
        ex, rounds = parallel.run(ex, calls, progress.update, points)
    if points is not None:
        kept = slice(None) if trajectory == "calls" else torch.from_numpy(np.insert(ex.tableau.node >= 0, 0, True))
        points = points[kept]
        points = points.view(len(points), *ex.y.shape)
    each = -(-rounds.calls // max(1, len(ex.y)))
    return Run(ex.y, ex.tableau, each, seed_of(problem.seed, ex.key), points, None, ex, rounds)


def _as_graph(problem: Problem, options: Options) -> Run:
    """The run as a CUDA graph."""
    model, cond, guidance, ex = problem.model, problem.cond, problem.guidance, begin_run(problem, options)
    kinds = {"cond": cond, "given": guidance.given}
    # Tensors at any depth are inputs, which a replay copies in; what is left of the conditions is part of the key.
    inputs: dict[Any, Any] = {**ex.start}
    for kind, values in kinds.items():
        found = [leaf.value if isinstance(leaf, Shared) else leaf for leaf in leaves(values)]
        inputs.update({(kind, i): tensor for i, tensor in enumerate(found)})
        inputs[kind] = mapped(values, type)

    def filled(kind: str, inputs: Mapping[Any, Any]) -> Any:
        place = count()

        def tensor(leaf: Tensor | Shared) -> Tensor | Shared:
            value = inputs[kind, next(place)]
            return Shared(value) if isinstance(leaf, Shared) else value

        return mapped(kinds[kind], tensor)

    def work(inputs: Mapping[Any, Any]) -> Tensor:
        again = {kind: filled(kind, inputs) for kind in kinds}
        network = guidance.outputs(model, ex.tableau)
        run = ex.again(inputs)
        with torch.no_grad():
            while not run.done:
                run.take(run.blurred(network(run.call, *run.inputs(), again["cond"], again["given"])))
        return run.y

    how = ex.key if ex.tableau.stochastic else None, guidance.key(ex.tableau)
    about = (ex.tableau, replace(model, net=replay), *how)
    with bar(options.get("progress", False), ex.tableau.nfe) as progress:
        x = replay(model.net, work, inputs, about)
        progress.update(ex.tableau.nfe)
    if options.get("check"):
        check_finite(x, "in the result of the graph, whose calls cannot be checked one by one")
    ex.finish(x)
    return Run(x, ex.tableau, ex.tableau.nfe, seed_of(problem.seed, ex.key), None, None, ex)


def _differentiable(problem: Problem, options: Options) -> Run:
    solver = options.get("solver", DEFAULT_SOLVER)
    ex = begin_run(problem, options)
    method = None if isinstance(solver, Tableau) else resolve(solver)[0]
    x = ex.y if problem.noise is None else problem.noise.to(ex.y)
    with bar(options.get("progress", False), ex.tableau.nfe) as progress:
        watch = _WatchOnce(problem, ex, options, progress)
        s, x = differentiable(
            problem.model, ex.tableau, method, x, ex.key, problem.cond, problem.guidance, options["gradient"], watch
        )
    finished = executor_at_end(ex.program, s, x, ex.key)
    return Run(x, ex.tableau, ex.tableau.nfe, seed_of(problem.seed, ex.key), None, None, finished)


class _WatchOnce:
    """Sees each call of a differentiable run once, though checkpointing repeats some of them."""

    def __init__(self, problem: Problem, ex: Executor, options: Options, progress: Any) -> None:
        self.tableau, self.progress, self.calls = ex.tableau, progress, 0
        self.check, self.callback = options.get("check", False), options.get("callback")
        self.estimate = DenoisedEstimate(problem.model, ex.tableau, needed=False) if self.callback else None

    def __call__(self, i: int, y: Tensor, out: Tensor, after: Tensor) -> None:
        """Call i: the network's input, its output, and the next input or the result."""
        if i < self.calls:
            return
        self.calls = i + 1
        if self.check:
            check_finite(out, f"in call {i} of {self.tableau.nfe}, at t={self.tableau.calls[i, 0]:.6g}")
        if self.callback and self.estimate:
            step: Step = self.estimate(i, y.detach(), out.detach())
            self.callback(replace(step, x=after.detach()))
        self.progress.update()


def _adaptive(problem: Problem, options: Options) -> AdaptiveRun:
    solver, grid, trajectory = options["solver"], options.get("grid"), options.get("trajectory", False)
    gradient, times = options.get("gradient"), own_times(grid)
    if (trajectory is True) != (times is not None) or trajectory == "calls":
        raise ValueError(
            "with an adaptive solver trajectory must be True and grid the times to keep, or neither be given, got "
            f"trajectory={trajectory!r}, grid={described(grid)}"
        )
    start, stop = _from_to(problem, times)
    if gradient == "adjoint" and trajectory:
        raise ValueError("gradient must be 'direct' or 'checkpoint' with a trajectory, got 'adjoint'")
    x = problem.state(start)
    if gradient is not None and problem.noise is not None:
        x = problem.noise.to(x)
    with bar(options.get("progress", False), None) as progress:
        run = solve_ode(
            problem.model, x, solver, start, stop, times=times, cond=problem.cond, guidance=problem.guidance,
            gradient=None if gradient == "adjoint" else gradient, adjoint=attached if gradient == "adjoint" else None,
            watch=Watch(options.get("check", False), progress),
        )  # fmt: skip
    return replace(run, seed=seed_of(problem.seed, problem.key))


def _adaptive_sde(problem: Problem, options: Options) -> AdaptiveRun:
    start, stop = _from_to(problem, None)
    with torch.no_grad(), bar(options.get("progress", False), None) as progress:
        run = solve_sde(
            problem.model, problem.state(start), options["solver"], start, stop, problem.key, cond=problem.cond,
            guidance=problem.guidance, brownian=options.get("brownian"),
            watch=Watch(options.get("check", False), progress),
        )  # fmt: skip
    return replace(run, seed=seed_of(problem.seed, problem.key))


def _from_to(problem: Problem, times: np.ndarray | None) -> tuple[float, float]:
    """The start and stop of an adaptive solve: the ends of a custom grid, or those of the problem."""
    if times is not None:
        refuse("a custom grid", start=problem.start, stop=problem.stop)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"grid must be a list of at least 2 times, got shape {times.shape}")
        return float(times[0]), float(times[-1])
    path = problem.model.path
    start = path.t_noise if problem.start is None else float(problem.start)
    return start, path.t_data if problem.stop is None else float(problem.stop)


def _with_density(problem: Problem, options: Options) -> DensityRun:
    solver = options.get("solver", DEFAULT_SOLVER)
    if isinstance(solver, AdaptiveSDE):
        raise ValueError(f"solver must be deterministic with log_prob='model', got {solver}")
    x = problem.state(problem.model.path.t_noise)
    planned = {name: options.get(name) for name in ("steps", "nfe", "grid", "trace")}
    with torch.no_grad(), bar(options.get("progress", False), None) as progress:
        x, log_prob = sample_with_density(
            problem.model, x, solver, **planned, key=problem.key, cond=problem.cond, guidance=problem.guidance,
            watch=Watch(options.get("check", False), progress),
        )  # fmt: skip
    return DensityRun(x, log_prob, seed_of(problem.seed, problem.key))


DRIVERS = (
    Driver(
        "log_prob='model'",
        (ALWAYS | {"steps", "nfe", "grid", "log_prob", "trace"}),
        lambda options: options.get("log_prob") == "model",
        _with_density,
    ),
    Driver(
        "an adaptive SDE solver",
        ALWAYS | {"start", "stop", "brownian"},
        lambda options: isinstance(options.get("solver"), AdaptiveSDE),
        _adaptive_sde,
    ),
    Driver(
        "an adaptive solver",
        ALWAYS | {"start", "stop", "grid", "trajectory", "gradient"},
        lambda options: isinstance(options.get("solver"), Adaptive),
        _adaptive,
    ),
    Driver(
        "gradient",
        ALWAYS | PLANNED | {"gradient", "callback"},
        lambda options: options.get("gradient") is not None,
        _differentiable,
    ),
    Driver(
        "parallel",
        ALWAYS | PLANNED | {"parallel", "trajectory"},
        lambda options: options.get("parallel") is not None,
        _parallel,
    ),
    Driver("graph", ALWAYS | PLANNED | {"graph"}, lambda options: bool(options.get("graph")), _as_graph),
    Driver(
        "a sequential run",
        ALWAYS | PLANNED
        | {"hook", "callback", "corrector", "trajectory", "log_prob", "brownian", "max_calls", "state", "variance"},
        lambda options: True,
        _sequential,
        in_step=True,
    ),
)  # fmt: skip
"""In order of precedence; the last is the default."""
