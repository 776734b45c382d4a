"""Time and memory of a step between two network calls: ours and other libraries', with a network that costs nothing.

    python benchmarks/overhead.py                      # every method, four shapes: about 10 minutes on an idle core
    python benchmarks/overhead.py --shape 16 3 32 32   # one shape
    python benchmarks/overhead.py --tables             # what was measured, once more

What is found is kept in benchmarks/results/overhead.json after every shape. A run that was stopped goes on after the
last of them; --fresh begins anew. At the end benchmarks/results/overhead.md has all of it, and what the page in docs
shows is printed.

Each number is a ratio to one floor: a single `torch.add(a, b, out=c)` on tensors of n streams / 3 elements, where n is
the size of the state and `streams` the number of states that a step must read and write, whoever makes it: the inputs
and results of its rows, each once. The floor of a method is that of our tableau of it, for its peers too.

"diffsolve" is what a CPU gets by default, the compiled loop wherever a row is more than one operation; "chain" is the
torch operations in place that it equals (DIFFSOLVE_KERNELS=torch), which is also what there is without a compiler.

Times are those of the one thread, the best of several rounds in which all the methods take turns, per network call;
memory is the peak of what was allocated during the run besides the network's output and the start, in states.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler, which counts the memory, talks otherwise

import torch
from overhead_tables import OURS, Row, listing, page, summary
from record import Recorder, stamp, stamped
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import diffsolve as ds
from diffsolve import native
from diffsolve.execute import Executor
from diffsolve.kernels.terms import Z
from diffsolve.kernels.update import _fold

SHAPES = [(1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64), (16, 4, 128, 128)]
STEPS = 20
STOCHASTIC = ("ddim(eta=1.0)",)
RESULTS = Path(__file__).resolve().parent / "results"

clock = time.thread_time  # of the one thread, so that other programs take less part in it


def peak_memory(run: Callable[[], object]) -> int:
    """The most bytes that PyTorch had allocated at once since the run began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    events = prof.profiler.kineto_results.events()
    alive = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        alive += size
        peak = max(peak, alive)
    return peak


def streams(program: Any) -> float:
    """States that the average row must read and write."""
    one, total = program.rows[0].s is None, 0
    for row in program.rows[1:]:
        places, lines = _fold(row, one)
        total += len(set(places) - {Z}) + len(lines) - 1
        one = row.s is None
    return total / (len(program.rows) - 1)


def floor(n: int, count: float) -> Callable[[], object]:
    m = max(int(n * count / 3), 1)
    a, b, c = torch.randn(m), torch.randn(m), torch.empty(m)
    return lambda: torch.add(a, b, out=c)


Method = tuple[str, str, Callable[[], tuple[float, int]]]
"""(library, method, run): run gives the seconds of its loop and the calls made."""


def ours(first: Executor, x: Tensor, out: Tensor, choice: str) -> Callable[[], tuple[float, int]]:
    def run() -> tuple[float, int]:
        os.environ["DIFFSOLVE_KERNELS"] = choice
        executor = Executor(first.program, x, first.key)
        start = clock()
        while not executor.done:
            executor.query()
            executor.advance(out)
        return clock() - start, executor.tableau.nfe

    return run


def diffusers(x: Tensor, out: Tensor) -> Iterator[Method]:
    try:
        import diffusers as df
    except ImportError:
        return
    for method, name, options in (
        ("euler", "FlowMatchEulerDiscreteScheduler", {}),
        ("ddim", "DDIMScheduler", {}),
        ("dpmpp-2m", "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp-3m", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("unipc-2", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}),
        ("deis-3", "DEISMultistepScheduler", {"solver_order": 3}),
        ("heun", "FlowMatchHeunDiscreteScheduler", {}),
        ("ddim(eta=1.0)", "DDIMScheduler", {}),
    ):
        step_on = {"eta": 1.0} if method == "ddim(eta=1.0)" else {}

        def run(name: str = name, options: Any = options, step_on: Any = step_on) -> tuple[float, int]:
            scheduler = getattr(df.schedulers, name)(**options)
            scheduler.set_timesteps(STEPS)
            state = x
            start = clock()
            for t in scheduler.timesteps:
                scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)(state, t)
                del scaled
                state = scheduler.step(out, t, state, **step_on).prev_sample
            return clock() - start, len(scheduler.timesteps)

        yield "diffusers", method, run


