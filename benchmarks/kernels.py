"""The Triton kernels on paper and on a GPU.

    python benchmarks/kernels.py                 # compiled ahead of time for four targets: no GPU is needed
    python benchmarks/kernels.py --json          # the same as JSON
    python benchmarks/kernels.py --time          # on a GPU: against the memory roofline, torch eager and torch.compile

The launches themselves are recorded, on tensors without memory, and compiled with the very arguments they came with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing

import torch
from record import Recorder
from torch import Tensor

from diffsolve.kernels import device, launch
from diffsolve.noise import Draw, Key, Stream

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHAPE = (64, 3, 64, 64)
ODD = (63, 3, 63, 63)
KERNELS = ("combine_kernel", "window_kernel", "moments_kernel")


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[str], object]
    """Launches on tensors of a device."""
    reads: int
    """Bytes per element that must be read: every operand once."""
    writes: int


@dataclass(frozen=True)
class Found:
    case: str
    target: str
    registers: int
    spills: int
    """Bytes, or registers on AMD, that did not fit."""
    local: int
    """Bytes of stack per thread."""
    shared: int
    reads: float | None
    """Bytes per element that the program reads and writes, from its own loads and stores; counted in PTX only."""
    writes: float | None
    narrow: int | None
    """Loads and stores of tiles that are less than 128 bits wide."""


HALF, BF16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


def tensors(where: str, *dtypes: torch.dtype, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    if where == "meta":
        return [torch.empty(shape, dtype=dtype, device=where) for dtype in dtypes]
    return [torch.randn(shape, device=where).to(dtype) for dtype in dtypes]


def update(
    inputs: list[torch.dtype],
    outputs: list[torch.dtype],
    *,
    noise: bool = False,
    rows: bool = False,
    guided: bool = False,
    shape: tuple[int, ...] = SHAPE,
) -> Callable[[str], object]:
    """A launch of the update: weights[m, k] on every input, the last one of which may be noise."""

    def run(where: str) -> object:
        K, M = len(inputs) + noise, len(outputs)
        weights = torch.ones((shape[0], M, K) if rows else (M, K), dtype=DOUBLE, device=where)
        draw = Draw(Key(1), 3, Stream.ROW) if noise else None
        options: dict[str, Any] = {}
        if guided:
            factor = torch.ones(shape[0], dtype=DOUBLE, device=where)
            options = {
                "guided": 1,
                "uncond": tensors(where, inputs[1], shape=shape)[0],
                "guidance": 7.5,
                "factor": factor,
            }
        given, made = tensors(where, *inputs, shape=shape), tensors(where, *outputs, shape=shape)
        return launch.combine(given, weights, made, draw=draw, **options)

    return run


def window(where: str) -> object:
    """A window of 16 calls of a solver with a state apart, noise, and two derivatives."""
    L, B, K = 16, 8, 2
    y, s = tensors(where, SINGLE, SINGLE, shape=(B, 3 * 64 * 64))
    d = tensors(where, SINGLE, shape=(K - 1, *y.shape))[0]
    f, z, old = tensors(where, SINGLE, SINGLE, SINGLE, shape=(L, *y.shape))
    weights, keep = (torch.ones(L, B, *shape, device=where) for shape in ((2, K + 3), (2,)))
    everything = (1 << (K + 3)) - 1
    return launch.window_update(weights, keep, s, y, d, f, z, old, (everything, everything))


def cases() -> list[Case]:
    def case(name: str, inputs: list[torch.dtype], outputs: list[torch.dtype], **options: Any) -> Case:
        reads = sum(d.itemsize for d in inputs) + (inputs[1].itemsize if options.get("guided") else 0)
        return Case(name, update(inputs, outputs, **options), reads, sum(d.itemsize for d in outputs))

    S, B = SINGLE, BF16
    return [
        case("euler", [S, S], [S]),
        case("euler, bf16 network", [S, B], [S, B]),
        case("dpmpp-2m", [S, S, S], [S, S]),
        case("dpmpp-2m, odd", [S, S, S], [S, S], shape=ODD),
        case("dpmpp-2m, bf16 network, odd", [S, B, S], [S, S, B], shape=ODD),
        case("dpmpp-2m, bf16 network", [S, B, S], [S, S, B]),
        case("dpmpp-2m, fp16 network", [S, HALF, S], [S, S, HALF]),
        case("dpmpp-2m, bf16 state", [B, B, B], [B, B]),
        case("dpmpp-2m, float64", [DOUBLE] * 3, [DOUBLE] * 2),
        case("dpmpp-2m, guided", [S, B, S], [S, S, B], guided=True),
        case("dpmpp-2m, per sample", [S, S, S], [S, S], rows=True),
        case("unipc-3", [S] * 5, [S] * 3),
        case("unipc-3, bf16 network", [S, B, S, S, S], [S, S, S, B]),
        case("ancestral", [S, S], [S], noise=True),
        case("ancestral, bf16 network", [S, B], [S, B], noise=True),
        case("sde-dpmpp-2m", [S, S, S], [S, S], noise=True),
        case("12 inputs", [S] * 12, [S] * 3),
        case("12 inputs, float64", [DOUBLE] * 12, [DOUBLE] * 3),
        case("12 outputs", [S] * 3, [S] * 12),
        Case(
            "window, 2 derivatives",
            window,
            4 * (2 + 4),  # the start's s and y; and in the loop over the calls, counted once: f, z, old, the last d
            4 * 3,
        ),
        Case("moments, guided", lambda w: launch.moments(*tensors(w, S, S), 2.0), 8, 0),
    ]


class Launches:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, tuple[int, ...], dict[str, Any]]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launched(*args: Any, **options: Any) -> None:
            names = self.kernel.arg_names
            self.calls.append((self.kernel, grid, {**dict(zip(names, args, strict=False)), **options}))

        return launched


def recorded(run: Callable[[str], object], where: str = "meta") -> list[tuple[Any, tuple[int, ...], dict[str, Any]]]:
    """(kernel, grid, arguments) of each launch of `run`, which is given tensors without memory by default."""
    calls: list[Any] = []
    kernels = {name: getattr(device, name) for name in KERNELS}
    try:
        for name, kernel in kernels.items():
            setattr(device, name, Launches(kernel, calls))
        run(where)
    finally:
        for name, kernel in kernels.items():
            setattr(device, name, kernel)
    return calls


POINTERS = {SINGLE: "*fp32", DOUBLE: "*fp64", HALF: "*fp16", BF16: "*bf16", torch.int64: "*i64"}
DIVISIBLE = [["tt.divisibility", 16]]


def compiled(kernel: Any, arguments: dict[str, Any], target: tuple[str, Any, int]) -> Any:
    """The kernel for a target, with the types and the divisibility that its launch would find."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def typed(value: Any, at: tuple[int, ...], annotation: str, special: bool) -> Any:
        if isinstance(value, tuple):
            return tuple(typed(v, (*at, i), "", special) for i, v in enumerate(value))
        if isinstance(value, Tensor):
            attributes[at] = DIVISIBLE
            return POINTERS[value.dtype]
        if isinstance(value, int) and special and value % 16 == 0:
            attributes[at] = DIVISIBLE
        return annotation or ("i32" if isinstance(value, int) and value < 2**31 else "i64")

    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        else:
            special = not parameter.do_not_specialize
            signature[parameter.name] = typed(value, (i,), parameter.annotation_type or "", special)
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget(*target), options={"num_warps": arguments["num_warps"]})


