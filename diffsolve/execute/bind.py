"""Binding a tableau to a network's prediction type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from diffsolve import kernels
from diffsolve.common.caching import remembered
from diffsolve.common.fingerprint import rounded
from diffsolve.execute.blur import Blur
from diffsolve.execute.network import conversion, derivatives
from diffsolve.kernels import Row
from diffsolve.kernels.terms import OUT, D, S, Y, Z, terms
from diffsolve.models import Model, undetermined
from diffsolve.tableau import Tableau
from diffsolve.tableau.ends import TINY

__all__ = ["Program", "bind"]


@dataclass(frozen=True)
class Program:
    """A tableau bound to a network's prediction type: the conversions are folded into the weights."""

    tableau: Tableau
    prediction: str
    rows: tuple[Row, ...]
    """The entry, then one for each call."""
    scaled: bool
    """Whether the network's input is scaled: by c_in for a raw EDM network."""
    depth: int
    """The number of past predictions that are kept."""
    blur: Blur | None = None
    """What becomes of an output in space before its row takes it: `Executor.blurred`."""

    @cached_property
    def _lowered(self) -> dict[Any, tuple[Row, ...]]:
        return {}

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """What a state of this run must agree with: what it is, in words and as digests of its numbers.

        To nine digits, so that another machine's logarithms make no other run.
        """
        tableau = self.tableau
        return {
            "solver": tableau.solver,
            "path": tableau.path,
            "grid": rounded(tableau.times, tableau.calls, *tableau.unusual.values(), digits=9),
            "weights": rounded(tableau.entry, tableau.weights, tableau.clock, digits=9),
            "prediction": self.prediction,
        }

    def accept(self, run: Mapping[str, str] | None) -> None:
        """Check that a state is of this run; None, of a state made by hand, passes.

        Raises:
            ValueError: if it is of another, naming what differs.
        """
        if run is None or run == self.identity:
            return
        differ = {name: (run.get(name), value) for name, value in self.identity.items() if run.get(name) != value}
        words = [f"{name} {there!r}, here {here!r}" for name, (there, here) in differ.items() if name in WORDS]
        what = "; ".join(words) or f"another {' and other '.join(differ)}"
        raise ValueError(
            f"state must be of the run that continues it, got one of {what}. Continue with the same solver, grid, "
            "path, prediction and hook, as with solver=run.tableau"
        )

    def rows_on(self, like: Tensor, together: bool = False) -> tuple[Row, ...]:
        """The rows compiled for states such as `like`; tables on a device are copied there once.

        Args:
            together: for `kernels.update_requests`, with the rows of other runs.
        """
        compiled_by = kernels.backend_for(like, together)
        if compiled_by is None:
            return self.rows
        if (compiled_by, like.device) not in self._lowered:
            self._lowered[compiled_by, like.device] = compiled_by(self.rows, like.device)
        return self._lowered[compiled_by, like.device]


def bind(tableau: Tableau, model: Model, prediction: str | None = None, *, two_states: bool = False) -> Program:
    """The program that runs `tableau` with the outputs of `model`.

    Args:
        prediction: the prediction type that `Executor.advance` gets; that of the network if None.
        two_states: whether the run starts from a state whose s and y differ.

    Raises:
        ValueError: if the tableau was written for another path, or the network does not determine what it needs at a
            call.
    """
    # The cache key leaves out the network itself, so that one program serves every network of its kind.
    kind = replace(model, net=_no_network, clock="t", dtype=None, learned=None)
    return _bind(tableau, kind, prediction or model.predicts, two_states)


@remembered(maxsize=64)
def _bind(tableau: Tableau, model: Model, prediction: str, two_states: bool) -> Program:
    at = model.path.nodes(tableau.calls[:, 0])
    levels = np.stack([at.alpha, at.sigma], -1)
    off = np.abs(levels - tableau.calls[:, 1:]).max(-1) > 1e-9 * np.abs(levels).max(-1)
    if off.any():
        i = int(np.flatnonzero(off)[0])
        raise ValueError(
            f"solver={tableau.solver!r} was written for {tableau.path}, where t={tableau.calls[i, 0]:.6g} has alpha, "
            f"sigma = {tableau.calls[i, 1]:.6g}, {tableau.calls[i, 2]:.6g}; on {model.path} it has {levels[i, 0]:.6g}, "
            f"{levels[i, 1]:.6g}"
        )
    p, q = conversion(derivatives(model, tableau), replace(model, predicts=prediction), at)
    # Next to the data a denoised tells no noise: (x - alpha D) / sigma is rounding.
    rounding = (np.array(tableau.frame) == "noise") & (np.abs(q) * TINY >= 1) & (at.sigma <= TINY * at.alpha)
    bad = ~(np.isfinite(p) & np.isfinite(q)) | rounding
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise undetermined(prediction, tableau.frame[i], tableau.calls[i, 0])

    n, K, W = tableau.nfe, tableau.history, tableau.weights
    needed = [any(W[i + j, :, 2 + j].any() for j in range(1, min(K, n - i))) for i in range(n)]
    # The history keeps (p y + q out) / scale; scale is the last non-zero factor, which saves a pass over memory.
    scale = np.where(q != 0, q, np.where(p != 0, p, 1.0))
    single_state = not two_states and bool((tableau.entry[0] == tableau.entry[1]).all())  # s and y are one tensor
    input_scale = model.input_scale(at)
    input_scales = [1.0] * (n + 1) if input_scale is None else [*input_scale.tolist(), 1.0]
    sides = [terms({S: side[0], Z: side[1]}) for side in tableau.entry]
    rows = [Row(None, None if single_state else sides[0], sides[1], bool(tableau.entry[:, 1].any()), input_scales[0])]
    for i in range(n):
        sides = []
        for w in W[i]:
            on = {S: w[0] + w[1] if single_state else w[0], Y: 0.0 if single_state else w[1], OUT: 0.0, Z: w[-1]}
            if needed[i]:
                on[D] = w[2] * scale[i]
            else:
                on[S if single_state else Y] += w[2] * p[i]
                on[OUT] = w[2] * q[i]
            on.update({D + j: w[2 + j] * scale[i - j] for j in range(1, min(K, i + 1))})
            sides.append(terms(on))
        single_state = bool((W[i, 0] == W[i, 1]).all())
        keep = (float(p[i] / scale[i]), float(q[i] / scale[i])) if needed[i] else None
        rows.append(
            Row(keep, None if single_state else sides[0], sides[1], bool(W[i, :, -1].any()), input_scales[i + 1])
        )
    depth = K if any(needed) else 0
    return Program(tableau, prediction, tuple(rows), input_scale is not None, depth, Blur.of(tableau, p, q))


WORDS = ("solver", "path", "prediction")


def _no_network(*_: Any, **__: Any) -> Tensor:
    raise TypeError("a program has no network")
