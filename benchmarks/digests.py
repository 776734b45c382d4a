r"""Digests of some hundreds of runs: whether a change of the code left the bits of every result as they were.

    python benchmarks/digests.py --out before.json        # at the old commit
    python benchmarks/digests.py --compare before.json    # at the new one: the names that differ, exit status 1 if any

The file has, for each run by name, the SHA-256 of the bytes (dtype, shape and data) of all that it returned, or
"error: TypeName". It is one machine's: processor, compiler, PyTorch and libraries decide about the last bits too, so
that both commands are to be run on the same machine, in the same environment. What is imported is printed first;
PYTHONPATH=<checkout> puts another checkout before an installed one.

Every run is made with the kernels that a user gets, and many once more in a process of its own for each value of
DIFFSOLVE_KERNELS in `PASSES` (Triton's on the CPU, in its interpreter), with that value before the name:
"torch:solve/heun". With DIFFSOLVE_KERNELS set it is that pass alone. `--only solve/ heun` takes the names that contain
one of the words, when looking for a cause.

Only the public face of the library is used, so that this file need not change when modules move. To add a run, add a
line to a group in digested/; its name must be new, and everything that is random must have a seed. What a run leaves
unwritten must not be looked at: the history of a state after the last call, for one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digested import drivers, parts, sequential
from digested.models import Runs
from torch import Tensor

import diffsolve as ds

PASSES: dict[str, tuple[str, ...]] = {
    "torch": (
        "solve/", "options/", "dtype/", "shape/", "layout/", "bf16/", "trajectory/", "transitions/", "hook/",
        "corrector/", "resumed/", "key/", "begin/", "guidance/", "parallel/small", "parallel/parareal, guided",
        "gradient/direct", "adaptive/guided", "adaptive sde/key", "langevin/", "noise/", "brownian path/",
    ),
    "native": (
        "solve64/", "shape/", "layout/", "bf16/", "resumed/", "guidance/", "parallel/small", "gradient/direct",
        "adaptive/bosh3", "adaptive/dopri5", "adaptive/guided", "adaptive/not finite", "noise/",
    ),
    "triton": (
        "options/auto 5", "options/sa-3", "shape/odd", "digits/guided, rescale", "bf16/unipc-3", "bf16/conv",
        "bf16/guided", "resumed/unipc-3", "resumed/sa-3", "key/per sample", "key/antithetic", "guidance/all",
        "parallel/small", "adaptive/bosh3",
    ),
}  # fmt: skip
"""Values of DIFFSOLVE_KERNELS that are tried beside the default, and on which runs: beginnings of their names."""

GROUPS: tuple[Callable[[], Runs], ...] = (
    sequential.solver_runs,
    sequential.path_runs,
    sequential.option_runs,
    sequential.network_runs,
    sequential.extra_runs,
    sequential.guidance_runs,
    drivers.parallel_runs,
    drivers.gradient_runs,
    drivers.adaptive_runs,
    drivers.density_runs,
    parts.langevin_runs,
    parts.tune_runs,
    parts.diffusers_runs,
    parts.noise_runs,
)


def feed(into: Any, value: Any) -> None:
    """The bytes of a value, with what tells them from those of another."""
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        into.update(f"tensor {value.dtype} {tuple(value.shape)}:".encode())
        into.update(data)
    elif isinstance(value, np.ndarray):
        into.update(f"array {value.dtype} {value.shape}:".encode())
        into.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, ds.Tableau):
        into.update(b"tableau:")
        into.update(value.to_json().encode())
    elif isinstance(value, list | tuple):
        into.update(f"{len(value)} values:".encode())
        for one in value:
            feed(into, one)
    elif isinstance(value, bool | np.bool_):
        into.update(f"bool {bool(value)}:".encode())
    elif isinstance(value, int | np.integer):  # enumerations too
        into.update(f"int {int(value)}:".encode())
    elif isinstance(value, float | np.floating):
        into.update(f"float {float(value).hex()}:".encode())
    elif value is None:
        into.update(b"none:")
    else:
        raise TypeError(f"{type(value).__name__} has no digest")


def digest(run: Callable[[], Any]) -> str:
    """The SHA-256 of what a run returns, or which error it raised."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = run()
        found = hashlib.sha256()
        feed(found, value)
    except Exception as error:
        return f"error: {type(error).__name__}"
    return found.hexdigest()


