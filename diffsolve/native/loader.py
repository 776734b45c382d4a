"""The loops in C beside this file, compiled for this machine and kept: noise, and the update, in one pass over memory.

They are compiled on first use, in less than a second, by the compiler that CC names (`cc` by default),
and kept in the user's cache ($XDG_CACHE_HOME or ~/.cache, diffsolve/), under a name made of all that the machine code
depends on; every later process loads the file and starts no compiler. Where the cache cannot be written, or others
could write to it, they are compiled into a temporary folder, once per process. Where there is no compiler, a wheel may
have brought loops that run on most processors of the kind, in one thread (`flags`, hatch_build.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import Any

import torch
from torch import Tensor

from diffsolve.native.flags import FLAGS, LEVELS, NEEDED, REALS, file_name

__all__ = ["INPUTS", "RESULTS", "found", "is_plain", "library", "mark_mutated", "record", "threads"]

INPUTS, RESULTS = 32, 12
"""The most inputs and results of one update, as loops.c has them."""
ATTEMPTS = (("-fopenmp",), ())  # one thread where the compiler has no OpenMP
REAL = dict(zip((torch.float32, torch.float64), REALS, strict=True))
PATIENCE = 60.0
"""Seconds after which the compiler is stopped."""
PARALLEL = 2**16
"""Elements from which on PyTorch's number of threads is used."""


def library(dtype: torch.dtype = torch.float32) -> Any | None:
    """The loops for sums in float32 or float64; None where DIFFSOLVE_KERNELS forbids them or there is no compiler.

    Warns:
        RuntimeWarning: once, if DIFFSOLVE_KERNELS=native asks for them and they cannot be compiled or loaded.
    """
    choice = os.environ.get("DIFFSOLVE_KERNELS", "")
    return _found(dtype, choice == "native") if choice in ("", "native") and dtype in REAL else None


def found(dtype: torch.dtype) -> Any | None:
    """The loops for sums in a dtype, whatever DIFFSOLVE_KERNELS says; None if there are none."""
    return _found(dtype, False) if dtype in REAL else None


@lru_cache(maxsize=4)
def _found(dtype: torch.dtype, asked: bool) -> Any | None:
    try:
        return _load(dtype)
    except (OSError, RuntimeError) as error:
        if asked:
            warnings.warn(
                f"the compiled loops cannot be used ({type(error).__name__}: {error}); torch operations do their work, "
                "with more memory traffic. DIFFSOLVE_KERNELS=torch asks for that without this warning",
                RuntimeWarning,
                stacklevel=3,
            )
        return None


def is_plain(*tensors: Tensor, graph: bool = False) -> bool:
    """Whether memory is all there is to these tensors, so that a loop unknown to PyTorch may read and write it.

    Not while something traces or records what is done (torch.compile, autograd, torch.func, dispatch modes), nor for
    subclasses, for lazily negated values, and for dual tensors of forward-mode differentiation. The answer
    depends on this thread and these tensors alone: the loop and torch differ in the last bits of noise.

    PyTorch has public questions for the first and the last of these. `torch.library.custom_op` would ask them all, at
    many times the price; docs/performance.md has the numbers.

    Args:
        graph: whether the caller makes the graph of autograd itself.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
    ):
        return False
    grad = torch.is_grad_enabled() and not graph
    for x in tensors:
        if type(x) not in PLAIN or (grad and x.requires_grad) or x.is_neg() or x.layout is not torch.strided:
            return False
    # A level may be another thread's, and is no more than a reason to look: PyTorch counts levels for the process.
    if torch.autograd.forward_ad._current_level >= 0:
        unpack: Any = torch.autograd.forward_ad.unpack_dual
        return all(unpack(x).tangent is None for x in tensors)
    return True


PLAIN = (Tensor, torch.nn.Parameter)


def mark_mutated(*tensors: Tensor) -> None:
    """Tell autograd that a loop wrote to these, so that a graph that needs the old values raises an error."""
    for x in tensors:
        if not x.is_inference():  # which have no version to count
            torch.autograd.graph.increment_version(x)


@lru_cache(maxsize=64)
def _struct(words: int) -> Struct:
    return Struct(f"{words}q")


def record(*words: int) -> bytes:
    """The argument of a loop, packed."""
    return _struct(len(words)).pack(*words)


def threads(elements: int) -> int:
    """The number of threads for that many elements."""
    return torch.get_num_threads() if elements >= PARALLEL else 1


def _load(dtype: torch.dtype) -> Any:
    """The library for a dtype: from the cache, compiled, or as the wheel brought it.

    Raises:
        OSError, RuntimeError: if there is none that can be loaded, with what the compiler said.
    """
    try:
        return _made_here(dtype)
    except (OSError, RuntimeError):
        file = _brought(dtype)
        if file is None:
            raise
        return _opened(file)


def _brought(dtype: torch.dtype) -> Path | None:
    """The file that the wheel brought for this processor, if there is one."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in LEVELS:
        return None
    file = Path(__file__).with_name(file_name(machine, REAL[dtype]))
    has = {word for line in _processor().splitlines() if line.startswith("flags") for word in line.split()}
    return file if file.is_file() and has >= NEEDED[machine] else None


