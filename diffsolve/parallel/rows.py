"""The tableau's recurrence for samples that stand at rows of their own, with some output of each call held fixed.

Between two sweeps of an iteration only the network's outputs are not exact. What is held fixed is the derivative f of a
*frame*, f = P y + Q out; the tableau's d is then p y + q f at the *current* y. Every frame has the same fixed point,
and the choice of the frame is the choice of the splitting: a derivative that is nearly constant along a run converges
in the fewest sweeps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffsolve.execute import conversion, derivatives
from diffsolve.kernels.window import Window, window_update
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import FRAMES

__all__ = ["Rows", "advance_window", "gather_slots", "shifted", "step_variance"]


class Rows:
    """A tableau's rows as tensors. Row N, after the last, keeps s and y as they are.

    Attributes:
        weights: (N + 1, 2, K + 3), as in the tableau.
        keep: (N + 1, 2): p, q with d = p y + q f.
        fix: (N, 2): P, Q with f = P y + Q out.
        variance: (N + 1,): see `step_variance`; infinite for row N.
    """

    def __init__(self, tableau: Tableau, model: Model, frame: str, like: Tensor) -> None:
        at = model.path.nodes(tableau.calls[:, 0])
        with np.errstate(all="ignore"):
            self.target = FRAMES[frame].d(at)
        fix = np.stack(conversion(self.target, model, at), -1)
        # Where the output does not determine f, nor f the output, the output itself is held.
        lost = ~(np.isfinite(fix).all(-1) & (fix[:, 1] != 0))
        fix[lost] = 0.0, 1.0
        keep = np.stack(conversion(derivatives(model, tableau), model, at), -1)
        keep[:, 1] /= fix[:, 1]
        keep[:, 0] -= keep[:, 1] * fix[:, 0]
        last = np.zeros((1, 2, tableau.history + 3))
        last[0, :, :2] = np.eye(2)
        weights = np.concatenate([tableau.weights, last])
        self.single = bool((tableau.weights[:, 0] == tableau.weights[:, 1]).all() and _alike(tableau.entry))
        if self.single:
            weights = np.insert(weights[..., 1:], 0, 0.0, axis=-1) + weights[..., :1] * np.eye(tableau.history + 3)[1]
            weights[-1] = np.eye(tableau.history + 3)[1]

        dtype = torch.promote_types(like.dtype, torch.float32)
        self.tableau, self.frame, self.lost = tableau, frame, lost
        self.weights, self.keep, self.fix, self.variance = (
            torch.from_numpy(np.ascontiguousarray(array)).to(like.device, dtype)
            for array in (
                weights,
                np.concatenate([keep, np.zeros((1, 2))]),
                fix,
                np.append(step_variance(tableau), np.inf),
            )
        )
        self.used = (weights != 0).any(0).tolist()
        self.noisy: list[bool] = np.append(tableau.weights[:, :, -1].any(1), False).tolist()

    def fixed(self, row: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """f of the outputs at y, for (M, n) inputs at rows (M,)."""
        on_y, on_out = self.fix[row][..., None].unbind(1)
        return torch.addcmul(on_out * out, on_y, y).to(y.dtype)

    def guess(self, y: Tensor) -> Tensor:
        """f before any call, as (N + 1,) weights on the start: that of unit normal data.

        There the flow is y_t = (r_t / r_0) y_0 with r = sqrt(alpha^2 + sigma^2), x_0 = alpha y / r^2 and
        eps = sigma y / r^2.
        """
        alpha, sigma = self.tableau.calls[:, 1:].T
        a, b = (np.broadcast_to(c, self.lost.shape) for c in self.target)
        r = np.hypot(alpha, sigma)
        with np.errstate(invalid="ignore"):  # where the frame is lost
            f = (a * alpha + b * sigma) / (r * r[0])
        return torch.from_numpy(np.append(np.where(self.lost, 0.0, f), 0.0)).to(y)


def advance_window(
    rows: Rows,
    row: Tensor,
    s: Tensor,
    y: Tensor,
    d: Tensor,
    f: Tensor,
    z: Tensor | None,
    slope: Tensor | None = None,
    old: Tensor | None = None,
) -> Window:
    """The recurrence over L calls, each sample from a row of its own: exact linear algebra, given f.

        d_l = p y_l + q f_l,        [s_{l+1}, y_{l+1}] = weights @ [s_l, y_l, d_l, .., d_{l-K+1}, z_l]

    Args:
        row: (L, B), the rows.
        s, y: (B, n), the state and the network's input at the first of them.
        d: (K - 1, B, n), the derivatives of the calls before, oldest first.
        f: (L, B, n), the derivatives held fixed.
        z: (L, B, n), the noise, or None.
        slope: (L, B), if f + slope y is held fixed.
        old: (L, B, n), the previous y_1 .. y_L.

    Returns:
        s and y, (L + 1, B, n) with the start first; d, (K - 1 + L, B, n); and with old, the squared changes (L, B). s
        is y if they are one tensor.
    """
    weights, (p, q) = rows.weights[row], rows.keep[row].unbind(-1)
    if slope is not None:
        p = torch.addcmul(p, q, slope)
    return window_update(weights, torch.stack([p, q], -1), None if rows.single else s, y, d, f, z, old, used=rows.used)


def gather_slots(slots: Tensor, index: Tensor) -> Tensor:
    """slots[index[l, b], b] for slots (L, B, n) and index (l, B)."""
    return slots.gather(0, index[..., None].expand(-1, -1, slots.shape[-1]))


def shifted(slots: Tensor, index: Tensor) -> Tensor:
    """`gather_slots` from slots that are followed by zeros."""
    beyond = index >= len(slots)
    return gather_slots(slots, index.clamp(max=len(slots) - 1)).masked_fill_(beyond[..., None], 0.0)


def step_variance(tableau: Tableau) -> np.ndarray:
    """(N,): the noise variance of ancestral sampling over each call's move, sigma_t^2 (1 - e^{-2 |h|}).

    This is the scale that ParaDiGMS (2305.16317) measures changes by, for deterministic solvers too. sigma_t is the
    smaller one of the two levels. Where it is 0 (at the data, and where a call does not move) the scale is that of
    the call before, or after if there is none; 1 if there is none at all.
    """
    alpha, sigma = np.concatenate([tableau.calls[:, 1:], tableau.grid[-1:, 1:]]).T
    rising = alpha[:-1] * sigma[1:] > alpha[1:] * sigma[:-1]  # towards the noise
    i = np.arange(tableau.nfe)
    noisy, clean = i + rising, i + ~rising
    with np.errstate(all="ignore"):
        ratio = alpha[noisy] * sigma[clean] / (alpha[clean] * sigma[noisy])
        variance = sigma[clean] ** 2 * (1 - ratio**2)
    good = np.flatnonzero(np.isfinite(variance) & (variance > 0))
    if not len(good):
        return np.ones(tableau.nfe)
    filled: np.ndarray = variance[good[np.maximum(np.searchsorted(good, i, side="right") - 1, 0)]]
    return filled


def _alike(entry: np.ndarray) -> bool:
    return bool((entry[0] == entry[1]).all())
