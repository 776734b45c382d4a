"""The tableau: a run of a solver, written down as weights before the network is called once.

A general linear method with one row per network call (i = 0..N-1):

    entry:  [s, y_0] = entry @ [x, z]
    d_i     = a_i x_0 + b_i eps                      from the network at (y_i, t_i), see `frames.convert`
                                                     or at (y_i, t_i, s_i), averaged from t_i to s_i (`frames.landing`)
                                                     or at y_i, told another time than t_i (`Tableau.told`)
                                                     with a part of its blur, where there is one (`Tableau.blurs`)
    [s', y_{i+1}] = weights[i] @ [s, y_i, d_i, d_{i-1}, .., d_{i-K+1}, z_i]

s is the state, y the next network input (in the end, the result), z standard normals. K is the history.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from diffsolve.common.checks import choice, instance, integer, number, required
from diffsolve.common.files import dumps, numbers, parsed, reading, write_whole
from diffsolve.common.fingerprint import rounded
from diffsolve.paths import Path, named
from diffsolve.tableau.exactness import check_exact
from diffsolve.tableau.frames import DRIFT, FRAMES, check_prediction
from diffsolve.tableau.theory import SPECTRUM, distance, frechet, response

__all__ = ["DRIFT", "Tableau"]

FORMAT = "diffsolve.tableau/1"
USUAL = ("to", "told", "guides", "blurs")
"""Columns that most tableaux have the usual values of, and files leave out then."""


@dataclass(frozen=True, eq=False)
class Tableau:
    """An immutable run of a solver. Arrays are float64 and read-only; equality is bit for bit.

    Raises:
        ValueError: when built, if shapes disagree or the weights are not exact for a constant prediction.
    """

    solver: str
    """What wrote it, as text."""
    path: str
    """The path it was written for, as text."""
    order: int
    """The order of convergence declared for it."""
    grid: np.ndarray
    """(n + 1, 3): t, alpha, sigma of the nodes."""
    calls: np.ndarray
    """(N, 3): t, alpha, sigma at which the network is called."""
    frame: tuple[str, ...]
    """The frame whose derivative d_i is, per call."""
    d: np.ndarray
    """(N, 2): a_i, b_i."""
    node: np.ndarray
    """(N,): the grid node that y stands at after the row, or -1 between nodes."""
    entry: np.ndarray
    """(2, 2): s and y_0 from x and z."""
    weights: np.ndarray
    """(N, 2, K + 3): s' and y' from s, y, d_i .. d_{i-K+1}, z."""
    clock: np.ndarray
    """(N, 2): (q, q') where a row's z is the increment of one Brownian motion from clock q to q', over sqrt(q' - q);
    (0, 0) for a z of its own."""
    to: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(N,): the time s that a network told two times is told at each call, where its d is averaged to; by default t."""
    told: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(N,): the time that the network is told at each call, whatever time the state is at; by default t."""
    guides: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(N,): what guidance counts for at each call, of scale 1 + guides (scale - 1); by default 1."""
    blurs: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(N,): k where d (B, C, ...) becomes d + k (m - d), m the mean of each element's neighbours in space
    (`diffsolve.common.tensors.neighbours`): blurred where k > 0, sharpened where k < 0; by default 0."""

    def __post_init__(self) -> None:
        for name, shape in (("grid", (None, 3)), ("calls", (None, 3)), ("d", (self.nfe, 2)), ("node", (self.nfe,)),
                            ("entry", (2, 2)), ("weights", (self.nfe, 2, None)), ("clock", (self.nfe, 2)),
                            *((name, (self.nfe,)) for name in USUAL)):  # fmt: skip
            given = getattr(self, name)
            if name in USUAL and not np.size(given):
                given = self._usual(name)
            array = np.array(given, dtype=np.int64 if name == "node" else np.float64)
            fits = array.ndim == len(shape) and all(
                want in (None, got) for want, got in zip(shape, array.shape, strict=True)
            )
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            required(fits, name, array, f"of shape ({wanted}) for {self.nfe} calls")
            # Only a clock such as log sigma ends at infinity, at the data.
            levels = array[:, 1:] if name in ("grid", "calls") else array[:0] if name in ("to", "told") else array
            finite = np.isfinite(levels).all() and not np.isnan(array).any()
            required(bool(finite), name, array, "of finite numbers")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        for name in ("solver", "path"):
            instance(name, getattr(self, name), str, "a text")
        integer("order", self.order, low=0)
        integer("the number of calls", self.nfe, low=1)
        integer("the number of nodes", len(self.grid), low=2)
        integer("history", self.history, low=1)
        known = len(self.frame) == self.nfe and set(self.frame) <= {*FRAMES, DRIFT}
        required(known, "frame", self.frame, f"one of {', '.join([*FRAMES, DRIFT])} for each of {self.nfe} calls")
        nodes = ((self.node >= -1) & (self.node <= self.steps)).all()
        required(bool(nodes), "node", self.node, f"-1 or a node of the grid, to {self.steps}")
        self.check()

    @property
    def nfe(self) -> int:
        """The number of network calls."""
        return len(self.calls)

    @property
    def steps(self) -> int:
        """The number of grid intervals."""
        return len(self.grid) - 1

    @property
    def history(self) -> int:
        """K, the number of predictions that a row may use."""
        return int(np.shape(self.weights)[2]) - 3

    @property
    def times(self) -> np.ndarray:
        """(n + 1,): the grid on the path's clock."""
        return self.grid[:, 0]

    @property
    def stochastic(self) -> bool:
        """Whether noise enters after the start."""
        return bool(self.entry[:, 1].any() or self.weights[:, :, -1].any())

    def _usual(self, name: str) -> np.ndarray:
        constant = {"guides": 1.0, "blurs": 0.0}
        return np.full(self.nfe, constant[name]) if name in constant else self.calls[:, 0]

    @property
    def jumps(self) -> np.ndarray:
        """(N,): whether a call is told a second time that is not its own."""
        jumps: np.ndarray = self.to != self.calls[:, 0]
        return jumps

    def check(self, tolerance: float = 1e-9) -> None:
        """That every network input and the result are exact for a constant d, frame by frame.

        In a stretch of calls of one frame, z = x / c must move by (v_t - v_s) d; where the frame changes, or noise
        was added, the state alone is handed on. A stochastic tableau in frames that are exact for a point mass is
        held to its mean too, y = alpha x_0.

        Raises:
            ValueError: naming the first call whose input is wrong by more than `tolerance`, and what the clock's own
                rounding is worth near sigma = 0.
        """
        check_exact(self, tolerance)

    def expected_error(
        self,
        spectrum: Sequence[float] = SPECTRUM,
        delta: float = 0.03,
        *,
        predicts: str = "v",
        path: Path | str | None = None,
        rate: float = 0.5,
    ) -> float:
        """How far this run is expected to end from where the network's own flow ends, on Gaussian data, on paper.

        Args:
            spectrum: the variances of the data, a direction each. Give those of your data (`numpy.linalg.eigvalsh` of
                its covariance) or leave the usual: 12 of them, even in the logarithm from 0.001 to 2.
            delta: the root mean square of the network's error, in units of what it predicts.
            predicts: what the network predicts, and so what it errs on; a key of `PREDICTIONS`.
            path: the path of this run; needed where its text does not name it, as for tables.
            rate: how fast the error varies: the standard deviation of its frequencies in lambda = log(alpha / sigma).

        Returns:
            The root mean square over directions, starts and errors, in units of the data.

        Raises:
            ValueError: for a stochastic run, or a path that is not this run's.
        """
        required(not self.stochastic, "the run", self.solver, "deterministic: for others see expected_frechet")
        return self._expected(distance, spectrum, delta, predicts, path, rate)

    def expected_frechet(
        self,
        spectrum: Sequence[float] = SPECTRUM,
        delta: float = 0.03,
        *,
        predicts: str = "v",
        path: Path | str | None = None,
        rate: float = 0.5,
    ) -> float:
        """How far the law of the ends, for runs with fresh noise, is expected to be from the data's, on Gaussian data.

        Arguments and errors of `expected_error`, but half of the network's error is in proportion to the state here.

        Returns:
            The root mean square over directions and errors of the 2-Wasserstein distance, in units of the data: its
            square times the number of directions is a Frechet distance.
        """
        return self._expected(frechet, spectrum, delta, predicts, path, rate)

    def _expected(
        self,
        measure: Callable[..., np.ndarray],
        spectrum: Sequence[float],
        delta: float,
        predicts: str,
        path: Path | str | None,
        rate: float,
    ) -> float:
        """The root mean square over the directions of a measure of `diffsolve.tableau.theory`."""
        path, spectrum = self._theory(path, predicts, spectrum)
        delta, rate = number("delta", delta, low=0), number("rate", rate, low=0)
        return float(np.sqrt(np.mean(measure(self, path, predicts, spectrum, delta, rate) ** 2)))

    def amplification(
        self, spectrum: Sequence[float] = SPECTRUM, *, predicts: str = "v", path: Path | str | None = None
    ) -> np.ndarray:
        """(N,): how far an error of 1 in the network's output at each call moves the (mean) end, on Gaussian data.

        Root mean squares over the directions; arguments and errors as of `expected_error`. Large numbers are calls
        at which a network that errs does harm: where a prediction says little about the rest (noise where there is
        little data in the state, the denoised where there is little noise), or where weights are large and cancel.
        """
        path, spectrum = self._theory(path, predicts, spectrum)
        _, errors = response(self, path, predicts, spectrum)
        return np.asarray(np.sqrt(np.mean(errors**2, 0)))

    def _theory(
        self, path: Path | str | None, predicts: str, spectrum: Sequence[float]
    ) -> tuple[Path, tuple[float, ...]]:
        check_prediction("predicts", predicts)
        required(not self.blurs.any(), "the run", self.solver, "one that blurs nothing, which has no directions here")
        listed = np.ndim(spectrum) == 1 and len(spectrum) > 0
        required(listed, "spectrum", spectrum, "a list of variances > 0", TypeError)
        variances = tuple(number("spectrum", variance, low=0) for variance in spectrum)
        required(min(variances) > 0, "spectrum", spectrum, "numbers > 0")
        if path is None:
            try:
                path = named(self.path)
            except ValueError:
                raise ValueError(f"path must be given for this run, whose path is {self.path}") from None
        path = named(path)
        same = np.allclose(np.stack([path.alpha(self.calls[:, 0]), path.sigma(self.calls[:, 0])], 1), self.calls[:, 1:])
        required(same, "path", path, f"the path of this run, {self.path}")
        return path, variances

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tableau):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.solver, self.path, self.weights.tobytes(), self.calls.tobytes()))

    def __fingerprint__(self) -> list[str]:
        return [rounded(numbers) for numbers in (self.times, self.entry, self.weights, *self.unusual.values())]

    @property
    def unusual(self) -> dict[str, np.ndarray]:
        """Second times, times told, scales of guidance and blurs by their names, as far as they are not usual."""
        return {name: value for name in USUAL if ((value := getattr(self, name)) != self._usual(name)).any()}

    def to_json(self) -> str:
        """The tableau as JSON text; floats survive bit for bit."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in plain.items()}
        for name in ("grid", "calls"):
            plain[name] = [[t if math.isfinite(t) else str(t), *levels] for t, *levels in plain[name]]
        for name in USUAL:
            values = plain.pop(name)
            if name in self.unusual:
                plain[name] = [t if math.isfinite(t) else str(t) for t in values]
        return dumps({"format": FORMAT, **plain})

    @classmethod
    def from_json(cls, text: str) -> Tableau:
        """The inverse of `to_json`; a ValueError if the text is not such a tableau."""
        try:
            plain = parsed(text)
            names = [f.name for f in fields(cls)]
            choice("format", plain.get("format"), [FORMAT])
            known = {"format", *names}
            complete = known - {*USUAL} <= set(plain) <= known
            required(complete, "its entries", sorted(plain), f"format, {', '.join(names)}")
            arrays = {
                name: numbers(name, instance(name, plain[name], list, "a list"))
                for name in names
                if name not in ("solver", "path", "order", "frame") and name in plain
            }
            whole = isinstance(plain["node"], list) and all(type(node) is int for node in plain["node"])
            required(whole, "node", plain["node"], "a list of integers")
            instance("frame", plain["frame"], list, "a list of names")
            required(all(isinstance(name, str) for name in plain["frame"]), "frame", plain["frame"], "a list of names")
            return cls(plain["solver"], plain["path"], order=plain["order"], frame=tuple(plain["frame"]), **arrays)
        except (ValueError, TypeError) as error:
            raise ValueError(f"not a {FORMAT} file: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tableau as JSON: the whole file or none of it."""
        write_whole(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tableau:
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is not such a tableau, naming it.
        """
        with reading(path, "one that Tableau.save wrote"):
            return cls.from_json(FilePath(path).read_text(encoding="utf-8"))

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Copies and pickles come by here; arrays lose their read-only flag on the way.
        for name, value in state.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        """One line; the whole table is `str(tableau)`."""
        return (
            f"Tableau(solver={self.solver!r}, path={self.path!r}, steps={self.steps}, nfe={self.nfe}, "
            f"order={self.order}, history={self.history})"
        )

    def __str__(self) -> str:
        return self.table()

    def table(self, extra: tuple[str, Sequence[float] | np.ndarray] | None = None) -> str:
        """All of the weights as text, call by call; `extra` is one more column: its title and a number a call."""
        frames = ", ".join(dict.fromkeys(self.frame))
        head = (
            f"{self.solver} on {self.path}: {self.steps} steps, {self.nfe} network calls, order {self.order}, "
            f"history {self.history}, d = {frames}"
        )
        columns = ["s", "y", "d", *(f"d-{j}" for j in range(1, self.history)), "z"]
        lines = [
            head,
            f"{'call':>4} {'t':>11} {'alpha':>9} {'sigma':>9}    "
            + "".join(f"{c:>11}" for c in columns)
            + (f"  {extra[0]}" if extra else ""),
        ]
        for i, (t, alpha, sigma) in enumerate(self.calls):
            s, y = self.weights[i]
            lines.append(
                f"{i:4d} {t:11.6g} {alpha:9.5g} {sigma:9.5g} y' "
                + _cells(y)
                + (f"{extra[1][i]:{len(extra[0]) + 2}.3g}" if extra else "")
            )
            if not np.array_equal(s, y):
                lines.append(f"{'':36} s' " + _cells(s))
        t, alpha, sigma = self.grid[-1]
        return "\n".join([*lines, f" end {t:11.6g} {alpha:9.5g} {sigma:9.5g}"])


def _cells(weights: np.ndarray) -> str:
    return "".join(f"{w:11.5g}" if w else f"{'.':>11}" for w in weights)
