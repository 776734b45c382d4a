"""The results of a sweep, as a table in Markdown and as a plot."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from diffsolve.common import records
from diffsolve.common.checks import described, instance, integer, number
from diffsolve.common.files import write_whole

__all__ = ["ENDPOINT", "ResultRow", "Table"]

ENDPOINT = "endpoint error"
MARKERS = "os^Dvp"  # those of charts.marker
PANELS = 4  # the most panels in a row of a plot
FEW = 4  # times the number of features: the samples that a Frechet distance needs at least
OWN = "own"  # the column of solvers that take no budget


@dataclass(frozen=True)
class ResultRow:
    """One solver at one budget with one seed."""

    solver: str
    method: str
    """The method that the solver chose at this budget."""
    table: Any
    """A digest of its weights and options."""
    nfe: int | None
    """The budget; None if the solver takes none."""
    seed: int
    calls: float
    """Network calls per sample; the mean, if they differ."""
    seconds: float
    """Of sampling, per sample."""
    scores: dict[str, float | None]
    """Distances by name, and their standard errors if they have one; None if samples were not finite."""
    floor: float | None
    """The error estimate of the exact endpoints: their difference from those at half the calls."""
    options: dict[str, Any] | None = None
    """The options of `ds.sample`, but for the budget, where they can be written in a file."""


@dataclass(frozen=True)
class Table:
    """Rows of a sweep; `str` gives a table per measure, of the mean over seeds and its standard error."""

    rows: tuple[ResultRow, ...]
    about: dict[str, Any]
    """The settings of the sweep."""
    strips: Mapping[tuple[str, int | None], Tensor] = field(default_factory=dict, compare=False)
    """(solver, budget) -> the first samples of the first seed, decoded, if the sweep was asked to show them."""

    @classmethod
    def read(cls, *paths: str | Path) -> Table:
        """The rows of several files of `sweep`, such as those of machines that shared one sweep.

        Raises:
            ValueError: if the files have different settings, or are not files of a sweep.
        """
        rows, about = [], None
        for path in map(Path, paths):
            settings, results = records.read(path)
            if about is not None and settings != about:
                raise ValueError(f"files must be of the same settings, got {str(paths[0])!r} and {str(path)!r}")
            about = settings
            rows += [row_of(entry, path) for entry in results]
        return cls(tuple(rows), about or {})

    @property
    def measures(self) -> list[str]:
        """The names of the scores, without their standard errors."""
        names = dict.fromkeys(name for row in self.rows for name in row.scores)
        return [name for name in names if not name.endswith(" stderr")]

    @property
    def solvers(self) -> list[str]:
        return list(dict.fromkeys(row.solver for row in self.rows))

    @property
    def budgets(self) -> list[int | None]:
        """The budgets, ascending; None, for solvers that take none, last."""
        return sorted({row.nfe for row in self.rows}, key=lambda nfe: math.inf if nfe is None else nfe)

    def cell(self, measure: str, solver: str, nfe: int | None) -> tuple[float, float, float] | None:
        """(mean over seeds, its standard error, network calls); None if there is no row.

        The standard error is NaN for one seed, unless the distance has an estimate of its own; the mean is NaN if
        samples were not finite.
        """
        rows = [r for r in self.rows if (r.solver, r.nfe) == (solver, nfe) and measure in r.scores]
        if not rows:
            return None
        values = [math.nan if (score := row.scores[measure]) is None else score for row in rows]
        n = len(values)
        own = rows[0].scores.get(f"{measure} stderr")
        if n == 1 and own is not None:  # the distance's own estimate
            return values[0], own, rows[0].calls
        mean = math.fsum(values) / n
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else math.nan
        return mean, spread, math.fsum(row.calls for row in rows) / n

    def __str__(self) -> str:
        """Markdown tables. Calls that differ from the column's budget are in brackets."""
        seeds = len({row.seed for row in self.rows})
        samples = f"{self.about.get('num', '?')} samples" + (f" of each of {seeds} seeds" if seeds > 1 else "")
        blocks = []
        for measure in self.measures:
            note = samples + self._caution(measure, seeds)
            if measure == ENDPOINT:
                floor = max((row.floor for row in self.rows if row.floor is not None), default=math.nan)
                note = f"{self.about.get('exact', '?')} samples; the endpoints themselves are known to {floor:.1g}"
            heads = ["solver", *(OWN if nfe is None else str(nfe) for nfe in self.budgets)]
            lines = [
                [solver, *(_text(self.cell(measure, solver, nfe), nfe) for nfe in self.budgets)]
                for solver in self.solvers
            ]
            table = [heads, ["--"] * len(heads), *lines]
            blocks.append(f"{measure} against network calls ({note})\n\n" + "\n".join(map(_line, table)))
        return "\n\n".join(blocks)

    def _caution(self, measure: str, seeds: int) -> str:
        """What a reader should know of few samples."""
        num, reference = self.about.get("num"), self.about.get("reference")
        name, _, score = measure.rpartition(" ")
        notes = []
        if score == "FD" and isinstance(num, int) and isinstance(reference, Mapping) and reference.get(name):
            size = reference[name][0]
            if num < FEW * size:
                notes.append(f"fewer than {FEW} for each of {size} features: too large, by more than solvers differ")
        if seeds == 1 and not any(row.scores.get(f"{measure} stderr") is not None for row in self.rows):
            notes.append("no error bars of one seed")
        return "".join(f"; {note}" for note in notes)

    def plot(self, path: str | Path) -> None:
        """Write a plot: a panel per measure, against network calls, with error bars.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        try:
            from matplotlib import style
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'diffsolve[metrics]'") from error
        with style.context("diffsolve.common.look"):
            figure = self._drawn(Figure())
            picture = io.BytesIO()
            figure.savefig(picture, format=Path(path).suffix[1:] or None)
        write_whole(path, picture.getvalue())

    def _drawn(self, figure: Any) -> Any:
        columns = max(1, min(PANELS, len(self.measures)))
        rows = max(1, math.ceil(len(self.measures) / columns))
        figure.set_size_inches(4.5 * columns, 3.5 * rows + 0.6)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(self.measures) :]:
            panel.remove()
        for panel, measure in zip(panels, self.measures, strict=False):
            smallest = math.inf
            for i, solver in enumerate(self.solvers):
                cells = [cell for nfe in self.budgets if (cell := self.cell(measure, solver, nfe))]
                cells = sorted((cell for cell in cells if math.isfinite(cell[0])), key=lambda cell: cell[2])
                means, errors, calls = zip(*cells, strict=True) if cells else ((), (), ())
                bars = [0.0 if math.isnan(error) else error for error in errors]
                panel.errorbar(calls, means, bars, marker=MARKERS[i % len(MARKERS)], capsize=2, label=solver)
                smallest = min([smallest, *means])
            panel.set(title=measure, xlabel="network calls")
            if math.isinf(smallest):  # nothing to draw
                continue
            panel.set_xscale("log")
            if ticks := [nfe for nfe in self.budgets if nfe is not None]:
                panel.set_xticks(ticks, [str(nfe) for nfe in ticks])
                panel.xaxis.set_minor_formatter("")
            if smallest > 0:
                panel.set_yscale("log")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def row_of(entry: dict[str, Any], path: Path) -> ResultRow:
    """The row of a record, every number of which is checked.

    Raises:
        ValueError: if it is none, naming the file.
    """
    try:
        row = ResultRow(**entry)
        for name in ("solver", "method"):
            instance(name, getattr(row, name), str, "a text")
        if row.nfe is not None:
            integer("nfe", row.nfe, 1)
        integer("seed", row.seed, 0)
        for name in ("calls", "seconds"):
            number(name, getattr(row, name), low=0)
        instance("scores", row.scores, dict, "a mapping from names to numbers")
        instance("options", row.options, (dict, type(None)), "a mapping from names to values, or None")
        for name, value in {**row.scores, "floor": row.floor}.items():
            if value is not None:
                number(name, value)
        return row
    except (TypeError, ValueError) as error:
        raise ValueError(f"file {str(path)!r} must have results of a sweep, got {described(entry)}: {error}") from error


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(cell: tuple[float, float, float] | None, nfe: int | None) -> str:
    if cell is None:
        return ""
    mean, error, calls = cell
    actual = "" if calls == nfe else f" ({calls:.4g})"
    if math.isnan(mean):
        return f"not finite{actual}"
    if math.isnan(error) or not error:
        return f"{mean:.4g}{actual}"
    if max(abs(mean), error) < 1e-3:
        return f"{mean:.2e} ± {error:.0e}{actual}"
    digits = max(0, 1 - math.floor(math.log10(error)))  # two significant digits of the error
    return f"{mean:.{digits}f} ± {error:.{digits}f}{actual}"
