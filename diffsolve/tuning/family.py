"""A family of learned runs, one for each budget of network calls, and where it comes from."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from diffsolve.common.checks import choice, instance, required
from diffsolve.common.files import dumps, parsed, reading, write_whole
from diffsolve.common.fingerprint import weights_of
from diffsolve.grids import Grid
from diffsolve.models import Model
from diffsolve.paths import Path
from diffsolve.solvers import Solver
from diffsolve.tableau import Draft, Tableau

__all__ = ["Family", "Provenance", "learned_solver"]

FORMAT, ACCEPTED = "diffsolve.family/1", "a family of learned solvers, as Family.save writes it"


@dataclass(frozen=True)
class Provenance:
    """What a family was learned for, and with what: plain values, as its file has them."""

    network: int
    """`diffsolve.common.fingerprint.weights_of` of it."""
    path: str
    predicts: str
    guidance: float
    """Its level, `Guidance.level`."""
    teacher: str
    seed: int
    noises: int
    options: Mapping[str, Any]
    """Those that were given: method, loss, history and so on, described."""
    diffsolve: str
    torch: str

    def differs(self, model: Model, guidance: float) -> str | None:
        """What of a model and a level of guidance is not that which it was learned for; None if nothing is known to be.

        Functions without tensors, as those that stand for a network which others call, are not told apart.
        """
        number = weights_of(model.net)
        if number and self.network and number != self.network:
            return "network"
        if guidance != self.guidance:
            return f"guidance, of {self.guidance:g} rather than {guidance:g}"
        return None


@dataclass(frozen=True, repr=False, eq=False)
class Family(Solver):
    """A solver that has been learned for several budgets: `ds.sample(model, shape, solver=family, nfe=7)`.

    It goes wherever a solver goes, with nfe (or steps, which are as many) one of its budgets. `family[7]` is a Tableau.

    Args:
        tableaux: budget -> learned tableau, all between the same times.
        provenance: what they were learned for.
    """

    tableaux: Mapping[int, Tableau]
    provenance: Provenance

    def __post_init__(self) -> None:
        required(bool(self.tableaux), "tableaux", self.tableaux, "at least one")
        for nfe, tableau in self.tableaux.items():
            fits = tableau.nfe == tableau.steps == nfe
            required(fits, f"tableaux[{nfe}]", tableau.nfe, f"a run of {nfe} calls in as many steps")
        object.__setattr__(self, "tableaux", dict(sorted(self.tableaux.items())))

    def __str__(self) -> str:
        return f"Family({', '.join(map(str, self.tableaux))} calls)"

    def __getitem__(self, nfe: int) -> Tableau:
        return self.tableaux[choice("nfe", nfe, self.tableaux)]

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        return _Times(self)

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        raise NotImplementedError("a learned run is not written anew")  # __call__ finds it

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        """The learned run with these nodes, up to the rounding of single precision.

        Raises:
            ValueError: if there is none.
        """
        for tableau in self.tableaux.values():
            if len(times) == len(tableau.times) and np.allclose(times, tableau.times, rtol=1e-6, atol=1e-9):
                return tableau
        raise ValueError(f"grid must be left out, as {self} has its own times, got {np.asarray(times).tolist()}")

    def meet(self, model: Model, guidance: float) -> None:
        """Warn if it was learned for another network, or at another scale of guidance."""
        differs = self.provenance.differs(model, guidance)
        if differs is not None:
            warnings.warn(f"{self} was learned with another {differs}: learn one with `ds.tune`", stacklevel=4)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a JSON file, atomically; floats survive bit for bit."""
        tableaux = {str(nfe): parsed(tableau.to_json()) for nfe, tableau in self.tableaux.items()}
        write_whole(path, dumps({"format": FORMAT, "provenance": asdict(self.provenance), "tableaux": tableaux}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Family:
        """The inverse of `save`.

        Raises:
            FileError: if the file is not such a family.
        """
        text = FilePath(path).read_bytes()
        with reading(path, ACCEPTED):
            plain = parsed(text)
            choice("format", plain.get("format"), [FORMAT])
            about = dict(instance("provenance", plain["provenance"], dict, "an object"))
            names = {f.name for f in fields(Provenance)}
            required(set(about) == names, "provenance", sorted(about), f"an object with {', '.join(sorted(names))}")
            tableaux = instance("tableaux", plain["tableaux"], dict, "an object")
            read = {int(nfe): Tableau.from_json(dumps(tableau)) for nfe, tableau in tableaux.items()}
            return cls(read, Provenance(**about))


def learned_solver(path: str | os.PathLike[str]) -> Tableau | Family:
    """The tableau, or the family, of a file that `save` wrote.

    Raises:
        FileError: if it is neither.
    """
    with reading(path, "one that Tableau.save or Family.save wrote"):
        family = parsed(FilePath(path).read_bytes()).get("format") == FORMAT
    return Family.load(path) if family else Tableau.load(path)


@dataclass(frozen=True, eq=False)
class _Times(Grid):
    """The times of a family's runs."""

    family: Family

    def __str__(self) -> str:
        return str(self.family)

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        times: np.ndarray = self.family[steps].times
        last = path.t_data if stop is None else stop
        ends = (start, last)
        learned = (float(times[0]), float(times[-1]))
        required(ends == learned, "start, stop", ends, f"those that it was learned for, {learned}")
        return times
