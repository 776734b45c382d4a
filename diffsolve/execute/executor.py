"""The executor: a small state machine that gives (y, t), takes the network's output, and updates the state.

`ds.sample` is a loop around it. A program with its own loop (a scheduler of another library, a serving engine) drives
it directly:

    ex = ds.begin(model, (8, 3, 32, 32), solver="unipc-3", nfe=10, seed=0)
    while not ex.done:
        ex.advance(net(*ex.query()))
    ex.y                                                    # the samples
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffsolve import kernels
from diffsolve.common.checks import choice, instance, integer, required
from diffsolve.common.files import read_tensors, reading, write_tensors
from diffsolve.execute.bind import Program
from diffsolve.kernels import Guided, Row
from diffsolve.models.guidance import Memory
from diffsolve.noise import Draw, Key, Stream
from diffsolve.tableau import Tableau

__all__ = ["BrownianPath", "Executor", "State", "executor_at_end"]

FORMAT, BEFORE = "diffsolve.state/2", "diffsolve.state/1"  # which did not say of which run it was


class BrownianPath(Protocol):
    """A Brownian path of the state's shape: `ds.Brownian`, or torchsde's `BrownianInterval`."""

    shape: Any

    def __call__(self, ta: float, tb: float) -> Tensor:
        """W(tb) - W(ta)."""


def _check_path(brownian: BrownianPath, tableau: Tableau, x: Tensor | None) -> None:
    assert x is not None
    shape = tuple(brownian.shape)
    required(shape == tuple(x.shape), "brownian.shape", shape, f"that of the state, {tuple(x.shape)}")
    noisy = tableau.weights[:, :, -1].any(-1)
    one_sde = not tableau.entry[:, 1].any() and bool((tableau.clock[noisy, 1] > tableau.clock[noisy, 0]).all())
    required(one_sde, "solver", tableau.solver, "one whose noise is that of one SDE where brownian is given")


@dataclass(frozen=True)
class State:
    """A run between two calls, from which it resumes bit for bit. `save` writes it as safetensors."""

    call: int
    """The index of the next call."""
    s: Tensor
    y: Tensor
    history: tuple[Tensor, ...]
    """Past predictions, newest first."""
    key: Key
    run: Mapping[str, str] | None = None
    """What identifies the run, `Program.identity`: a state continues no other. None for one that was made by hand."""
    memory: Tensor | None = None
    """What guidance with momentum carries from call to call; see `diffsolve.guidance`."""

    def __post_init__(self) -> None:
        integer("call", self.call, 0)
        instance("key", self.key, Key, "a Key")
        floating = isinstance(self.s, Tensor) and self.s.is_floating_point() and self.s.dim() > 0
        required(floating, "s", self.s, "a floating tensor (B, ...)", TypeError)
        for name, other in (("y", self.y), *((f"history[{j}]", h) for j, h in enumerate(self.history))):
            fits = isinstance(other, Tensor) and (other.shape, other.dtype) == (self.s.shape, self.s.dtype)
            required(fits, name, other, f"of the shape {tuple(self.s.shape)} and dtype {self.s.dtype} of s")
        if self.memory is not None:
            instance("memory", self.memory, Tensor, "a tensor")
            required(self.memory.shape == self.s.shape, "memory", self.memory, f"of the shape {tuple(self.s.shape)}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a safetensors file, atomically."""
        tensors = {"s": self.s, **({} if self.y is self.s else {"y": self.y})}
        tensors.update({f"history.{j}": h for j, h in enumerate(self.history)})
        tensors.update({} if self.memory is None else {"memory": self.memory})
        run = None if self.run is None else dict(self.run)
        write_tensors(path, tensors, "state", {"call": self.call, **asdict(self.key), "run": run, "format": FORMAT})

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> State:
        """Read a file of `save`.

        Raises:
            ValueError: if the file is not a saved state, naming it.

        Warns:
            UserWarning: if the file is of diffsolve 0.1, and does not say of which run it is.
        """
        accepted = "one that State.save wrote"
        tensors, about = read_tensors(path, "state", str(device), accepted)
        with reading(path, accepted):
            choice("format", about.get("format"), [FORMAT, BEFORE])
            seed = about["seed"] if isinstance(about["seed"], int) else tuple(about["seed"])
            kept = len(tensors) - 1 - len({"y", "memory"} & {*tensors})
            history = tuple(tensors[f"history.{j}"] for j in range(kept))
            flags = {name: choice(name, about.get(name, False), [False, True]) for name in ("antithetic", "shared")}
            key, run = Key(seed, about["index"], **flags), about.get("run")
            named = run is None or (isinstance(run, dict) and all(isinstance(value, str) for value in run.values()))
            required(named, "run", run, "the texts that identify a run")
            s, memory = tensors["s"], tensors.get("memory")
            state = cls(about["call"], s, tensors.get("y", s), history, key, run, memory)
        if about["format"] == BEFORE:
            warnings.warn(
                f"state {os.fspath(path)!r} is of diffsolve 0.1, which did not keep of which run it was: that it is "
                "continued by the same solver, grid and path is not checked",
                stacklevel=2,
            )
        return state