def examine(case: Case, name: str) -> Found:
    """One case on one target, from the code that was compiled for it."""
    calls = recorded(case.run)
    assert len(calls) == 1, f"{case.name}: {len(calls)} launches"
    kernel, _, arguments = calls[0]
    done = compiled(kernel, arguments, TARGETS[name])
    elements = arguments["C"] * arguments.get("R", 1) // (arguments["num_warps"] * TARGETS[name][2])
    if TARGETS[name][0] == "cuda":
        moved = {"ld": 0, "st": 0}
        narrow = 0
        for way, vector, bits in re.findall(r"(ld|st)\.global\.(?:v(\d)\.)?b(\d+)", done.asm["ptx"]):
            wide = int(vector or 1) * int(bits)
            # Weights, seeds, and partial sums are one word for a whole row of the tile, not one per element; nor is
            # the last tile of an odd size vectors: it goes element by element.
            if vector:
                moved[way] += wide // 8
                narrow += wide < 128
        registers, spills, local = resources(done, name)
    else:
        text = done.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s+(\d+)", text)[1])  # type: ignore[index]
        spills = int(re.search(r"\.vgpr_spill_count:\s+(\d+)", text)[1])  # type: ignore[index]
        local = int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1])  # type: ignore[index]
        return Found(case.name, name, registers, spills, local, done.metadata.shared, None, None, None)
    traffic = moved["ld"] / elements, moved["st"] / elements
    return Found(case.name, name, registers, spills, local, done.metadata.shared, *traffic, narrow)