def wanted(name: str, kernels: str, only: Sequence[str]) -> bool:
    """Whether a run belongs to the pass of these kernels, and is one of those asked for."""
    here = "/" not in name or kernels not in PASSES or name.startswith(PASSES[kernels])
    return here and (not only or any(word in name for word in only))


def every_run() -> Runs:
    """All groups. Of one that breaks off between two runs, the group's name and the error stand for the rest."""
    for group in GROUPS:
        try:
            yield from group()
        except Exception as error:
            yield group.__name__, partial(again, error)


def again(error: Exception) -> None:
    raise error


def one_pass(kernels: str, only: Sequence[str], verbose: bool = False) -> dict[str, str]:
    """The digests of a pass, in this process."""
    found: dict[str, str] = {}
    for name, run in every_run():
        if not wanted(name, kernels, only):
            continue
        full = f"{kernels}:{name}" if kernels else name
        if full in found:
            raise ValueError(f"two runs are named {full!r}")
        begun = time.perf_counter()
        found[full] = digest(run)
        if verbose:
            print(f"{time.perf_counter() - begun:7.3f} s  {full}  {found[full][:16]}", flush=True)
    return found


def all_passes(only: Sequence[str], verbose: bool = False) -> dict[str, str]:
    """The digests of this process, and of one more for each of `PASSES` unless DIFFSOLVE_KERNELS is set."""
    kernels = os.environ.get("DIFFSOLVE_KERNELS", "")
    found = one_pass(kernels, only, verbose)
    for other in () if kernels else PASSES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "digests.json"
            command = [sys.executable, os.path.abspath(__file__), "--out", str(file)]
            command += [*(["--verbose"] if verbose else []), *(["--only", *only] if only else [])]
            quiet = None if verbose else subprocess.DEVNULL
            env = {**os.environ, "DIFFSOLVE_KERNELS": other, "TRITON_INTERPRET": str(int(other == "triton"))}
            subprocess.run(command, check=True, stdout=quiet, env=env)
            found.update(json.loads(file.read_text()))
    return found


def selected(name: str, only: Sequence[str]) -> bool:
    """Whether a name in a file is one that `all_passes` is asked for."""
    chosen = os.environ.get("DIFFSOLVE_KERNELS", "")
    kernels, _, rest = name.partition(":")
    if kernels not in PASSES:
        kernels, rest = "", name
    return (not chosen or kernels == chosen) and (not only or any(word in rest for word in only))


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Print what differs; whether nothing does."""
    gone, new = [n for n in before if n not in after], [n for n in after if n not in before]
    other = [name for name in after if name in before and before[name] != after[name]]
    for title, names in (("differs", other), ("is gone", gone), ("is new", new)):
        for name in names:
            failed = [f"{when} {d[name]}" for when, d in (("before:", before), ("now:", after))
                      if d.get(name, "").startswith("error")]  # fmt: skip
            print(f"{title}: {name}{'  (' + ', '.join(failed) + ')' if failed else ''}")
    if gone or new or other:
        print(f"{len(other)} of {len(after)} differ, {len(gone)} are gone, {len(new)} are new")
        return False
    print(f"all {len(after)} equal")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write the digests there")
    what.add_argument("--compare", type=Path, metavar="FILE", help="make the runs again and say which differ")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="runs whose name contains one of these")
    parser.add_argument("--verbose", action="store_true", help="print every run with its time")
    args = parser.parse_args()

    before = None if args.compare is None else json.loads(args.compare.read_text())
    begun = time.perf_counter()
    print(f"{os.path.dirname(ds.__file__)}, torch {torch.__version__}", flush=True)
    torch.set_num_threads(1)
    found = all_passes(args.only, args.verbose)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    errors = {name: value for name, value in found.items() if value.startswith("error")}
    for name, value in errors.items():
        print(f"{name}: {value}")
    print(f"{len(found)} runs, {len(errors)} errors, {time.perf_counter() - begun:.0f} seconds")
    if before is None:
        return 0
    return 0 if compare({name: value for name, value in before.items() if selected(name, args.only)}, found) else 1


if __name__ == "__main__":
    sys.exit(main())
