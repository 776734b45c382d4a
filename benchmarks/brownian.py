"""Random queries of a Brownian path, here and in torchsde: seconds, ratios, memory.

    python benchmarks/brownian.py            # a few minutes on one core; results/brownian.jsonl
    python benchmarks/brownian.py --full     # all of torchsde's 1e5 queries too

Increments over random intervals of [0, 1]. torchsde's `BrownianInterval` takes one interval at a time and keeps a
tree that grows with what it was asked; with its default settings its values also depend on the order of the
queries. `halfway_tree` is its mode where they do not. `batch` is ours with all intervals in one call, `one by one` in
a loop like torchsde's. Times are of the processor, the least of alternating repetitions in this process.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
import torchsde
from record import Recorder, Table

import diffsolve as ds


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def one_by_one(path: Callable[[float, float], object], queries: np.ndarray) -> None:
    for s, t in queries.tolist():
        path(s, t)


def compare(table: Table, shape: tuple[int, ...], count: int, theirs: int, repeats: int, halfway: bool) -> None:
    """Ours for `count` queries; torchsde's for the first `theirs`, per query (the later ones cost no less)."""
    queries = np.sort(np.random.default_rng(0).random((count, 2)), axis=1)
    some = queries[:theirs]
    options = {"halfway_tree": True, "tol": 1e-6} if halfway else {}
    times: dict[str, list[float]] = {"batch": [], "one by one": [], "torchsde": []}
    for _ in range(repeats):
        path = ds.Brownian(shape, seed=0)
        times["batch"].append(seconds(lambda: path(queries[:, 0], queries[:, 1])) / count)  # noqa: B023
        path = ds.Brownian(shape, seed=0)
        times["one by one"].append(seconds(lambda: one_by_one(path, some[:1000])) / len(some[:1000]))  # noqa: B023
        interval = torchsde.BrownianInterval(0.0, 1.0, size=shape, entropy=0, **options)
        times["torchsde"].append(seconds(lambda: one_by_one(interval, some)) / len(some))  # noqa: B023
    best = {name: min(values) for name, values in times.items()}
    label = "torchsde, halfway_tree" if halfway else "torchsde"
    ratios = [best["torchsde"] / best[name] for name in ("batch", "one by one")]
    table.add([str(shape), count, f"{label}, {len(some)}"], [*(1e6 * best[name] for name in times), *ratios])


def scratch(shape: tuple[int, ...], count: int) -> float:
    """Peak of NumPy's memory in a batched query, MB: it does not grow with the number of queries."""
    queries = np.random.default_rng(0).random((count, 2))
    path = ds.Brownian(shape, seed=0)
    tracemalloc.start()
    path(queries[:, 0], queries[:, 1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="run all of torchsde's queries, not the first ones")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warm = ds.Brownian((4, 4), seed=0)
    warm(0.25, 0.7)
    recorder = Recorder("brownian")
    columns = {name: (".0f", "us") for name in ("batch", "one by one", "torchsde")}
    columns |= {name: (".1f", "") for name in ("ratio, batch", "ratio, one by one")}
    table = recorder.table("a query", ["shape", "queries", "against"], columns)
    small, image = (64,), (16, 3, 32, 32)
    if arguments.full:
        compare(table, image, 1000, 1000, 1, False)
        compare(table, small, 100_000, 100_000, 1, False)
    for halfway in (False, True):
        compare(table, small, 100_000, 1000, arguments.repeats, halfway)
        compare(table, image, 1000, 300, arguments.repeats, halfway)
    memory = recorder.table("NumPy's memory at the peak of a batch", ["shape", "queries"], {"scratch": (".1f", "MB")})
    for count in (10_000, 100_000):
        memory.add([str(small), count], [scratch(small, count)])


if __name__ == "__main__":
    main()
