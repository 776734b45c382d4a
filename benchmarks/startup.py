"""What it costs to begin: `import diffsolve` beyond PyTorch, and `diffsolve --help`.

    python benchmarks/startup.py             # results/startup.jsonl; a minute
    python benchmarks/startup.py --quick     # three times each, to the terminal

Processor and wall seconds of fresh processes, taken in turns: the least and the median of them. Tests do not time
anything; the bounds that the project holds itself to are the column "bound".
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from record import Recorder

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import diffsolve": [sys.executable, "-c", "import torch; import diffsolve"],
    "diffsolve --help": [sys.executable, "-c", "import sys; sys.argv = ['diffsolve', '--help']\n"
                                               "from diffsolve.cli.app import app\napp()"],
}  # fmt: skip


def seconds(command: list[str]) -> tuple[float, float]:
    """(wall, processor) seconds of a process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    children = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three times each, and nothing is written")
    options = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for turn in range(4 if options.quick else 12):
        for name, command in COMMANDS.items():
            measured = seconds(command)
            if turn:  # the first reads the files from disk
                times[name].append(measured)
    recorder = Recorder("startup", None if options.quick else "")
    columns = {"wall, least": (".2f", "s"), "wall, median": (".2f", "s"), "processor, least": (".2f", "s"), "bound": ""}
    table = recorder.table("fresh processes", ["command"], columns)

    def least(name: str) -> list[float]:
        wall, cpu = zip(*times[name], strict=True)
        return [min(wall), statistics.median(wall), min(cpu)]

    for name in COMMANDS:
        table.add([name], [*least(name), "0.5 s" if name == "diffsolve --help" else None])
    beyond = [own - torch for own, torch in zip(least("import diffsolve"), least("import torch"), strict=True)]
    table.add(["import diffsolve, beyond torch"], [*beyond, "0.3 s"])


if __name__ == "__main__":
    main()
