"""The package on every Python and PyTorch that it admits, and what is published: `pip install nox && nox`.

`nox --list` names the parts. A Python that is not installed is passed over with a word. What follows `--` goes to
pytest: `nox -s "tests-3.13(torch='newest')" -- tests/solvers`. On Linux PyTorch's wheels bring CUDA, some gigabytes for
each Python; an index of CPU wheels, where there is one, goes into PIP_EXTRA_INDEX_URL.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import nox

ROOT = Path(__file__).parent
TORCH = {"oldest": ["torch==2.6.0", "numpy<2.3"], "newest": []}
nox.options.error_on_missing_interpreters = False


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("torch", list(TORCH))
def tests(session: nox.Session, torch: str) -> None:
    """The README's tests, with the oldest or the newest PyTorch."""
    session.install(*TORCH[torch], "-e", ".[dev]")
    session.install("--no-deps", "k-diffusion==0.1.1.post1")
    session.run("python", "-c", "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)")
    session.run("pytest", *(session.posargs or ["-n", "auto"]), env={"OMP_NUM_THREADS": "1"})


@nox.session(python="3.11")
@nox.parametrize("kind", ["wheel", "sdist", "built"])
def package(session: nox.Session, kind: str) -> None:
    """The wheel, the sdist or the wheel with compiled loops, in a new environment, from outside the repository."""
    scratch = Path(session.create_tmp()).resolve()
    shutil.rmtree(scratch / "dist", ignore_errors=True)
    session.install("build", "twine")
    env = {"DIFFSOLVE_BUILT": platform.machine()} if kind == "built" else {}
    session.run("python", "-m", "build", "--outdir", str(scratch / "dist"), str(ROOT), env=env)
    built = [str(file) for file in sorted((scratch / "dist").iterdir())]
    session.run("twine", "check", "--strict", *built)
    (file,) = (file for file in built if file.endswith(".whl") == (kind != "sdist"))
    session.install("-c", str(ROOT / "constraints.txt"), f"diffsolve[dev] @ {Path(file).as_uri()}")
    away = scratch / "away"  # the repository but for the package: what its tests import is what was installed
    shutil.rmtree(away, ignore_errors=True)
    shutil.copytree(ROOT, away, ignore=shutil.ignore_patterns("diffsolve", ".*", "build", "dist"))
    session.chdir(away)
    session.run("python", "-c", COMPLETE, str(ROOT))
    session.run("diffsolve", "sample")
    if kind == "built":
        session.run("python", "-W", "error", "-c", LOOPS, env={"CC": "no-compiler"})
    session.run("pytest", *(session.posargs or ["-n", "auto", *INSTALLED]), env={"OMP_NUM_THREADS": "1"})


COMPLETE = """
import pathlib, subprocess, sys, diffsolve
root, here = pathlib.Path(sys.argv[1]), pathlib.Path(diffsolve.__file__).parent
assert here != root / "diffsolve", f"{here} is the repository, not what was installed"
files = subprocess.run(["git", "ls-files", "diffsolve"], cwd=root, check=True, capture_output=True, text=True).stdout
lacking = [name for name in files.split() if not (here.parent / name).is_file()]
assert not lacking, f"the package lacks {lacking}"
print(f"{here} has all {len(files.split())} files")
"""
"""Whether what is installed has every file of the repository's package."""

LOOPS = "import torch; from diffsolve.native import loader; assert all(map(loader.found, loader.REAL)); print('loops')"
"""Whether the wheel's compiled loops are used where there is no compiler."""

INSTALLED = ["tests/api", "tests/native", "tests/reference", "tests/cli"]
"""Tests of what a package can lack: data files, the C source, the command, the entry points."""
