"""The spacings of tables of betas: leading, trailing, linspace, respaced; and that of students of a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, instance, integer, required
from diffsolve.grids.base import Grid
from diffsolve.paths import Path

__all__ = ["Distilled", "Spaced"]


@dataclass(frozen=True)
class Spaced(Grid):
    """The spacings of tables: n calls at rows of 0..T-1, then the end (Lin et al., 2305.08891, table 2).

    leading:  0, m, 2m, .. with m = T // n, plus `offset`
    trailing: T - 1, T - 1 - T/n, ..
    linspace: n rows from 0 to T - 1, both included
    respaced: the same within each of `sections`, equal parts of the table with so many rows each (iDDPM, Nichol and
              Dhariwal, 2102.09672, and guided-diffusion's "10,10,20"); empty for one section, of n rows

    Row T - 1 is the start, row 0 the last time before the end. A continuous clock is divided into T = 1000 rows
    and not rounded. `leading` begins below the noise end, which is its known flaw; a `start` of one's own it keeps.
    """

    spacing: str = "trailing"
    offset: int = 0
    sections: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        choice("spacing", self.spacing, ("leading", "trailing", "linspace", "respaced"))
        integer("offset", self.offset, low=0)
        required(self.spacing == "leading" or not self.offset, "offset", self.offset, "0 but for the spacing 'leading'")
        object.__setattr__(self, "sections", tuple(instance("sections", self.sections, (list, tuple), "a list")))
        for section in self.sections:
            integer("sections", section, low=1)
        own = self.spacing == "respaced" or not self.sections
        required(own, "sections", self.sections, "empty but for the spacing 'respaced'")

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        end = path.t_data if stop is None else stop
        count = round(start - end) if path.integer else 1000
        if path.integer:
            low = end + 1
        else:
            low = path.t_last if stop is None and path.t_last != end else end + (start - end) / count
        required(steps <= count, "steps", steps, f"at most {count}, the rows from {start} to {end}")
        i = np.arange(steps, 0, -1)
        if self.spacing == "leading":
            rows = (i - 1) * float(count // steps) + self.offset
        elif self.spacing == "trailing":
            rows = i * count / steps
        elif self.spacing == "respaced":
            rows = self._respaced(count, steps)
        else:
            rows = np.linspace(0, count - 1, steps)[::-1] if steps > 1 else np.array([count - 1.0])
        if path.integer:
            rows = np.round(rows)
        if self.spacing == "trailing":  # rounded before, as in the paper: halves go to the even side
            rows = rows - 1
        times = low + rows * ((start - low) / (count - 1) if count > 1 else 0.0)
        times = np.where(rows > count - 1 - 1e-9, start, times)
        if start != path.t_noise:
            times[0] = start  # where the state is
        return np.append(times, end)

    def _respaced(self, count: int, steps: int) -> np.ndarray:
        """The rows, the last one first: in each section n of them, from its first row to its last, rounded.

        A fraction is added up step by step, as there: where it ends on a half, its last bit decides.
        """
        if not self.sections and steps == 1:
            return np.array([count - 1.0])  # there the first row, where no noise is
        sections = self.sections or (steps,)
        required(sum(sections) == steps, "steps", steps, f"{sum(sections)}, the sum of sections={sections}")
        sizes = [count // len(sections) + (k < count % len(sections)) for k in range(len(sections))]
        rows: list[float] = []
        for size, wanted, first in zip(sizes, sections, np.cumsum([0, *sizes[:-1]]), strict=True):
            required(wanted <= size, "sections", sections, f"at most the {size} rows of a section")
            stride = (size - 1) / (wanted - 1) if wanted > 1 else 1.0
            rows.extend(first + np.round(np.cumsum([0.0, *[stride] * (wanted - 1)])))
        return np.array(rows)[::-1]


@dataclass(frozen=True)
class Distilled(Grid):
    """Of the `rows` even times at which a student of a table was distilled, as even a choice as there is, then the end.

    LCM's (2310.04378) and TCD's: of 50, to 1000 rows, four steps begin at 999, 759, 499 and 259. A clock without a
    finite end, as of "ve", is divided as far as its last time. More steps than rows are even ones.
    """

    rows: int = 50

    def __post_init__(self) -> None:
        integer("rows", self.rows, low=1)

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        end = path.t_data if stop is None else stop
        low = end if np.isfinite(end) else path.t_last
        rows = max(self.rows, steps)
        times = start + np.floor(np.arange(steps) * rows / steps) * ((low - start) / rows)
        return np.append(np.round(times) if path.integer else times, end)
