r"""DDIM's table on the noise prediction of Fashion-MNIST: eta against steps.

    python -m benchmarks ddim              # half an hour on an idle core
    python -m benchmarks ddim --full       # 10 000 samples of each cell: days
    python -m benchmarks ddim --quick      # up to 20 steps, no records

DDIM (Song et al., 2010.02502), table 1, has FID on CIFAR-10 from 13.36 (eta = 0, 10 steps) to 4.04 (1000 steps), and
for sigma-hat, the larger variance of DDPM, from 367 to 3.17. Here: the same rows and columns for `fashion-noise`, FD in
the features of a small classifier. The claim is the order of rows and columns, not the numbers. Steps lie as there, at
the squares of even numbers, and at every row of the table for 1000 of them.

Samples are fewer where steps are many; FD is biased upwards by an amount that falls as one over their number, so
columns of different numbers are not to be compared without the last row: as many real images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from fashion import draw, labels_of, scores
from record import Recorder

from diffsolve.reference import data

ROWS = {
    "0": "ddim",
    "0.2": "ddim(eta=0.2)",
    "0.5": "ddim(eta=0.5)",
    "1": "ddim(eta=1)",
    "sigma-hat": "ddpm(variance='large')",
}
STEPS = {10: 1000, 20: 1000, 50: 400, 100: 400, 1000: 100}
"""Steps -> samples."""
FULL = 10_000


def real(num: int) -> float:
    """FD of as many training images, in the mean of ten draws."""
    images = data.fashion()[0]
    found = []
    for seed in range(10):
        pick = torch.randint(len(images), (num,), generator=torch.Generator().manual_seed(seed))
        found.append(scores(images[pick], None)[0])
    return sum(found) / len(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DDIM's table of eta and steps, on Fashion-MNIST.")
    parser.add_argument("--full", action="store_true", help=f"{FULL} samples in every cell")
    parser.add_argument("--quick", action="store_true", help="up to 20 steps; no records")
    parser.add_argument("--steps", nargs="+", type=int, choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--resume", action="store_true", help="keep the cells that are there")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("ddim", None if options.quick else "", resume=options.resume)
    table = recorder.table("FD on fashion-noise", ["steps", "samples"], dict.fromkeys([*ROWS, "real images"], ".3g"))
    for steps in options.steps:
        if options.quick and steps > 20:
            continue
        num = FULL if options.full else STEPS[steps]
        grid = "uniform-t" if steps == 1000 else "quadratic"
        labels = labels_of(num)
        values = []
        for name, solver in ROWS.items():
            value = table.value([steps, num], name) if options.resume else None
            if value is None:
                value = scores(draw("fashion-noise", labels, solver=solver, steps=steps, grid=grid), labels)[0]
            values.append(value)
        table.add([steps, num], [*values, real(num)])


if __name__ == "__main__":
    main()
