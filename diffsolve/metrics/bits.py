"""Bits per dimension over a data set, one JSON line per sample: what was done is kept, and the same call goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    conditional: bool = False,
    about: dict[str, Any],
    **options: Any,
) -> tuple[int, float, float]:
    """(samples, mean bits per dimension, its standard error) of the first `num` samples of a data set.

    Args:
        out: a file with a line of settings, then a line per sample. Samples that it has are not evaluated again.
        conditional: give the network the labels.
        about: settings that must agree with those of the file.
        options: as in `ds.bits_per_dim`.

    Raises:
        ValueError: if the data set is unknown, or the file was made with other settings.
    """
    if data not in DATA:
        raise ValueError(f"data={data!r} is unknown; accepted: {', '.join(DATA)}")
    integers, labels, bins = DATA[data]()
    total = len(integers) if num is None else min(num, len(integers))
    settings = json.loads(json.dumps({"data": data, "conditional": conditional, **about, **bins}))
    lines = out.read_text().splitlines() if out.exists() else []
    if lines and json.loads(lines[0]) != settings:
        raise ValueError(f"out={str(out)!r} was made with other settings: {lines[0]}")
    # A line cut short by an interruption is made again.
    done = [entry for line in lines[1:] if line.endswith("}") for entry in [json.loads(line)]][:total]
    kept = [json.dumps(settings), *map(json.dumps, done)]
    out.write_text("\n".join(kept) + "\n")
    with out.open("a") as file:
        for first in range(len(done), total, batch):
            rows = slice(first, min(first + batch, total))
            cond = {"label": labels[rows]} if conditional else None
            found = bits_per_dim(model, integers[rows], index=first, cond=cond, **bins, **options)
            columns = zip(
                found.value.tolist(), found.stderr.tolist(), found.nfe.tolist(), found.jvps.tolist(), strict=True
            )
            for i, (value, stderr, nfe, jvps) in enumerate(columns):
                entry = {"index": first + i, "bits_per_dim": value, "stderr": stderr, "nfe": nfe, "jvps": jvps}
                done.append(entry)
                file.write(json.dumps(entry) + "\n")
            file.flush()
    values = torch.tensor([entry["bits_per_dim"] for entry in done], dtype=torch.float64)
    return len(done), float(values.mean()), float(values.std()) / math.sqrt(len(done)) if len(done) > 1 else math.nan