def resources(done: Any, name: str) -> tuple[int, int, int]:
    """(registers, bytes of spills, bytes of stack) that the assembler of Triton's own wheel reports."""
    import subprocess
    import tempfile
    from pathlib import Path

    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = tools / ("ptxas-blackwell" if name == "sm_100" and (tools / "ptxas-blackwell").exists() else "ptxas")
    arch = re.search(r"\.target (\w+)", done.asm["ptx"])[1]  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(done.asm["ptx"])
        command = [str(ptxas), "-v", f"--gpu-name={arch}", str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)[1]  # type: ignore[index]
    stack, stores, loads = re.search(  # type: ignore[union-attr]
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", said
    ).groups()
    return int(registers), int(stores) + int(loads), int(stack)


Times = tuple[str, float, float | None, float | None, float | None]
"""(case, the kernel, a copy of as many bytes, torch eager, torch.compile), in milliseconds."""


def time_cases(compiled: bool = True) -> Iterator[Times]:
    """On a GPU: each kernel, and what it is measured against, where there is such a thing."""
    from triton.testing import do_bench

    from diffsolve.kernels.combine import _combine

    runs = [_combine, torch.compile(_combine)] if compiled else [_combine]
    n = torch.Size(SHAPE).numel()
    for case in cases():
        kernel, grid, arguments = recorded(case.run, "cuda")[0]
        own = do_bench(lambda k=kernel, g=grid, a=arguments: k[g](**a), return_mode="median")
        copy = None
        if kernel is not device.window_kernel:  # of which a count of bytes has only one call
            source = torch.empty(n * (case.reads + case.writes) // 2, dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            copy = do_bench(lambda t=target, s=source: t.copy_(s), return_mode="median")
        others: list[float | None] = []
        if kernel is device.combine_kernel and not arguments["NOISE"] and arguments["uncond"] is None:
            inputs, weights = list(arguments["xs"]), arguments["weights"]
            dtypes = tuple(y.dtype for y in arguments["ys"])
            for run in runs:
                work = lambda r=run, i=inputs, w=weights, d=dtypes: r(i, w, d, None)  # noqa: E731
                others.append(do_bench(work, return_mode="median"))
        eager, fused = (*others, None, None)[:2]
        yield case.name, own, copy, eager, fused


def timed() -> None:
    """Print and record the microseconds of every case."""
    if not torch.cuda.is_available():
        raise SystemExit("--time needs a CUDA or ROCm device")
    columns = {name: (".1f", "us") for name in ("kernel", "copy", "eager", "compile")}
    table = Recorder("kernels").table(f"at {SHAPE}", ["case"], columns)
    for case, *times in time_cases():
        table.add([case], [t and 1e3 * t for t in times])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    if args.time:
        timed()
        return
    found = [(case, examine(case, target)) for case in cases() for target in args.targets]
    if args.json:
        json.dump([{**asdict(f), "must_read": c.reads, "must_write": c.writes} for c, f in found], sys.stdout)
        return
    names = ("case", "target", "regs", "spills", "stack", "shared", "read", "of", "write", "of", "narrow")
    print("{:28}{:>8}{:>6}{:>8}{:>7}{:>8}{:>8}{:>5}{:>8}{:>5}{:>8}".format(*names))
    for c, f in found:
        counts = ["-" if n is None else f"{n:g}" for n in (f.reads, c.reads, f.writes, c.writes, f.narrow)]
        resources_ = f"{f.registers:6}{f.spills:8}{f.local:7}{f.shared:8}"
        print("{:28}{:>8}{}{:>8}{:>5}{:>8}{:>5}{:>8}".format(f.case, f.target, resources_, *counts))


if __name__ == "__main__":
    main()
