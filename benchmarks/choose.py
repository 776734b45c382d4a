r"""`ds.choose` beside `auto` at every budget, on noises that had no part in the choice.

    python -m benchmarks choose                                   # the digits network, NFE 4 to 20
    python -m benchmarks choose --network fashion --nfe 4 5 6 8   # a part of another; --resume adds it

One call of `ds.choose` for all budgets. Then the run chosen and that of `auto` go from `--fresh` other noises, with
labels at random: the mean over samples of |x - end| over the root mean square of |end|, where the ends are those of 200
calls of `auto`. "in deviations" is the mean of the differences, sample by sample, over its standard error: the bar is
that it be nowhere above 2. The time of the call is that of the processor, as for one idle core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from record import Recorder
from torch import Tensor

import diffsolve as ds
from diffsolve.models import Model
from diffsolve.tableau import Tableau

SHAPES = {"digits": (1, 8, 8), "fashion": (1, 28, 28)}
BUDGETS = tuple(range(4, 21))
CALLS, BATCH = 200, 64
"""Calls of the ends."""
SEED = 1000
"""Of the other noises; the pilot's are none of `ds.sample` with any seed."""


def labels_of(num: int, seed: int) -> Tensor:
    return torch.randint(10, (num,), generator=torch.Generator().manual_seed(seed))


def drawn(model: Model, shape: tuple[int, ...], solver: str | Tableau, nfe: int | None, num: int) -> Tensor:
    """The ends of a run from the other noises, (num, ...)."""
    labels, parts = labels_of(num, SEED), []
    for first in range(0, num, BATCH):
        some = labels[first : first + BATCH]
        x = ds.sample(model, (len(some), *shape), solver=solver, nfe=nfe, seed=SEED, index=first, cond={"label": some})
        parts.append(x)
    return torch.cat(parts).flatten(1).double()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="`ds.choose` beside `auto` at every budget.")
    parser.add_argument("--network", choices=list(SHAPES), default="digits")
    parser.add_argument("--nfe", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--noises", type=int, default=64, help="of the pilot")
    parser.add_argument("--seed", type=int, default=0, help="of the pilot")
    parser.add_argument("--fresh", type=int, default=256, help="noises to judge by")
    parser.add_argument("--resume", action="store_true", help="keep the records that are there")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    name, shape, model = options.network, SHAPES[options.network], ds.load(options.network)
    recorder = Recorder("choose", resume=options.resume)
    began = time.process_time()
    found = ds.choose(
        model, (options.noises, *shape), nfe=options.nfe, seed=options.seed,
        cond={"label": labels_of(options.noises, options.seed)},
    )  # fmt: skip
    seconds = time.process_time() - began
    about = f"{name}, {options.noises} noises of seed {options.seed}"
    cost = recorder.table("cost", ["pilot", "budgets"], {"calls": ",", "processor": (".0f", "s"), "floor": ".1e"})
    cost.add([about, " ".join(map(str, found))], [found.calls, seconds, found.floor])
    numbers = {"chosen": ".2e", "auto": ".2e", "ratio": ".2f", "in deviations": "+.1f"}
    columns = numbers | dict.fromkeys(("held out: chosen", "held out: auto"), ".2e") | {"solver": "", "grid": ""}
    table = recorder.table(f"{about}, judged by {options.fresh}", ["NFE"], columns)
    ends = drawn(model, shape, "auto", CALLS, options.fresh)
    size = float(ends.square().sum(1).mean().sqrt())
    for nfe, choice in found.items():
        runs = ((choice.tableau, None), ("auto", nfe))
        chosen, auto = ((drawn(model, shape, *run, options.fresh) - ends).norm(dim=1) / size for run in runs)
        far = chosen - auto
        deviations = float(far.mean() / far.std() * len(far) ** 0.5) if far.any() else 0.0
        values = [float(chosen.mean()), float(auto.mean()), float(chosen.mean() / auto.mean()), deviations]
        held = [choice.error.value, choice.auto.value]
        table.add([nfe], [*values, *held, choice.solver, choice.grid or "its own"])


if __name__ == "__main__":
    main()
