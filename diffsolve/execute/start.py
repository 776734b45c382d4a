"""The problem to be solved, and an executor at its first call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from diffsolve.common.checks import exactly_one, required
from diffsolve.common.deprecation import renamed
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.execute.bind import bind
from diffsolve.execute.executor import Executor, State
from diffsolve.execute.network import network_times
from diffsolve.execute.options import BeginOptions, ModelLike, Shape
from diffsolve.execute.plan import DEFAULT_SOLVER, plan, refuse
from diffsolve.models import Guidance, Model, as_model
from diffsolve.models.conditions import conditions
from diffsolve.models.hints import warn_training
from diffsolve.noise import Key, SeedLike, Stream
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import check_prediction

__all__ = ["Problem", "begin", "begin_run", "initial", "planned"]


@dataclass(frozen=True)
class Problem:
    """The problem, whichever driver solves it: a model, the initial state, seeds, conditions and guidance."""

    model: Model
    shape: Shape | None
    noise: Tensor | None
    start: float | None
    """The initial time, on the path's clock; None for its noise end."""
    stop: float | None
    """The final time; None for the data."""
    key: Key
    seed: SeedLike | None
    """The seed as given."""
    cond: Mapping[str, Any]
    guidance: Guidance
    dtype: torch.dtype | None
    device: str | torch.device | None

    @classmethod
    def of(cls, model: ModelLike, shape: Shape | None, options: Mapping[str, Any]) -> Problem:
        """The problem defined by options of `solve`."""
        seed, state = options.get("seed"), options.get("state")
        model = as_model(model)
        if options.get("gradient") is None:  # with one the network may be in training
            warn_training(model.net)
        return cls(
            model,
            shape,
            options.get("noise"),
            options.get("start"),
            options.get("stop"),
            Key.of(seed, options.get("index", 0)) if state is None else state.key,
            seed,
            conditions("cond", options.get("cond")),
            Guidance.of(options.get("guidance")),
            options.get("dtype"),
            _device(options.get("device")),
        )

    @property
    def sizes(self) -> Shape | None:
        """The shape of the states, from the noise or as given; it is checked when the state is made."""
        return self.shape if self.noise is None else getattr(self.noise, "shape", None)

    def state(self, start: float) -> Tensor:
        """The state at the time `start`: the given one, or noise from the prior.

        Raises:
            ValueError: if `start` is given without the state at that time.
        """
        self.check_start()
        return initial(self.model, start, self.shape, self.noise, self.key, self.dtype, self.device)

    def check_start(self) -> None:
        """Raise a ValueError if `start` is given without the state at that time."""
        if self.start is not None and self.noise is None:
            raise ValueError(f"noise must be given with start={self.start!r}, as the state at that time, got None")


@shows(BeginOptions, solver=DEFAULT_SOLVER, index=0, guidance=1.0)
def begin(model: ModelLike, shape: Shape | None = None, **options: Unpack[BeginOptions]) -> Executor:
    """An executor at its first call, for a program with its own loop; see `diffsolve.execute.executor`.

        ex = ds.begin(model, (8, 3, 32, 32), solver="unipc-3", nfe=10, seed=0)
        while not ex.done:
            ex.advance(net(*ex.query()))
        ex.y

    A loop that guides by itself gives `ex.tableau.guides` their part: the scale of call i is 1 + guides_i (scale - 1).
    They are 1 but for runs that `ds.tune(also=("guides",))` learned.

    Args:
        prediction: the prediction type that `advance` gets, such as "denoised"; the network's if None.
        guidance: the scale of classifier-free guidance of the outputs; see `plan`.

    The other options are those of `solve`.
    """
    given = renamed("begin", options, {"takes": "prediction"})
    refuse_unknown("begin", given, BeginOptions)
    return begin_run(Problem.of(model, shape, given), given)


def begin_run(problem: Problem, options: Mapping[str, Any]) -> Executor:
    """The executor of a problem, on the tableau planned from the options."""
    model, state, prediction = problem.model, options.get("state"), options.get("prediction")
    if prediction is not None:
        check_prediction("prediction", prediction)
    if state is not None:
        required(isinstance(state, State), "state", state, "a ds.State", TypeError)
        fresh = {name: options.get(name) for name in ("noise", "seed", "dtype", "device")}
        refuse("state", shape=problem.shape, **fresh)
    tableau = planned(problem, options, problem.sizes if state is None else state.y.shape)
    two_states = state is not None and state.call == 0 and state.s is not state.y
    program = bind(tableau, model, prediction, two_states=two_states)
    x = problem.state(float(tableau.times[0])) if state is None else state.y
    return Executor(
        program,
        x,
        problem.key,
        state=state,
        network_time=network_times(model, tableau, x),
        dtype=model.dtype,
        brownian=options.get("brownian"),
    )


def planned(problem: Problem, options: Mapping[str, Any], shape: Shape | None) -> Tableau:
    """The tableau of a run of states of that shape: the one given as solver, or planned from the options."""
    model, solver = problem.model, options.get("solver", DEFAULT_SOLVER)
    given = {name: options.get(name) for name in ("steps", "nfe", "grid", "start", "stop")}
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", **given)
        return solver
    prediction = options.get("prediction")
    answered = model if prediction is None else replace(model, predicts=prediction)
    return plan(answered, solver, **given, guidance=problem.guidance.level, shape=shape)


def _device(device: Any) -> torch.device | None:
    """The device, if it is given and this machine has it."""
    if device is None:
        return None
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError):  # PyTorch's words depend on how it was built
        found = None
    required(
        found is not None and not isinstance(device, bool),
        "device",
        device,
        "one of this machine's, as 'cpu' or 'cuda:0'",
    )
    return found


def initial(
    model: Model,
    start: float,
    shape: Shape | None,
    noise: Tensor | None,
    key: Key,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> Tensor:
    """The initial state: the given one, or noise from the prior."""
    exactly_one(shape=shape, noise=noise)
    if dtype is not None:
        floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        required(floating, "dtype", dtype, "a floating torch.dtype", TypeError)
    if noise is not None:
        required(
            isinstance(noise, Tensor) and noise.is_floating_point(), "noise", noise, "a floating tensor", TypeError
        )
        required(noise.dim() > 0, "noise", noise, "of shape (B, ...)")
        wide = torch.float64 if noise.dtype == torch.float64 else torch.float32
        return noise.detach().to(noise.device if device is None else device, wide if dtype is None else dtype)
    if dtype is None:
        dtype = model.state_dtype
    required(isinstance(shape, Sequence), "shape", shape, "a sequence of sizes, the batch first", TypeError)
    assert shape is not None
    x = key.normal(tuple(shape), stream=Stream.PRIOR, dtype=dtype, device=model.device if device is None else device)
    return x.mul_(model.path.prior_std(start))
