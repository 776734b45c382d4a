r"""DDIM's table on the noise prediction of Fashion-MNIST: eta against steps.

    python -m benchmarks ddim                               # half an hour of one idle core
    python -m benchmarks ddim --resume --steps 10 20 50     # a part of it, beside what is there
    python -m benchmarks ddim --num 10000 --jobs 64         # in every cell: 30 hours of one core

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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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
STEPS = {10: 1000, 20: 1000, 50: 1000, 100: 1000, 1000: 100}
"""Steps -> samples."""


def real(num: int) -> float:
    """FD of as many training images, in the mean of ten draws."""
    images = data.fashion()[0]
    found = []
    for seed in range(10):
        pick = torch.randint(len(images), (num,), generator=torch.Generator().manual_seed(seed))
        found.append(scores(images[pick], None)[0])
    return sum(found) / len(found)


def cell(wanted: tuple[tuple[int, int], str]) -> float:
    """FD of ((steps, samples), row)."""
    (steps, num), row = wanted
    torch.set_num_threads(1)
    grid = "uniform-t" if steps == 1000 else "quadratic"
    return scores(draw("fashion-noise", labels_of(num), solver=ROWS[row], steps=steps, grid=grid), None)[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DDIM's table of eta and steps, on Fashion-MNIST.")
    parser.add_argument("--num", type=int, help="samples in every cell")
    parser.add_argument("--steps", nargs="+", type=int, choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--resume", action="store_true", help="keep the cells that are there")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each on one core")
    options = parser.parse_args(argv)
    recorder = Recorder("ddim", resume=options.resume)
    table = recorder.table("FD on fashion-noise", ["steps", "samples"], dict.fromkeys([*ROWS, "real images"], ".3g"))
    cases = [(steps, options.num or STEPS[steps]) for steps in options.steps]
    missing = [(case, row) for case in cases for row in ROWS if table.value(case, row) is None]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for (case, row), fd in zip(missing, pool.map(cell, missing), strict=True):
            table.put(case, row, fd)
    for case in cases:
        if table.value(case, "real images") is None:
            table.put(case, "real images", real(case[1]))
    print("\n".join(table.markdown()))


if __name__ == "__main__":
    main()
