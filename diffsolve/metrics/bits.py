"""Bits per dimension over a data set, one JSON line per sample, resumed after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice, required
from diffsolve.common.records import Records
from diffsolve.likelihood.bits import bits_per_dim
from diffsolve.models import Model

__all__ = ["DATA", "evaluate"]


def _digits() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The digits as integers 0 to 16: the network's values n / 8 - 1 are the middles of the bins."""
    from diffsolve.reference.digits import load_data

    images, labels = load_data()
    return (images * 8 + 8).round().long(), labels, {"levels": 17, "data_range": (-17 / 16, 17 / 16)}


DATA: dict[str, Callable[[], tuple[Tensor, Tensor, dict[str, Any]]]] = {"digits": _digits}
"""name -> (integers, labels, how they are quantised)."""


def evaluate(
    model: Model,
    data: str,
    out: Path,
    *,
    num: int | None = None,
    batch: int = 64,
    conditional: bool,
    about: dict[str, Any],
    **options: Any,
) -> tuple[int, float, float]:
    """(samples, mean bits per dimension, its standard error) of the first `num` samples of a data set.

    Args:
        out: a file with a line of settings, then a line per sample (see `diffsolve.common.records`). Samples in it
            are not evaluated again.
        num: number of samples, from the first; all if None.
        conditional: give the network the labels.
        about: settings that must equal those in the file.
        options: as in `ds.bits_per_dim`.

    Raises:
        ValueError: if the data set is unknown, or the file has other settings.
        BlockingIOError: while another run is writing the file.
    """
    choice("data", data, DATA)
    integers, labels, bins = DATA[data]()
    total = len(integers) if num is None else min(num, len(integers))
    with Records(out, {"data": data, "conditional": conditional, **about, **bins}) as records:
        for i, entry in enumerate(records.entries):
            known = entry.get("index") == i and isinstance(entry.get("bits_per_dim"), float)
            required(known, f"file {str(out)!r}, line {i + 2}", entry, f"the bits_per_dim of sample {i}")
        for first in range(len(records.entries), total, batch):
            rows = slice(first, min(first + batch, total))
            cond = {"label": labels[rows]} if conditional else None
            bound = bits_per_dim(model, integers[rows], index=first, cond=cond, **bins, **options)
            columns = zip(
                bound.value.tolist(), bound.stderr.tolist(), bound.nfe.tolist(), bound.jvps.tolist(), strict=True
            )
            records.append(
                *(
                    {"index": first + i, "bits_per_dim": value, "stderr": stderr, "nfe": nfe, "jvps": jvps}
                    for i, (value, stderr, nfe, jvps) in enumerate(columns)
                )
            )
    values = torch.tensor([entry["bits_per_dim"] for entry in records.entries[:total]], dtype=torch.float64)
    return total, float(values.mean()), float(values.std()) / math.sqrt(total) if total > 1 else math.nan
