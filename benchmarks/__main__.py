"""All benchmarks by name.

python -m benchmarks                       # what there is, and how long it takes
python -m benchmarks NAME [options]        # run one: the same as python benchmarks/NAME.py [options]
python -m benchmarks render [NAME ..]      # the tables of results/NAME.jsonl
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MINUTES = {
    "accuracy": "15", "brownian": "3", "conditioning": "4", "couplings": "6", "ddim": "30",
    "designed_sde": "15", "digests": "2", "distill": "15", "fashion": "30", "fid": "20", "gallery": "1",
    "gpu": "8, on a GPU", "gradients": "1", "guidance": "10", "kernels": "2", "latent": "3", "likelihood": "15",
    "networks": "75", "overhead": "10", "parallel": "30", "plane": "30", "serving": "10", "solvers": "10",
    "startup": "1", "stochastic": "30", "theory": "1", "times": "2", "trained": "30", "tune": "15",
}  # fmt: skip
"""On one idle core, for all that the benchmark has."""


def about(name: str) -> str:
    """The first line of a benchmark's docstring."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return text.splitlines()[0].rstrip(".:")


def listing() -> str:
    width = max(map(len, MINUTES))
    lines = [f"{name:{width}}  {minutes:>11}  {about(name)}" for name, minutes in MINUTES.items()]
    return "\n".join([f"{'':{width}}  {'minutes':>11}", *lines])


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, listing(), sep="\n")
        return 0
    name, *options = arguments
    sys.path.insert(0, str(HERE))
    if name == "render":
        from record import RESULTS, read, render

        for bench in options or sorted(file.stem for file in RESULTS.glob("*.jsonl")):
            records = read(RESULTS / f"{bench}.jsonl")
            print(render(bench, records) if records else f"{bench} has no records: python -m benchmarks {bench}")
        return 0
    if name not in MINUTES:
        print(f"benchmark must be one of {', '.join(MINUTES)}, render, got {name!r}", file=sys.stderr)
        return 2
    sys.argv = [f"python -m benchmarks {name}", *options]
    runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