def _made_here(dtype: torch.dtype) -> Any:
    """From the cache, or compiled; errors as of `_load`."""
    source = Path(__file__).with_name("loops.c")
    given = os.environ.get("CC", "")
    try:
        command = shlex.split(given) or ["cc"]
    except ValueError as error:  # a quotation without an end
        raise RuntimeError(f"CC must be a command, got {given!r}: {error}") from error
    compiler = shutil.which(command[0])
    if compiler is None:
        raise RuntimeError(f"there is no compiler {command[0]}")
    command = [compiler, *command[1:], *FLAGS, "-march=native", f"-DREAL={REAL[dtype]}"]
    parts = [source.read_text(), *command, str(ATTEMPTS), *_identity(compiler), _processor()]
    name = f"native-{_digest(repr(parts).encode())}"
    folder = _cache()
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return _opened(_compiled(command, source, Path(temporary), name))
    for file in folder.glob(f"{name}-*.so"):
        # A file that was cut off would end the process, not raise.
        if _own(file) and file.stem == f"{name}-{_digest(file.read_bytes())}":
            return _opened(file)
    return _opened(_compiled(command, source, folder, name))


def _compiled(command: Sequence[str], source: Path, folder: Path, name: str) -> Path:
    """Compile the library into the folder, atomically, however many processes do so at once."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        built = Path(temporary) / f"{name}.so"
        for extra in ATTEMPTS:
            try:
                full = [*command, *extra, str(source), "-o", str(built)]
                # A compiler may speak in any encoding.
                subprocess.run(full, check=True, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
                break
            except (OSError, subprocess.SubprocessError) as error:
                message = getattr(error, "stderr", None) or str(error)
                failure = RuntimeError(f"{command[0]} cannot compile {source.name}: {message.strip()}")
        else:
            raise failure
        target = folder / f"{name}-{_digest(built.read_bytes())}.so"
        os.replace(built, target)
    return target


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _opened(file: Path) -> Any:
    loaded = ctypes.CDLL(str(file))
    try:
        loops = loaded.update, loaded.updates, loaded.fill
    except AttributeError as error:  # another compiler's idea of a name
        raise RuntimeError(f"the library that the compiler made has no loops: {error}") from error
    for loop in loops:
        loop.argtypes, loop.restype = [ctypes.c_char_p], None
    return loaded


def _cache() -> Path | None:
    """The folder, if it is this user's alone and can be written to."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "diffsolve"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if _own(folder) and os.access(folder, os.W_OK | os.X_OK) else None
    except (OSError, RuntimeError):  # a file in its place, a disk that is read-only, no home
        return None


def _own(path: Path) -> bool:
    """Whether it belongs to this user and nobody else may write to it: it is going to be executed."""
    about = path.stat()
    return hasattr(os, "getuid") and about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _identity(compiler: str) -> tuple[str, int, int]:
    """Which compiler it is: another version is another file. Asking it for its version would take a process."""
    real = os.path.realpath(compiler)
    about = os.stat(real)
    return real, about.st_size, about.st_mtime_ns


def _processor() -> str:
    """What -march=native depends on: on Linux the kernel's description of the first processor."""
    about = [sys.platform, platform.machine()]
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if not line.strip():
                    break
                if line.split(":")[0].strip() in ("vendor_id", "cpu family", "model", "model name", "flags",
                                                  "Features", "CPU implementer", "CPU part"):  # fmt: skip
                    about.append(line.strip())
    except OSError:
        about.append(platform.node())  # a file for each machine, then
    return "\n".join(about)
