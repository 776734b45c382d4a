"""What a cell has gathered so far: moments, the rows that scores need, the first ends; saved, and joined."""

from __future__ import annotations

import json
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.files import FileError, dumps, read_tensors, write_tensors
from diffsolve.metrics.statistics import Statistics, extract

__all__ = ["Checkpoint", "Gathered", "features_of"]

KEY = "cell"
SHARE = 0.1  # of the time may go into saving


@dataclass
class Gathered:
    """Sums over the batches that were run, whose numbers are `batches`; memory grows with rows and ends alone."""

    names: tuple[str, ...]
    """Of the references."""
    rows_kept: bool
    batches: list[int] = field(default_factory=list)
    calls: float = 0.0
    seconds: float = 0.0
    finite: bool = True
    """Whether all samples are."""
    broken: list[str] = field(default_factory=list)
    """The references of which a feature was not finite."""
    moments: dict[str, Statistics] = field(default_factory=dict)
    rows: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    """Of each reference, by number of the batch."""
    ends: dict[int, Tensor] = field(default_factory=dict)
    """The first samples themselves, by number of the batch."""

    def add(self, number: int, rows: Mapping[str, Tensor], end: Tensor) -> None:
        """The features of a batch, by reference, and those of its samples whose ends are compared."""
        self.batches.append(number)
        if len(end):
            self.ends[number] = end.clone()  # the rest of its batch is not kept
        for name, part in rows.items():
            if not part.isfinite().all():
                self.broken.append(name)
            if name in self.broken:
                continue
            moments = Statistics.of(part, keep=0)
            self.moments[name] = self.moments[name] + moments if name in self.moments else moments
            if self.rows_kept:
                self.rows.setdefault(name, {})[number] = part.clone()

    def statistics(self, name: str) -> Statistics | None:
        """The statistics of all samples; None if something was not finite."""
        if not self.finite or name in self.broken or name not in self.moments:
            return None
        parts = self.rows.get(name, {})
        rows = torch.cat([parts[number] for number in sorted(parts)]) if parts else None
        return replace(self.moments[name], rows=rows)

    def first_ends(self) -> Tensor:
        return torch.cat([self.ends[number] for number in sorted(self.ends)])

    @staticmethod
    def joined(parts: Sequence[Gathered]) -> Gathered:
        """One of several, of different batches of a cell."""
        whole = Gathered(parts[0].names, parts[0].rows_kept)
        for part in parts:
            whole.batches += part.batches
            whole.calls, whole.seconds = whole.calls + part.calls, whole.seconds + part.seconds
            whole.finite = whole.finite and part.finite
            whole.broken += part.broken
            whole.ends |= part.ends
            for name, moments in part.moments.items():
                whole.moments[name] = whole.moments[name] + moments if name in whole.moments else moments
                whole.rows[name] = whole.rows.get(name, {}) | part.rows.get(name, {})
        return whole


class Checkpoint:
    """The file of a cell under way, beside the file of results; None keeps nothing.

    Saving may take a tenth of the time: a cell that is cut off loses the batch under way, or, of features that take
    long to write, ten times as long.
    """

    def __init__(self, path: str | Path | None, about: Any, part: str) -> None:
        self.file = None if path is None else Path(f"{path}.cell{part}")
        self.about = about
        self._next = 0.0

    def load(self, empty: Gathered, cell: Any) -> Gathered:
        """What an earlier run of this very cell had; `empty` if there is nothing of it."""
        if self.file is None or not self.file.exists():
            return empty
        try:
            tensors, note = read_tensors(self.file, KEY, accepted="a cell under way")
            if [note.get("about"), note.get("cell")] != json.loads(dumps([self.about, cell])):
                return empty
            found = Gathered(
                empty.names, empty.rows_kept, list(note["batches"]), note["calls"], note["seconds"], note["finite"],
                list(note["broken"]),
            )  # fmt: skip
            for name, count in note["counts"].items():
                i = empty.names.index(name)
                found.moments[name] = Statistics(count, tensors[f"{i}.mean"], tensors[f"{i}.cov"])
            for key, tensor in tensors.items():
                kind, numbered, number = key.rpartition("#")
                if kind == "end":
                    found.ends[int(number)] = tensor
                elif numbered:
                    found.rows.setdefault(empty.names[int(kind)], {})[int(number)] = tensor
        except (FileError, KeyError, TypeError, ValueError, IndexError):  # it is scratch: the cell begins anew
            return empty
        return found

    def save(self, part: Gathered, cell: Any, force: bool = False) -> None:
        began = time.monotonic()
        if self.file is None or (began < self._next and not force):
            return
        tensors = {f"end#{number}": end for number, end in part.ends.items()}
        for i, name in enumerate(part.names):
            if name in part.moments:
                tensors |= {f"{i}.mean": part.moments[name].mean, f"{i}.cov": part.moments[name].cov}
            tensors |= {f"{i}#{number}": rows for number, rows in part.rows.get(name, {}).items()}
        note = {
            "about": self.about, "cell": cell, "batches": part.batches, "calls": part.calls, "seconds": part.seconds,
            "finite": part.finite, "broken": part.broken,
            "counts": {name: moments.count for name, moments in part.moments.items()},
        }  # fmt: skip
        write_tensors(self.file, tensors, KEY, note)
        self._next = time.monotonic() + (time.monotonic() - began) / SHARE

    def settle(self, known: Container[tuple[str, int, int]]) -> None:
        """Remove the file if its cell (label, budget, seed) is known: a kill may fall between result and removal."""
        if self.file is None or not self.file.exists():
            return
        with suppress(FileError, KeyError, TypeError, ValueError):
            label, nfe, seed, *_ = read_tensors(self.file, KEY, accepted="a cell under way")[1]["cell"]
            if (label, nfe, seed) in known:
                self.remove()

    def remove(self) -> None:
        self._next = 0.0
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def features_of(references: Mapping[str, Statistics], images: Tensor) -> dict[str, Tensor]:
    """The features of images for each reference, checked to be of its size; they may be not finite."""
    found = {}
    for name, reference in references.items():
        rows = extract(reference.features, images, finite=False)
        if rows.shape[1] != len(reference.mean):
            raise ValueError(
                f"reference {name!r} must have features of {rows.shape[1]} numbers, as those of the samples, got "
                f"{len(reference.mean)}; give Statistics.load the features that the file was computed with"
            )
        found[name] = rows
    return found
