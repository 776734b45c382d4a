"""The state of a learning run: parameters, Adam, the best iterate so far, and its checkpoint file."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import integer, number, required
from diffsolve.common.files import match, read_tensors, reading, write_tensors
from diffsolve.tuning.student import Student

__all__ = ["Progress"]

FORMAT, ACCEPTED = "diffsolve.tuning/2", "the checkpoint of a tuning"
BETAS = (0.9, 0.99)


class Progress:
    """The state of a learning run, which a checkpoint file may hold.

    Args:
        about: the settings of the run, as JSON values; those in the file must be equal.
        file: the checkpoint; if it exists the state is read from it.
        force: do not read it.

    Raises:
        ValueError: if the file is not a checkpoint, or has other settings.
    """

    def __init__(
        self,
        student: Student,
        about: Mapping[str, Any],
        file: str | os.PathLike[str] | None,
        force: bool = False,
    ) -> None:
        self.iteration, self.calls = 0, 0
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.ends: Tensor | None = None
        """The ends of the teacher's run."""
        self._parameters = student.parameters
        self._adam = torch.optim.Adam(self._parameters.values(), betas=BETAS)
        self._live: dict[str, Tensor] = {}
        for name, p in self._parameters.items():
            # Adam's own initial state, created here so that a checkpoint can be copied into it.
            moments = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self._adam.state[p] = moments
            self._live |= {f"{key}/{name}": moment for key, moment in moments.items()}
            self._live |= {f"now/{name}": p.detach(), f"best/{name}": p.detach().clone()}
        self._about, self._file = dict(about), None if file is None else Path(file)
        self._began = time.monotonic()
        if self._file is not None and self._file.exists() and not force:
            self._load(self._file)

    @property
    def seconds(self) -> float:
        """Time spent so far, including earlier calls."""
        return time.monotonic() - self._began

    def step(self, loss: Tensor, rate: float) -> None:
        """One step of Adam with the gradient of a loss and the learning rate `rate`.

        Raises:
            FloatingPointError: if the loss or its gradient is not finite.
        """
        value, parameters = loss.item(), list(self._parameters.values())
        gradients = torch.autograd.grad(loss, parameters)
        if not math.isfinite(value) or not all(bool(g.isfinite().all()) for g in gradients):
            raise FloatingPointError(
                f"the loss became {value}, or its gradient not finite, in iteration {self.iteration}: a smaller lr may "
                "help"
            )
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()
        self.losses.append(value)
        self.iteration += 1

    @property
    def fresh(self) -> bool:
        """Whether the held-out loss of this iteration is still to be measured: it is not, of a checkpoint's own."""
        return not any(at == self.iteration for at, _ in self.validation)

    def validated(self, loss: float) -> None:
        """Record the loss on the held-out noises, and the parameters if it is the least so far."""
        if loss < self.best:
            for name in self._parameters:
                self._live[f"best/{name}"].copy_(self._live[f"now/{name}"])
        self.validation.append((self.iteration, loss))

    @property
    def best(self) -> float:
        """The least loss on the held-out noises so far."""
        return min((loss for _, loss in self.validation), default=math.inf)

    def restore_best(self) -> None:
        """Set the parameters to those of the best validation."""
        for name in self._parameters:
            self._live[f"now/{name}"].copy_(self._live[f"best/{name}"])

    def save(self) -> None:
        """Write the checkpoint atomically, if a file was given."""
        if self._file is None:
            return
        assert self.ends is not None
        counted = {name: getattr(self, name) for name in ("iteration", "calls", "losses", "seconds")}
        # null stands for a loss that was infinite, which JSON has no number for
        counted["validation"] = [(at, loss if math.isfinite(loss) else None) for at, loss in self.validation]
        note = {"format": FORMAT, "about": self._about, **counted}
        write_tensors(self._file, {"ends": self.ends, **self._live}, "tuning", note)

    def remove(self) -> None:
        """Delete the checkpoint, if there is one."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _load(self, file: Path) -> None:
        tensors, note = read_tensors(file, "tuning", accepted=ACCEPTED)
        with reading(file, ACCEPTED):
            required(note.get("format") == FORMAT, "format", note.get("format"), repr(FORMAT))
            about = note["about"]
            required(isinstance(about, dict), "about", about, "a mapping")
        odd = sorted(name for name, value in self._about.items() if about.get(name) != value)
        if odd:
            raise ValueError(
                f"checkpoint must be of the same tuning, got {str(file)!r} with other {', '.join(odd)}: give the "
                "settings of the file, delete it (--force), or name another file"
            )
        with reading(file, ACCEPTED):
            iteration = integer("iteration", note["iteration"], 0, self._about["iterations"])
            calls, seconds = integer("calls", note["calls"], 0), number("seconds", note["seconds"], low=0)
            losses = [number("losses", loss) for loss in note["losses"]]
            required(len(losses) == iteration, "losses", len(losses), f"as many as iterations, {iteration}")
            validation = [
                (integer("validation", at, 0, iteration), math.inf if loss is None else number("validation", loss))
                for at, loss in note["validation"]
            ]
            ends = tensors.pop("ends")
            shape = tuple(self._about["shape"])
            fits = tuple(ends.shape) == shape and ends.is_floating_point()
            required(fits, "ends", ends, f"floating-point of shape {shape}")
            match(file, tensors, self._live)
        for name, value in tensors.items():
            self._live[name].copy_(value)
        self.ends, self.iteration, self.calls = ends, iteration, calls
        self.losses, self.validation = losses, validation
        self._began -= seconds
