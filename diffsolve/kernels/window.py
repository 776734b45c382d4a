"""The recurrence of a parallel-in-time solve over a window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsolve.common.checks import described
from diffsolve.kernels.dispatch import fused

__all__ = ["Window", "window_update"]

Window = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""s, y, d and change, as `window_update` returns them."""


def window_update(
    weights: Tensor,
    keep: Tensor,
    s: Tensor | None,
    y: Tensor,
    d: Tensor,
    f: Tensor,
    z: Tensor | None = None,
    old: Tensor | None = None,
    *,
    used: Sequence[Sequence[bool]] | None = None,
) -> Window:
    r"""Rows of a tableau one after another, with the derivatives given: one pass over a window of L calls.

        d_l = p_l y_l + q_l f_l,        [s_{l+1}, y_{l+1}] = W_l [s_l, y_l, d_l, .., d_{l-K+1}, z_l]

    Args:
        weights: (L, B, 2, K + 3), W of each call and sample.
        keep: (L, B, 2), its p and q.
        s, y: (B, n), the start; s is None if it is y throughout: then W's second row is read alone.
        d: (K - 1, B, n), of the calls before, oldest first.
        f: (L, B, n).
        z: (L, B, n), or None where its weight is 0.
        old: (L, B, n), the previous y_1 .. y_L.
        used: (2, K + 3), which weights are not 0 in some call; all by default.

    Returns:
        s and y, (L + 1, B, n) with the start first; d, (K - 1 + L, B, n); and if old is given, (L, B): the sum over n
        of (y_{l+1} - old_l)^2, float32, or float64 if y or old has it. s is y if s was None.

    Raises:
        ValueError: if shapes disagree.
    """
    L, columns = len(f), len(d) + 4
    for name, tensor, shape in (
        ("weights", weights, (L, len(y), 2, columns)),
        ("keep", keep, (L, len(y), 2)),
        ("s", s, y.shape),
        ("d", d, (len(d), *y.shape)),
        ("f", f, (L, *y.shape)),
        ("z", z, (L, *y.shape)),
        ("old", old, (L, *y.shape)),
    ):
        if tensor is not None and tensor.shape != torch.Size(shape):
            raise ValueError(f"{name} must be of shape {tuple(shape)} with y {tuple(y.shape)}, got {described(tensor)}")
    used = used or [[True] * columns] * 2
    run = fused(y.device, "window_update")
    if run is not None:
        masks = tuple(sum(1 << c for c in range(columns) if side[c]) for side in used)
        window: Window = run(weights, keep, s, y, d, f, z, old, masks)
        return window
    return _window_update(weights, keep, s, y, d, f, z, old, used)


def _window_update(
    weights: Tensor,
    keep: Tensor,
    s: Tensor | None,
    y: Tensor,
    d: Tensor,
    f: Tensor,
    z: Tensor | None,
    old: Tensor | None,
    used: Sequence[Sequence[bool]],
) -> Window:
    """The same with torch. Views are made all at once: with small samples indexing would cost as much as the sums."""
    L, before = len(f), len(d)
    ys, ds = y.new_empty(L + 1, *y.shape), y.new_empty(before + L, *y.shape)
    ss = ys if s is None else torch.empty_like(ys)
    ds[:before], ss[0], ys[0] = d, y if s is None else s, y
    s_at, y_at, d_at = ss.unbind(), ys.unbind(), ds.unbind()
    f_at, z_at = f.unbind(), None if z is None else z.unbind()
    p, q = [column.unbind() for column in keep[..., None].unbind(2)]
    w = weights.permute(2, 3, 0, 1)[..., None]  # (2, K + 3, L, B, 1)
    sides = []
    for side, into in ((1, y_at),) if s is None else ((0, s_at), (1, y_at)):
        columns = [c for c in range(before + 4) if used[side][c] and (c < before + 3 or z is not None)]
        sides.append((into, [(c, w[side, c].unbind()) for c in columns]))
    for l in range(L):  # noqa: E741
        now = d_at[l + before]
        torch.mul(f_at[l], q[l], out=now).addcmul_(y_at[l], p[l])
        live = [s_at[l], y_at[l], *d_at[l : l + before + 1][::-1], *(() if z_at is None else (z_at[l],))]
        for into, terms in sides:
            new = into[l + 1]
            (c, weight), *rest = terms
            torch.mul(live[c], weight[l], out=new)
            for c, weight in rest:
                new.addcmul_(live[c], weight[l])
    change = None
    if old is not None:
        acc = torch.float64 if torch.float64 in (y.dtype, old.dtype) else torch.float32
        change = (ys[1:].to(acc) - old.to(acc)).square().sum(-1)
    return ss, ys, ds, change
