"""The linear theory of runs, as a picture: what errors of a network become, and how far runs are expected to end.

python benchmarks/theory.py   # docs/designed.png and results/theory.jsonl, some seconds
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from record import Recorder

import diffsolve as ds
from diffsolve.tableau.theory import output_unit

plt.style.use("diffsolve.common.look")
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "designed.png"
KINDS = (("ddpm", "noise"), ("edm", "denoised"), ("condot", "velocity"), ("cosine", "v"), ("edm", "edm"))
RUNS = (
    ("auto", None),
    ("unipc-3", "uniform-lambda"),
    ("dpmpp-2m", "karras"),
    ("deis-2", "quadratic"),
    ("abm-3(variable='theta')", "angle"),
)
BUDGETS = (5, 6, 8, 10, 15, 20, 30)
DELTA = 0.03


def main(argv: Sequence[str] | None = None) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    lam = np.linspace(-4.3, 4.3, 200)
    for path, predicts in KINDS:
        p = ds.paths.named(path).nodes(ds.paths.named(path).time(lam))
        label = "raw EDM" if predicts == "edm" else predicts
        left.semilogy(lam, (p.alpha + p.sigma) * abs(output_unit(predicts, p)), label=label)
    left.set(xlabel="lambda: noise to data", ylabel="factor in the straight velocity", title="An error of the network")
    recorder = Recorder("theory")
    table = recorder.table("expected error", ["solver", "grid", "NFE"], {"error": ".2e"})
    for name, grid in RUNS:
        tableau = ds.plan("ddpm", name, nfe=10, grid=grid, predicts="noise")
        gains = tableau.amplification(predicts="noise", path="ddpm")
        called = np.log(tableau.calls[:, 1] / tableau.calls[:, 2])
        label = name if grid is None else f"{name}, {grid}"
        middle.semilogy(called, gains, "o-", ms=4, label=label)
        errors = []
        for nfe in BUDGETS:
            run = ds.plan("ddpm", name, nfe=nfe, grid=grid, predicts="noise")
            errors.append(run.expected_error(delta=DELTA, predicts="noise", path="ddpm"))
            table.add([name, grid or "its own", nfe], [errors[-1]])
        right.loglog(BUDGETS, errors, "o-", ms=4, label=label)
    middle.set(xlabel="lambda of the call", ylabel="end / error", title="At a call: noise, ddpm, 10 calls")
    right.set(xlabel="network calls", ylabel="distance to the own end", title=f"Expected, with an error of {DELTA}")
    right.set_xticks(BUDGETS, [str(n) for n in BUDGETS], minor=False)
    right.minorticks_off()
    for axes in (left, middle, right):
        axes.legend(fontsize=7)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
