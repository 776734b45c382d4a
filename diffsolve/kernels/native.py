"""The update as a compiled loop on the CPU (DIFFSOLVE_KERNELS=native): one pass over memory, noise made on the way.

The C source beside this file is compiled for this machine when it is first wanted, in about a second, by the compiler
that CC names (`cc` by default); nothing is kept on disk.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.kernels.layout import accumulator, same_layout, seeds_on
from diffsolve.noise import Draw

__all__ = ["combine"]

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
PARALLEL = 2**16
"""Elements from which on PyTorch's number of threads is used."""
REAL = {torch.float32: "float", torch.float64: "double"}


def combine(
    inputs: Sequence[Tensor],
    weights: Tensor,
    outputs: Sequence[Tensor],
    *,
    masks: Sequence[int] | None = None,
    draw: Draw | None = None,
    guided: int = -1,
    uncond: Tensor | None = None,
    guidance: float = 1.0,
    factor: Tensor | None = None,
) -> None:
    """As `launch.combine`. Operands of other dtypes than the sum's are converted first, guided outputs made first."""
    acc, like = accumulator(*inputs, *outputs), outputs[0]
    given = list(inputs)
    if uncond is not None:
        given[guided] = torch.lerp(uncond.to(acc), given[guided].to(acc), guidance)
        if factor is not None:
            given[guided] = given[guided] * factor.to(acc).view(-1, *[1] * (like.dim() - 1))
    given = [t.to(acc) for t in same_layout(like, given)]
    made = [t if t.dtype == acc else torch.empty_like(t, dtype=acc) for t in outputs]
    rows = weights.dim() == 3 or draw is not None
    batch = len(like) if rows else 1
    M, K = weights.shape[-2:]
    weights = weights.contiguous()
    seeds, first, row, stream, listed = (None, 0, 0, 0, False) if draw is None else seeds_on(draw, like.device)
    every = masks if masks is not None else ((1 << K) - 1,) * M
    threads = torch.get_num_threads() if like.numel() >= PARALLEL else 1
    _library(acc).combine(
        batch, like.numel() // max(batch, 1), K, M, _pointers(given), _pointers(made), weights.data_ptr(),
        M * K if weights.dim() == 3 else 0, _masks(tuple(every)), draw is not None,
        None if seeds is None else seeds.data_ptr(), listed, first, row, stream, threads,
    )  # fmt: skip
    for target, source in zip(outputs, made, strict=True):
        if target is not source:
            target.copy_(source)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


@lru_cache(maxsize=256)
def _masks(masks: tuple[int, ...]) -> Any:
    return (ctypes.c_int32 * len(masks))(*masks)


@lru_cache(maxsize=2)
def _library(dtype: torch.dtype) -> Any:
    """The loop for a dtype.

    Raises:
        RuntimeError: if it cannot be compiled, with what the compiler said.
    """
    compiler, source = os.environ.get("CC", "cc"), Path(__file__).with_name("native.c")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "native.so"
        try:
            command = [compiler, *FLAGS, f"-DREAL={REAL[dtype]}", str(source), "-o", str(target)]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise RuntimeError(f"{compiler} cannot compile {source.name}: {said.strip()}") from error
        library = ctypes.CDLL(str(target))
    word, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int
    library.combine.argtypes = [
        word, word, number, number, pointer, pointer, pointer, word, pointer, number, pointer, number, word, word, word,
        number,
    ]  # fmt: skip
    library.combine.restype = None
    return library


_library(torch.float32)  # so that a missing compiler is found when the module is imported
