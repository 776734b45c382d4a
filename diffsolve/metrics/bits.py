"""Bits per dimension over a data set, one JSON line per sample, resumed after an interruption."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffsolve.common.checks import choice, integer, number
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
    force: bool = False,
    progress: bool = False,
    **options: Any,
) -> tuple[int, float, float]:
    """(samples, mean bits per dimension, its standard error) of the first `num` samples of a data set.

    Args:
        out: a file with a line of settings, then a line per sample (see `diffsolve.common.records`). Samples in it
            are not evaluated again.
        num: number of samples, from the first; all if None.
        conditional: give the network the labels.
        about: settings that must equal those in the file.
        force: start the file anew, whatever it has.
        progress: show a bar, in samples.
        options: as in `ds.bits_per_dim`.

    Raises:
        ValueError: if the data set is unknown, or the file has other settings.
        BlockingIOError: while another run is writing the file.
    """
    choice("data", data, DATA)
    integers, labels, bins = DATA[data]()
    total = len(integers) if num is None else min(num, len(integers))
    settings = {"data": data, "conditional": conditional, **about, **bins}
    with (
        Records(out, settings, _index, force) as records,
        tqdm(total=total, initial=_count(records, total), disable=not progress, unit="sample") as bar,
    ):
        for rows in _missing(records, total, batch):
            cond = {"label": labels[rows]} if conditional else None
            bound = bits_per_dim(model, integers[rows], index=rows.start, cond=cond, **bins, **options)
            columns = zip(
                bound.value.tolist(), bound.stderr.tolist(), bound.nfe.tolist(), bound.jvps.tolist(), strict=True
            )
            records.append(
                *(
                    {
                        "index": rows.start + i,
                        "bits_per_dim": value if math.isfinite(value) else None,
                        "stderr": stderr if math.isfinite(stderr) else None,
                        "nfe": nfe,
                        "jvps": jvps,
                    }
                    for i, (value, stderr, nfe, jvps) in enumerate(columns)
                )
            )
            bar.update(rows.stop - rows.start)
    found = [records.found[i]["bits_per_dim"] for i in range(total)]
    values = torch.tensor([math.nan if value is None else value for value in found], dtype=torch.float64)
    return total, float(values.mean()), float(values.std()) / math.sqrt(total) if total > 1 else math.nan


def _index(entry: dict[str, Any]) -> int:
    """The index of a record, every number of which is checked; null stands for a value that was not finite."""
    for name in ("bits_per_dim", "stderr"):
        if entry[name] is not None:
            number(name, entry[name])
    for name in ("nfe", "jvps"):
        integer(name, entry[name], 0)
    return integer("index", entry["index"], 0)


def _count(records: Records, total: int) -> int:
    return sum(i in records.found for i in range(total))


def _missing(records: Records, total: int, batch: int) -> list[slice]:
    """The samples that the file does not have, as it is now, in batches of neighbours."""
    runs: list[slice] = []
    for i in range(total):
        if i in records.found:
            continue
        if runs and runs[-1].stop == i and i - runs[-1].start < batch:
            runs[-1] = slice(runs[-1].start, i + 1)
        else:
            runs.append(slice(i, i + 1))
    return runs