class Executor:
    """Runs a program: `query` it, call the network, pass the output to `advance`, until `done`.

    `advance` writes in place to the tensors that `query` and `y` return: clone them to keep them. There is no host
    synchronisation, and after the first calls no allocation except for noise.

    Args:
        program: from `bind`.
        x: the initial state, which is not written to. Or
        state: the state at which an earlier run of the same program stopped.
        network_time: (N,) or (N, 2), the network's clock at every call; the path's own clock if None.
        dtype: of the network's input; the state's if None.
        brownian: the source of the noise, in place of draws keyed by the row. It is not part of `state`.

    Raises:
        ValueError: if the tableau's noise is not that of one Brownian path, `brownian` is of another shape, or
            `state` is of another run or `state.call` out of range.
    """

    def __init__(
        self,
        program: Program,
        x: Tensor | None,
        key: Key,
        *,
        state: State | None = None,
        network_time: Tensor | None = None,
        dtype: torch.dtype | None = None,
        brownian: BrownianPath | None = None,
    ) -> None:
        self.program, self.tableau, self.key = program, program.tableau, key
        if brownian is not None:
            _check_path(brownian, self.tableau, x if state is None else state.y)
        self._brownian = brownian
        self._scratch: Tensor | None = None
        self.memory = Memory()
        if state is None:
            assert x is not None
            self.call = 0
            self._s = self._y = x.clone()
            self._history: tuple[Tensor, ...] = ()
        else:
            program.accept(state.run)
            integer("state.call", state.call, 0, self.tableau.nfe)
            self.call, self.key = state.call, state.key
            self._s = state.s.clone()
            self._y = self._s if state.y is state.s else state.y.clone()
            self._history = tuple(h.clone() for h in state.history)
            self.memory.difference = None if state.memory is None else state.memory.clone()
        y = self._y
        self._rows = program.rows_on(y)
        self._clock = torch.from_numpy(self.tableau.calls[:, 0].copy()) if network_time is None else network_time
        self._network_times = self._clock[:, None].expand(-1, len(y), *self._clock.shape[1:]).unbind()
        # The network's input, where it is not y itself.
        self._network_input = (
            torch.empty_like(y, dtype=dtype) if program.scaled or dtype not in (None, y.dtype) else None
        )
        if state is None:
            self._update(self._rows[0], y, ())
        elif self._network_input is not None:
            torch.mul(y, self._rows[self.call].scale, out=self._network_input)

    @property
    def done(self) -> bool:
        """Whether every call has been made; y is then the result."""
        return self.call == self.tableau.nfe

    @property
    def y(self) -> Tensor:
        """The state at the next call; the result once `done`."""
        return self._y

    def query(self) -> tuple[Tensor, ...]:
        """(x, t): the network's input, and its clock for each sample, shape (B,); (x, t, s) if it is told two times.

        Raises:
            ValueError: if the run is done.
        """
        x, times = self.inputs()
        return (x, times) if times.dim() == 1 else (x, *times.unbind(-1))

    def inputs(self) -> tuple[Tensor, Tensor]:
        """`query` with the times in one tensor, (B,) or (B, 2), as `Model.call` takes them."""
        if self.done:
            raise self._over("query")
        return self._y if self._network_input is None else self._network_input, self._network_times[self.call]

    @property
    def state(self) -> State:
        """A copy of the state, from which the run resumes."""
        s = self._s.clone()
        y = s if self._y is self._s else self._y.clone()
        history = tuple(h.clone() for h in self._history)
        memory = None if self.memory.difference is None else self.memory.difference.clone()
        return State(self.call, s, y, history, self.key, self.program.identity, memory)

    @property
    def start(self) -> dict[Any, Tensor]:
        """The initial state, before the first call: the tensors s and, if it differs, y."""
        return {"s": self._s} if self._y is self._s else {"s": self._s, "y": self._y}

    def again(self, start: Mapping[Any, Any]) -> Executor:
        """An executor of the same run at its first call, from tensors such as those of `start`."""
        state = State(0, start["s"], start.get("y", start["s"]), (), self.key)
        dtype = None if self._network_input is None else self._network_input.dtype
        return Executor(self.program, None, self.key, state=state, network_time=self._clock, dtype=dtype)

    def correct(self, y: Tensor) -> None:
        """Replace the network's input, and the state too where they are the same tensor.

        Raises:
            ValueError: if y is not of the state's shape.
            TypeError: if it is not a floating tensor.
        """
        required(isinstance(y, Tensor) and y.is_floating_point(), "y", y, "a floating tensor", TypeError)
        required(y.shape == self._y.shape, "y", y, f"of the shape of the state, {tuple(self._y.shape)}")
        self._y.copy_(y)
        if self._network_input is not None:
            torch.mul(self._y, self._rows[self.call].scale, out=self._network_input)

    def shift(self, difference: Tensor, on_s: float, on_y: float) -> None:
        """Add multiples of a tensor to the two states, which are one where they are the same tensor."""
        if self._s is not self._y and on_s:
            self._s.add_(difference, alpha=on_s)
        if on_y:
            self._y.add_(difference, alpha=on_y)
            if self._network_input is not None and not self.done:
                torch.mul(self._y, self._rows[self.call].scale, out=self._network_input)

    def finish(self, x: Tensor) -> None:
        """Move to the end of the run, with a result computed elsewhere."""
        self.call, self._s, self._y = self.tableau.nfe, x, x

    def advance(self, out: Tensor | Guided) -> None:
        """Take the network's output at (y, t) and update the state to the next call.

        Raises:
            ValueError: if the run is done, or the output is not of the state's shape.
            TypeError: if it is not a floating tensor.
        """
        if self.done:
            raise self._over("advance")
        for part in (out.cond, out.uncond) if isinstance(out, Guided) else (out,):
            required(isinstance(part, Tensor) and part.is_floating_point(), "out", part, "a floating tensor", TypeError)
            required(part.shape == self._y.shape, "out", part, f"of the shape of the state, {tuple(self._y.shape)}")
        self.take(self.blurred(out))

    def blurred(self, out: Tensor | Guided) -> Tensor | Guided:
        """The output as the tableau blurs it: what `take` is given; itself where nothing is blurred."""
        blur = self.program.blur
        if blur is None:
            return out
        return blur(self.call, self._y, out if isinstance(out, Tensor) else out.tensor())

    def take(self, out: Tensor | Guided, spread: Tensor | None = None) -> None:
        """`advance`, without its checks, for outputs that were checked, and blurred, where they were made.

        Args:
            spread: (B, ...), what the noise of the row is multiplied by, element by element.
        """
        if isinstance(out, Guided):
            out = replace(out, cond=self._unaliased(out.cond), uncond=self._unaliased(out.uncond))
        else:
            out = self._unaliased(out)
        self.call += 1
        with torch.no_grad():
            self._update(self._rows[self.call], out, self._shift() if self.program.depth else (), spread)

    def _update(self, row: Row, out: Tensor | Guided, history: Iterable[Tensor], spread: Tensor | None = None) -> None:
        z = self._noise(self.call) if row.noise else None
        if spread is not None and row.noise:
            z = self.noise(self.call) * spread
        live = (self._s, self._y, out, z, *history)
        self._s, self._y, self._scratch = kernels.linear_update(live, row, self._scratch, self._network_input)

    def noise(self, row: int, like: Tensor | None = None) -> Tensor:
        """The standard normals of a row: 0 is the entry, i + 1 that of call i."""
        like = self._y if like is None else like
        if self._brownian is not None:
            start, stop = self.tableau.clock[row - 1].tolist()
            increment = self._brownian(start, stop).to(like)
            return torch.div(increment, math.sqrt(stop - start))  # not in place: the path may keep it
        return Draw(self.key, row, Stream.ROW).tensor(like)

    def _over(self, name: str) -> ValueError:
        return ValueError(f"{name} must be called before the run is done, got it after the last of {self.call} calls")

    def _unaliased(self, out: Tensor) -> Tensor:
        """The output; a copy if the network handed its input back, which is about to be overwritten."""
        if torch.compiler.is_compiling():  # which knows no addresses: a view of the input is not noticed there
            return out.clone() if out is self._y or out is self._s else out
        memory = out.untyped_storage().data_ptr()
        own = memory in (self._y.untyped_storage().data_ptr(), self._s.untyped_storage().data_ptr())
        return out.clone() if own else out

    def _shift(self) -> tuple[Tensor, ...]:
        """The history with a slot for the newest entry in front, reusing the memory of the oldest."""
        *younger, last = self._history or (None,)
        full = len(self._history) == self.program.depth
        slot = last if full and last is not None else torch.empty_like(self._y)
        self._history = (slot, *younger) if full else (slot, *self._history)
        return self._history

    def _noise(self, row: int) -> Draw | Tensor:
        """A row's noise: a `Draw`, which the update kernel generates, or a tensor from the Brownian path."""
        return Draw(self.key, row, Stream.ROW) if self._brownian is None else self.noise(row)


def executor_at_end(program: Program, s: Tensor, y: Tensor, key: Key) -> Executor:
    """An executor at the end of a run computed elsewhere, with s and y as its result."""
    end = y.detach()
    state = State(program.tableau.nfe, end if s is y else s.detach(), end, (), key)
    return Executor(program, None, key, state=state)
