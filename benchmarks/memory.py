r"""Time and memory of a sweep against the number of samples.

    python -m benchmarks memory   # two minutes on an idle core; results/memory.jsonl

Each row is one `metrics.sweep` of the digits network in a new process, by `auto` with 5 calls, 250 samples at a time,
in the 32 features of a small classifier. "frechet" alone streams the features into their moments; the default scores
have KID, for which the features of all are kept, 128 bytes of each. The peak is `ru_maxrss`, "before" that of a process
that has imported and loaded everything and sampled one batch; time is the processor's after that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from record import Recorder

import diffsolve as ds
from diffsolve import metrics
from diffsolve.metrics.data import DATA

NUMS = (1000, 4000, 16_000)
SCORES = {"frechet": ("frechet",), "FD, FD inf, KID": None}
UNIT = 1024 if sys.platform == "darwin" else 1  # of ru_maxrss


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT / 1024


def measured(num: int, kind: str) -> dict[str, float]:
    """Of a sweep in this process."""
    torch.set_num_threads(1)
    model, reference = ds.load("digits"), DATA["digits"]()
    cond = {"label": torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))}

    def sweep(count: int) -> None:
        metrics.sweep(model, (1, 8, 8), reference=reference, nfe=5, num=count, exact=0, scores=SCORES[kind], cond=cond)

    sweep(250)
    before, began = peak(), time.process_time()
    sweep(num)
    return {"before": before, "peak": peak(), "a sample": 1e3 * (time.process_time() - began) / num}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a sweep against the number of samples.")
    parser.add_argument("--scores", nargs="+", choices=list(SCORES), default=list(SCORES))
    parser.add_argument("--resume", action="store_true", help="beside the records of other scores")
    parser.add_argument("--one", nargs=2, metavar=("NUM", "SCORES"), help="one sweep in this process, as JSON")
    options = parser.parse_args(argv)
    if options.one is not None:
        print(json.dumps(measured(int(options.one[0]), options.one[1])))
        return
    recorder = Recorder("memory", resume=options.resume)
    columns = {"before": (".0f", "MB"), "peak": (".0f", "MB"), "a sample": (".2f", "ms")}
    table = recorder.table("a sweep of the digits network", ["scores", "samples"], columns)
    for kind in options.scores:
        for num in NUMS:
            command = [sys.executable, __file__, "--one", str(num), kind]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            table.add([kind, num], list(found.values()))


if __name__ == "__main__":
    main()
