r"""Rectified flow: pairs of a flow's two ends, from which a straighter flow is trained (Liu et al., 2209.03003).

    ds.training.reflow(model, (50_000, 2), "pairs", nfe=20, seed=0)
    ds.training.fit(again, ds.training.Pairs("pairs"), "reflow.safetensors")

The flow trained on them has the same ends at no greater transport cost; repeated k times it is the k-rectified flow, in
the limit one of lines, for which one call of euler is exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffsolve.api.sampling import solve
from diffsolve.common.checks import integer, mapping, required
from diffsolve.common.files import FileError, read_tensors, write_tensors
from diffsolve.common.fingerprint import describe, weights_of
from diffsolve.common.records import Records, read
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import GridLike, plan, refuse
from diffsolve.models import as_model
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.training.data import Tensors, is_per_sample

__all__ = ["Pairs", "reflow", "straightness"]

RECORDS, ACCEPTED = "pairs.jsonl", "a shard of pairs"


def reflow(
    model: ModelLike,
    shape: Shape,
    out: str | os.PathLike[str],
    *,
    solver: str | Solver | Tableau = "auto",
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    guidance: float | Guidance | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 500,
    force: bool = False,
    progress: bool = False,
) -> Pairs:
    """Run a flow from many noises, and keep (noise, end) of each, with its conditions.

    The shards of an interrupted call are kept, and the same call goes on; pair i is a function of (seed, i) alone.

    Args:
        model: as in `ds.solve`.
        shape: (n, ...), of n pairs.
        out: a folder, made if it does not exist. It gets "pairs.jsonl", with the settings and a line per shard, and
            the shards as safetensors.
        solver, steps, nfe, grid, guidance: the run, as in `ds.solve`; a deterministic one for a flow.
        cond: as in `ds.solve`; tensors of n rows have a row per pair, and are kept with it.
        seed: of the noise.
        batch: pairs of a shard, which are run at once.
        force: start anew, whatever the folder has.
        progress: show a bar.

    Returns:
        The pairs, data for `ds.training.fit`.

    Raises:
        ValueError: if an argument is out of range, or the folder's pairs have other settings.
        BlockingIOError: while another call writes there.
    """
    model = as_model(model)
    count, event, batch = integer("shape[0]", shape[0], 1), tuple(shape[1:]), integer("batch", batch, 1)
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", steps=steps, nfe=nfe, grid=grid)
    else:
        solver = plan(model, solver, steps=steps, nfe=nfe, grid=grid, shape=tuple(shape))
    conditions, folder = mapping("cond", cond), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "network": weights_of(model.net), "path": str(model.path), "predicts": model.predicts,
        "tableau": describe(solver), "guidance": describe(guidance), "cond": describe(conditions),
        "seed": integer("seed", seed, 0), "shape": [count, *event], "batch": batch,
    }  # fmt: skip
    shards = range(math.ceil(count / batch))
    with Records(folder / RECORDS, settings, key=lambda entry: entry["shard"], force=force) as records:
        for shard in tqdm(shards, disable=not progress, unit="shard"):
            if shard in records.found:
                continue
            first, rows = shard * batch, min(batch, count - shard * batch)
            mine = {n: v[first : first + rows] if is_per_sample(v, count) else v for n, v in conditions.items()}
            noise = Key.of(seed, first).normal((rows, *event), dtype=model.state_dtype, device=model.device)
            run = solve(
                model, noise=noise * model.path.prior_std(), solver=solver, seed=seed, index=first, cond=mine,
                guidance=guidance, check=True,
            )  # fmt: skip
            kept = {f"cond.{name}": v for name, v in mine.items() if is_per_sample(v, rows)}
            write_tensors(folder / _name(shard), {"noise": noise, "x0": run.x, **kept})
            records.append({"shard": shard, "pairs": rows})
    return Pairs(folder)


class Pairs(Tensors):
    """The pairs of a folder of `reflow`, in memory: x0 (n, ...), and the conditions with their "noise".

    Raises:
        FileNotFoundError: if the folder or a shard is missing.
        ValueError: if the folder is not complete, or a file is not what it should be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        settings, entries = read(Path(folder) / RECORDS)
        shards = [_read(Path(folder) / _name(entry["shard"])) for entry in sorted(entries, key=lambda e: e["shard"])]
        found = sum(len(shard["x0"]) for shard in shards)
        wanted = settings["shape"][0]
        required(found == wanted, "folder", os.fspath(folder), f"one of {wanted} pairs, all of them made: {found} are")
        together = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        cond = {name.removeprefix("cond."): v for name, v in together.items() if name.startswith("cond.")}
        super().__init__(together["x0"], {**cond, "noise": together["noise"]})
        self.settings = settings
        """What made them."""


def straightness(
    model: ModelLike,
    shape: Shape,
    *,
    steps: int = 100,
    solver: str | Solver = "heun",
    guidance: float | Guidance | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> float:
    r"""How far a flow is from lines with constant speed: 0 if one call of euler is exact (2209.03003, section 2.2).

    .. math:: S = \int_0^1 E\, \Big| \frac{dx}{du} - (x_{u=1} - x_{u=0}) \Big|^2 du

    with u the path's clock, from 0 at the noise end to 1 at the data end, and the squared norm over all values of a
    sample. The derivative is that of the polygon of a run of `steps` steps, S that of the polygon, less than the flow's
    by O(1 / steps^2).

    Args:
        model, solver, guidance, cond, seed: as in `ds.solve`.
        shape: (n, ...), of the samples.
        steps: even on the path's clock.

    Raises:
        ValueError: if the clock is infinite at an end, as that of "ve": "edm" is that path with another clock.
    """
    model = as_model(model)
    finite = math.isfinite(model.path.t_noise) and math.isfinite(model.path.t_data)
    required(finite, "path", model.path, "one whose clock is finite at both ends")
    run = solve(
        model, tuple(shape), solver=solver, steps=steps, grid="uniform-t", seed=seed, cond=cond, guidance=guidance,
        trajectory=True,
    )  # fmt: skip
    assert run.trajectory is not None
    x = run.trajectory.double()
    u = torch.as_tensor((run.times - run.times[0]) / (run.times[-1] - run.times[0]), device=x.device)
    gaps = u.diff()
    slopes = x.diff(dim=0) / gaps.view(-1, *[1] * (x.dim() - 1))
    off = (slopes - (x[-1] - x[0])).flatten(2).square().sum(2) if x.dim() > 2 else (slopes - (x[-1] - x[0])).square()
    return float((off.mean(1) * gaps).sum())


def _name(shard: int) -> str:
    return f"pairs-{shard:05d}.safetensors"


def _read(file: Path) -> dict[str, Tensor]:
    tensors, _ = read_tensors(file, accepted=ACCEPTED)
    if not {"x0", "noise"} <= tensors.keys():
        raise FileError(file, ACCEPTED, f"it has {', '.join(tensors)}")
    return tensors
