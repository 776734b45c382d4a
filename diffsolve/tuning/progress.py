"""Where a learning run stands: parameters, what its method carries, the best iterate so far; and its file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from diffsolve.common.checks import instance, integer, number, required
from diffsolve.common.files import dumps, in_folder, match, read_tensors, reading, write_tensors
from diffsolve.tableau import Tableau
from diffsolve.tuning.pilot import Start
from diffsolve.tuning.task import Task

__all__ = ["Checkpoint", "Ends", "Learnable", "Progress", "Saved"]

FORMAT, ACCEPTED = "diffsolve.tuning/3", "the checkpoint of a tuning"


class Learnable(Protocol):
    """A run with parameters."""

    calls: int

    @property
    def parameters(self) -> dict[str, Tensor]: ...

    def tableau(self) -> Tableau: ...


class Saved(NamedTuple):
    """What a checkpoint file holds."""

    tensors: dict[str, Tensor]
    note: dict[str, Any]
    ends: Tensor
    begin: Start
    """Where learning began."""


class Checkpoint:
    """The file of a learning run, or none.

    Args:
        file: its path.
        about: the settings of the run, as JSON values; those in the file must be equal.
    """

    def __init__(self, file: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> None:
        self.file, self.about = None if file is None else Path(file), dict(about)

    def read(self) -> Saved | None:
        """What the file holds; None if there is no file.

        Raises:
            ValueError: if it is not a checkpoint, or has other settings.
        """
        if self.file is None or not self.file.exists():
            return None
        tensors, note = read_tensors(self.file, "tuning", accepted=ACCEPTED)
        with reading(self.file, ACCEPTED):
            required(note.get("format") == FORMAT, "format", note.get("format"), repr(FORMAT))
            about = note["about"]
            required(isinstance(about, dict), "about", about, "a mapping")
        odd = sorted(name for name, value in self.about.items() if about.get(name) != value)
        if odd:
            raise ValueError(
                f"checkpoint must be of the same tuning, got {str(self.file)!r} with other {', '.join(odd)}: give the "
                "settings of the file, delete it (--force), or name another file"
            )
        with reading(self.file, ACCEPTED):
            ends, shape = tensors.pop("ends"), tuple(self.about["shape"])
            fits = tuple(ends.shape) == shape and ends.is_floating_point()
            required(fits, "ends", ends, f"floating-point of shape {shape}")
            begin = Start(Tableau.from_json(note["begin"]), instance("name", note["name"], str, "a text"))
            return Saved(tensors, note, ends, begin)

    def write(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Write the file atomically, if there is one."""
        if self.file is not None:
            write_tensors(self.file, tensors, "tuning", {"format": FORMAT, "about": self.about, **note})

    def remove(self) -> None:
        """Delete the file, if there is one."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)


class Ends:
    """The file of a teacher's ends, whose name is made of what they depend on; or none.

    Args:
        folder: where it lies.
        about: what they depend on, as JSON values.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> None:
        name = sha256(dumps(dict(about)).encode()).hexdigest()[:32]
        self.file = None if folder is None else in_folder(Path(folder) / f"{name}.safetensors", "cache")

    def read(self, like: Tensor) -> Tensor | None:
        """The ends, for noises such as `like`, on the CPU; None if they are not there.

        Raises:
            FileError: if the file is another.
        """
        if self.file is None or not self.file.exists():
            return None
        tensors, _ = read_tensors(self.file, accepted="the ends of a teacher's runs")
        match(self.file, tensors, {"ends": like})
        return tensors["ends"]

    def write(self, ends: Tensor) -> None:
        """Keep the ends, if there is a folder."""
        if self.file is not None:
            write_tensors(self.file, {"ends": ends})


class Progress:
    """The state of a learning run.

    Args:
        student: whose parameters are changed in place.
        moments: what the method carries from one iteration to the next, likewise.
        task: with the teacher's ends and the count of calls, which the checkpoint has too.
        begin: where learning began.
        saved: the state to go on from.
        bar: is told each iteration.
    """

    def __init__(
        self,
        student: Learnable,
        moments: Mapping[str, Tensor],
        task: Task,
        begin: Start,
        checkpoint: Checkpoint | None = None,
        saved: Saved | None = None,
    ) -> None:
        self.iteration, self.done = 0, False
        self.losses: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.student, self.moments, self.task, self.begin = student, dict(moments), task, begin
        self.bar: Any = None
        self._names, self._checkpoint = list(student.parameters), checkpoint
        self._live = dict(self.moments)
        for name, p in student.parameters.items():
            self._live |= {f"now/{name}": p.detach(), f"best/{name}": p.detach().clone()}
        if saved is not None and checkpoint is not None:
            self._load(saved, checkpoint)

    def advance(self, loss: float) -> None:
        """Count an iteration, which found that loss."""
        self.losses.append(loss)
        self.iteration += 1
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            self.bar.update()

    @property
    def fresh(self) -> bool:
        """Whether the held-out loss of this iteration is still to be measured: it is not, of a checkpoint's own."""
        return not any(at == self.iteration for at, _ in self.validation)

    def validated(self, loss: float) -> None:
        """Record the loss on the held-out noises, and the parameters if it is the least so far."""
        if loss < self.best:
            for name in self._names:
                self._live[f"best/{name}"].copy_(self._live[f"now/{name}"])
        self.validation.append((self.iteration, loss))

    @property
    def best(self) -> float:
        """The least loss on the held-out noises so far."""
        return min((loss for _, loss in self.validation), default=math.inf)

    def restore_best(self) -> None:
        """Set the parameters to those of the best validation."""
        for name in self._names:
            self._live[f"now/{name}"].copy_(self._live[f"best/{name}"])

    def save(self) -> None:
        """Write the checkpoint, if there is one."""
        if self._checkpoint is None:
            return
        self.task.ranks.once(self._write)

    def _write(self) -> None:
        assert self._checkpoint is not None
        counted = {name: getattr(self, name) for name in ("iteration", "losses", "done")}
        counted |= {"calls": self.task.calls, "seconds": self.task.seconds}
        # null stands for a loss that was infinite, which JSON has no number for
        counted["validation"] = [(at, loss if math.isfinite(loss) else None) for at, loss in self.validation]
        begin = {"begin": self.begin.tableau.to_json(), "name": self.begin.name}
        self._checkpoint.write({"ends": self.task.ends, **self._live}, {**begin, **counted})

    def _load(self, saved: Saved, checkpoint: Checkpoint) -> None:
        tensors, note, file = saved.tensors, saved.note, checkpoint.file or Path()
        with reading(file, ACCEPTED):
            iteration = integer("iteration", note["iteration"], 0, checkpoint.about["iterations"])
            calls = integer("calls", note["calls"], 0)
            seconds, done = number("seconds", note["seconds"], low=0), instance("done", note["done"], bool, "a bool")
            losses = [number("losses", loss) for loss in note["losses"]]
            required(len(losses) == iteration, "losses", len(losses), f"as many as iterations, {iteration}")
            validation = [
                (integer("validation", at, 0, iteration), math.inf if loss is None else number("validation", loss))
                for at, loss in note["validation"]
            ]
            match(file, tensors, self._live)
        for name, value in tensors.items():
            self._live[name].copy_(value)
        self.iteration, self.done, self.task.calls = iteration, done, calls
        self.losses, self.validation = losses, validation
        self.task.began -= seconds
