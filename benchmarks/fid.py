r"""Distance to the data against network calls, on the digits network: the sweep of docs/benchmarking.md at some length.

    python benchmarks/fid.py             # results/fid.md and fid.png
    python benchmarks/fid.py --quick     # one seed, three budgets; the full run goes on from it

Per solver, budget and seed 1000 labelled digits, compared with all 1797 of the data in the features of a small
classifier and in pixels, and 200 endpoints with 200 calls of auto. Lines of .cache/fid.jsonl are kept between runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from record import Recorder, stamp, stamped

import diffsolve as ds
from diffsolve.metrics import Statistics, Table, frechet, kid, sweep
from diffsolve.metrics.data import DATA
from diffsolve.reference.digits import load_data

HERE = Path(__file__).resolve().parent
BUDGETS = (4, 5, 6, 8, 10, 20, 50)
NUM = 1000
SOLVERS = {
    "auto": "auto",
    "unipc-3, angle": {"solver": "unipc-3", "grid": "angle"},
    **{
        name: name
        for name in (
            "FlowMatchEulerDiscreteScheduler",
            "FlowMatchHeunDiscreteScheduler",
            "DPM++ 2M",
            "DPM++ 2M Karras",
            "UniPCMultistepScheduler",
            "Euler a",
        )
    },
}


def floors(references: dict[str, Statistics], num: int) -> str:
    """What real digits score: two halves of the data, and digits of the data drawn again, with replacement."""
    images, _ = load_data()
    lines = []
    for name, reference in references.items():
        halves, again, kernels = [], [], []
        for seed in range(10):
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(images), generator=generator).tensor_split(2)
            halves.append(frechet(*(Statistics.of(images[rows], reference.features) for rows in order)))
            drawn = images[torch.randint(len(images), (num,), generator=generator)]
            redrawn = Statistics.of(drawn, reference.features)
            again.append(frechet(redrawn, reference))
            kernels.append(kid(redrawn, reference).value)
        fd, fd_again, kd_again = map(statistics.mean, (halves, again, kernels))
        lines.append(f"| {name} | {fd:.3f} | {fd_again:.3f} | {kd_again:.2g} |")
    return "\n".join(lines)


def report(table: Table, references: dict[str, Statistics]) -> str:
    num = table.about["num"]
    cost = statistics.median(1e3 * row.seconds / row.calls for row in table.rows)
    return f"""# Distance to the data against network calls: the digits network

`benchmarks/fid.py`, {stamped([stamp()])}.
CondOT, labels at random, without guidance. Solvers with other libraries' names are those methods of ours
(`ds.solvers.aliases()`), on the grid that the name stands for or else the path's. In brackets: the calls made, where
they are not those of the column. One network call cost {cost:.2g} ms per sample on one core.

What real digits score, in the mean of ten draws:

| features | FD between two halves of the data | FD of {num} of the data, drawn again, to all | their KID |
|--|--|--|--|
{floors(references, num)}

The network was trained on the same 1797 digits that are the reference. So the last two columns are the floor here:
samples as near to the training data as the training data are, nearer than new digits would be.

{table}
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Distance to the data against network calls.")
    parser.add_argument("--quick", action="store_true", help="one seed and three budgets")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    (options.cache / ".gitignore").write_text("*\n")
    # At random and not in turn, which would be a stratified sample: closer to the data than real digits are.
    labels = torch.randint(10, (NUM,), generator=torch.Generator().manual_seed(0))
    references = {"classifier": DATA["digits"](), "pixels": Statistics.of(load_data()[0])}
    table = sweep(
        ds.load("digits"), (1, 8, 8), reference=references, solvers=SOLVERS,
        nfe=(5, 10, 20) if options.quick else BUDGETS, num=NUM, batch=200, seeds=1 if options.quick else 3,
        cond={"label": labels}, exact=200, out=options.cache / "fid.jsonl", progress=True,
    )  # fmt: skip
    text = report(table, references)
    recorder = Recorder("fid", None if options.quick else "")
    names = list(dict.fromkeys(name for row in table.rows for name in row.scores))
    columns = {"calls": ".4g", "seconds": ".2g"} | dict.fromkeys(names, ".3g")
    records = recorder.table("samples", ["solver", "nfe", "seed"], columns)
    for row in table.rows:
        values = [row.calls, row.seconds, *map(row.scores.get, names)]
        records.add([row.solver, row.nfe, row.seed], values, live=False)
    (options.out / "fid.md").write_text(text)
    table.plot(options.out / "fid.png")
    print(text)


if __name__ == "__main__":
    main()
