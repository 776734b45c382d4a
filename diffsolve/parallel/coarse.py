"""A deterministic run of few calls, one after another: the source of guesses."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.parallel.base import Calls
from diffsolve.parallel.rows import Rows, advance_window

__all__ = ["one_by_one"]


def one_by_one(rows: Rows, calls: Calls, sample: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(f, y): the held derivative at each call, (N, B, n), and the result of a run from x (B, n).

    Args:
        calls: the network at the rows' tableau.
        sample: (B,), the indices of the samples.
    """
    tableau = rows.tableau
    s, y = (x * float(weight) for weight in tableau.entry[:, 0])
    d = x.new_zeros(tableau.history - 1, *x.shape)
    derivatives = []
    for i in range(tableau.nfe):
        row = torch.full_like(sample, i)
        derivatives.append(rows.fixed(row, y, calls(row, sample, y)))
        ss, ys, ds, _ = advance_window(rows, row[None], s, y, d, derivatives[-1][None], None)
        s, y, d = ss[1], ys[1], ds[1:]
    return torch.stack(derivatives), y