def k_diffusion(x: Tensor, out: Tensor) -> Iterator[Method]:
    from endpoint.peers.base import loader

    try:
        sampling = loader().k_diffusion("sampling")
    except ImportError:
        return
    levels = torch.linspace(80**0.2, 0.002**0.2, STEPS + 1) ** 5
    for method, name in (
        ("euler", "euler"), ("heun", "heun"), ("lms-4", "lms"), ("dpmpp-2m", "dpmpp_2m"), ("dpmpp-2s", "dpm_2"),
        ("ddim(eta=1.0)", "euler_ancestral"),
    ):  # fmt: skip

        def run(name: str = name) -> tuple[float, int]:
            calls = 0

            def net(x: Tensor, sigma: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                return out

            start = clock()
            getattr(sampling, f"sample_{name}")(net, x, levels, disable=True)
            return clock() - start, calls

        yield "k-diffusion", method, run


def azula(x: Tensor, out: Tensor) -> Iterator[Method]:
    try:
        from azula import sample
        from azula.denoise import DiracPosterior
        from azula.noise import VESchedule
    except ImportError:
        return

    class Denoiser:
        calls = 0
        schedule = VESchedule()

        def __call__(self, x: Tensor, t: Tensor) -> Any:
            self.calls += 1
            return DiracPosterior(out)

    for method, name, options in (
        ("euler", "EulerSampler", {}), ("heun", "HeunSampler", {}), ("dpmpp-2m", "xEABSampler", {"order": 2}),
        ("ab-2", "vABSampler", {"order": 2}), ("dpmpp-3m", "xEABSampler", {"order": 3}),
        ("ddim(eta=1.0)", "DDPMSampler", {}),
    ):  # fmt: skip

        def run(name: str = name, options: Any = options) -> tuple[float, int]:
            denoiser = Denoiser()
            sampler = getattr(sample, name)(denoiser, silent=True, steps=STEPS, **options)
            start = clock()
            sampler(x)
            return clock() - start, denoiser.calls

        yield "azula", method, run


def torchdiffeq(x: Tensor, out: Tensor) -> Iterator[Method]:
    from torchdiffeq import odeint

    times = torch.linspace(1, 0, STEPS + 1)
    for method, name, options in (
        ("euler", "euler", None), ("midpoint", "midpoint", None), ("heun", "heun2", None), ("rk4", "rk4", None),
        ("ab-4", "explicit_adams", {"max_order": 4}),
    ):  # fmt: skip

        def run(name: str = name, options: Any = options) -> tuple[float, int]:
            calls = 0

            def right(t: Tensor, x: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                return out

            ends = {"step_size": 1 / STEPS, **(options or {})}
            start = clock()
            odeint(right, x, times[[0, -1]], method=name, options=ends)
            return clock() - start, calls

        yield "torchdiffeq", method, run


def torchsde(x: Tensor, out: Tensor) -> Iterator[Method]:
    from torchsde import sdeint

    flat, ready = x.flatten(1), out.flatten(1)

    class Equation:
        noise_type, sde_type, calls = "diagonal", "ito", 0

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return ready

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return ready

    def run() -> tuple[float, int]:
        equation = Equation()
        start = clock()
        sdeint(equation, flat, torch.tensor([0.0, 1.0]), dt=1 / STEPS, method="euler")
        return clock() - start, equation.calls

    yield "torchsde", "ddim(eta=1.0)", run


def measure(shape: tuple[int, ...], solvers: list[str], rounds: int) -> list[Row]:
    x, out = torch.randn(shape), torch.randn(shape)
    n, key, flat = x.numel(), ds.Key(0), torch.empty(shape).flatten(1)
    model = ds.adapt(lambda x, t: out, "edm", "noise")
    firsts = {s: ds.begin(model, noise=x, solver=s, steps=STEPS, seed=0) for s in solvers}
    methods: list[Method] = [
        (name, s, ours(first, x, out, choice)) for name, choice in OURS.items() for s, first in firsts.items()
    ]
    for library in (diffusers, k_diffusion, azula, torchdiffeq, torchsde):
        methods += [m for m in library(x, out) if m[1] in solvers]
    counts = {s: streams(first.program) for s, first in firsts.items()}
    floors = {c: floor(n, c) for c in set(counts.values())}
    best = {m[:2]: float("inf") for m in methods}
    least = dict.fromkeys(floors, float("inf"))
    noise = dict.fromkeys(OURS, float("inf"))
    states: dict[tuple[str, str], float] = {}
    failed: set[tuple[str, str]] = set()
    for turn in range(rounds):
        for count, add in floors.items():
            start = clock()
            for _ in range(5):
                add()
            least[count] = min(least[count], (clock() - start) / 5)
        for name, choice in OURS.items():
            os.environ["DIFFSOLVE_KERNELS"] = choice
            start = clock()
            for _ in range(5):
                key._compiled(flat, 1, 1) or key._blocks(flat, 1, 1)
            noise[name] = min(noise[name], (clock() - start) / 5)
        for library, method, run in methods:
            if (library, method) in failed:
                continue
            try:
                if turn == 0:
                    run()
                    gc.collect()
                    states[library, method] = peak_memory(run) / (4 * n)
                seconds, calls = run()
            except Exception as error:  # a peer that does not run this is reported, not hidden
                failed.add((library, method))
                print(f"{library} {method}: {type(error).__name__}: {error}")
                continue
            best[library, method] = min(best[library, method], seconds / calls)
    return [
        {
            "shape": list(shape), "library": library, "method": method, "streams": counts[method],
            "floor_us": 1e6 * least[counts[method]], "us": 1e6 * best[library, method],
            "ratio": best[library, method] / least[counts[method]],
            "above_us": 1e6 * (best[library, method] - least[counts[method]]),
            "states": states[library, method], "stochastic": firsts[method].tableau.stochastic,
            "noise_us": 1e6 * noise[library] if firsts[method].tableau.stochastic and library in noise else 0.0,
        }
        for library, method, _ in methods if (library, method) not in failed
    ]  # fmt: skip


def record(found: list[Row]) -> None:
    """The rows, all of them, in the format of every benchmark."""
    columns = {"us": (".1f", "us"), "ratio": ".2f", "above_us": (".1f", "us"), "streams": ".1f", "states": ".1f"}
    table = Recorder("overhead").table("a step between two calls", ["shape", "method", "library"], columns)
    for row in found:
        case = ["x".join(map(str, row["shape"])), row["method"], row["library"]]
        table.add(case, [row[name] for name in columns], live=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs="+", help="one shape in place of the four; nothing is kept")
    parser.add_argument("--solvers", nargs="+", default=[*ds.solvers.names(), *STOCHASTIC], help="nothing is kept")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fresh", action="store_true", help="measure again what an earlier run found")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    every = parser.get_default("solvers") == args.solvers
    kept = RESULTS / "overhead.json" if every and args.shape is None else None
    found: list[Row] = json.loads(kept.read_text()) if kept and kept.exists() and not args.fresh else []
    for shape in [] if args.tables else [tuple(args.shape)] if args.shape else SHAPES:
        if any(tuple(r["shape"]) == shape for r in found):
            continue
        start = time.monotonic()
        found += measure(shape, list(dict.fromkeys(args.solvers)), args.rounds)
        print(f"{'x'.join(map(str, shape))}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
        if kept:
            kept.write_text(json.dumps(found, indent=1) + "\n")
            record(found)
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in found))
    tables = {s: listing([r for r in found if tuple(r["shape"]) == s]) for s in shapes}
    if kept is None:
        print(*tables.values(), sep="\n\n")
    elif found:
        about = (
            "# What a step costs, measured\n\nWritten by `python benchmarks/overhead.py`, which says what the columns "
            f"are: one CPU thread, float32, {STEPS} steps, "
            f"{'with' if native.found(torch.float32) else 'without'} a C compiler; {stamped([stamp()])}."
        )
        parts = [about, summary(found).replace("\n", "\n\n")]
        parts += [f"## {' x '.join(map(str, s))}\n\n{table}" for s, table in tables.items()]
        kept.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
        print(page(found), end="\n\n")
    print(summary(found))


if __name__ == "__main__":
    main()
