"""What a solver is: a value that writes down a tableau for a path and a grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np

from diffsolve.common.checks import choice, required
from diffsolve.grids import Grid
from diffsolve.paths import Path
from diffsolve.tableau import Draft, Tableau
from diffsolve.tableau.ends import may_call
from diffsolve.tableau.frames import FRAMES, Frame

__all__ = ["Solver", "frame_named"]


class Solver(ABC):
    """A frozen dataclass of options; `solver(path, times)` is its tableau. It keeps nothing else."""

    grid: ClassVar[str | Grid | None] = None
    """The grid that goes with it, if it has one of its own; a property where it depends on the options."""

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Solver.__repr__  # type: ignore[method-assign]  # dataclasses leave one of the class's own alone

    def __repr__(self) -> str:
        return str(self)

    @property
    @abstractmethod
    def order(self) -> int:
        """The order of global convergence between interior times, as run (its first steps included)."""

    def __str__(self) -> str:
        """The class with the options that are not at their defaults."""
        options = ((f.name, getattr(self, f.name), f.default) for f in fields(self) if f.repr)  # type: ignore[arg-type]
        given = ", ".join(f"{name}={_brief(value)}" for name, value, default in options if value != default)
        return f"{type(self).__name__}({given})"

    @property
    def calls(self) -> int:
        """Network calls in a step away from the ends."""
        return 1

    def suited(self, predicts: str, guidance: float, size: int | None = None, told_two: bool = False) -> Solver:
        """The solver for a network of that prediction, guided at that scale, on samples of that many numbers.

        Itself, unless its rule asks for them. `told_two`: whether the network is a flow map, told where to go.
        """
        return self

    def meet(self, model: Any, guidance: float) -> None:
        """Warn if the solver is not for that model, guided at that scale; most are for all."""
        return

    @abstractmethod
    def write(self, draft: Draft, call_last: bool) -> None:
        """Add the calls of a run over `draft.grid` to the draft."""

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        """The tableau for the nodes `times` on the path's clock, in either direction.

        Args:
            call_last: whether the network may be called at the last node. By default, wherever the path says
                that its clock reaches the network.
        """
        times = np.ascontiguousarray(times, dtype=np.float64)
        required(times.ndim == 1 and len(times) >= 2, "times", times, "a list of at least 2 times")
        rising = np.diff(times) > 0
        if np.isnan(times).any() or not (rising.all() or (not rising.any() and (np.diff(times) < 0).all())):
            raise ValueError(f"times must be strictly rising or strictly falling, got {times.tolist()}")
        if not path.within(times):
            raise ValueError(
                f"times must be between t_noise={path.t_noise} and t_data={path.t_data} of {path}, got {times.tolist()}"
            )
        if call_last is None:
            call_last = may_call(path, float(times[-1]))
        draft = Draft(path, path.nodes(times))
        self.write(draft, call_last)
        return draft.build(str(self), self.order)


def _brief(value: object) -> str:
    return str(value) if isinstance(value, Solver) else repr(value)


def frame_named(name: str) -> Frame:
    """The frame of that name, or a ValueError that lists them."""
    return FRAMES[choice("frame", name, FRAMES)]
