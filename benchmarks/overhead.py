"""Time and memory of a step between two network calls: ours and other libraries', with a network that costs nothing.

    python benchmarks/overhead.py                      # all shapes; minutes
    python benchmarks/overhead.py --shape 16 3 32 32   # one

Each number is a ratio to one floor: a single `torch.add(a, b, out=c)` on tensors of n streams / 3 elements, where n is
the size of the state and `streams` the number of states that a step must read and write, whoever makes it: the inputs
and results of its rows, each once. The floor of a method is that of our tableau of it, for its peers too.

"diffsolve" is the in-place chain that a CPU gets by default, "native" the compiled loop (DIFFSOLVE_KERNELS=native).

Times are those of the one thread, the best of several rounds in which all the methods take turns, per network call;
memory is the peak of what was allocated during the run besides the network's output and the start, in states.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import diffsolve as ds
from diffsolve.kernels.update import Z, _fold

SHAPES = [(1, 4, 64, 64), (16, 3, 32, 32), (64, 3, 64, 64), (16, 4, 128, 128)]
STEPS = 20
STOCHASTIC = ("ddim(eta=1.0)",)

clock = time.thread_time  # of the one thread, so that other programs take less part in it


class Peak(TorchDispatchMode):
    """The most bytes alive at once in storages made while the mode is on."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return out

    def freed(self, which: int, size: int) -> None:
        self.seen.discard(which)
        self.alive -= size


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


def ours(x: Tensor, out: Tensor, solver: str, choice: str) -> Callable[[], tuple[float, int]]:
    model = ds.adapt(lambda x, t: out, "edm", "noise")

    def run() -> tuple[float, int]:
        os.environ["DIFFSOLVE_KERNELS"] = choice
        executor = ds.begin(model, noise=x, solver=solver, steps=STEPS, seed=0)
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
    file = Path(__file__).resolve().parent.parent / "tests" / "peers.py"
    spec = importlib.util.spec_from_file_location("diffsolve_test_peers", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        sampling = module.k_diffusion("sampling")
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


def measure(shape: tuple[int, ...], solvers: list[str], rounds: int) -> list[dict[str, Any]]:
    x, out = torch.randn(shape), torch.randn(shape)
    n = x.numel()
    methods: list[Method] = [
        (name, s, ours(x, out, s, choice))
        for name, choice in (("diffsolve", "torch"), ("  native", "native"))
        for s in solvers
    ]
    for library in (diffusers, k_diffusion, azula, torchdiffeq, torchsde):
        methods += [m for m in library(x, out) if m[1] in solvers]
    programs = {
        s: ds.begin(ds.adapt(lambda x, t: out, "edm", "noise"), noise=x, solver=s, steps=STEPS).program for s in solvers
    }
    counts = {s: streams(p) for s, p in programs.items()}
    floors = {c: floor(n, c) for c in set(counts.values())}
    key = ds.Key(0)
    best = {m[:2]: float("inf") for m in methods}
    least = dict.fromkeys(floors, float("inf"))
    noise = float("inf")
    states: dict[tuple[str, str], float] = {}
    failed: set[tuple[str, str]] = set()
    for turn in range(rounds):
        for count, add in floors.items():
            start = clock()
            for _ in range(5):
                add()
            least[count] = min(least[count], (clock() - start) / 5)
        start = clock()
        key.normal(shape, row=1)
        noise = min(noise, clock() - start)
        for library, method, run in methods:
            if (library, method) in failed:
                continue
            try:
                if turn == 0:
                    gc.collect()
                    with Peak() as peak:
                        run()
                    states[library, method] = peak.peak / (4 * n)
                seconds, calls = run()
            except Exception as error:  # a peer that does not run this is reported, not hidden
                failed.add((library, method))
                print(f"{library} {method}: {type(error).__name__}: {error}")
                continue
            best[library, method] = min(best[library, method], seconds / calls)
    return [
        {
            "shape": shape, "library": library, "method": method, "streams": counts[method],
            "floor_us": 1e6 * least[counts[method]], "us": 1e6 * best[library, method],
            "ratio": best[library, method] / least[counts[method]],
            "above_us": 1e6 * (best[library, method] - least[counts[method]]),
            "states": states[library, method], "noise_us": 1e6 * noise if programs[method].tableau.stochastic else 0.0,
        }
        for library, method, _ in methods if (library, method) not in failed
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs="+", help="one shape in place of the four")
    parser.add_argument("--solvers", nargs="+", default=[*ds.solvers.names(), *STOCHASTIC])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", help="a JSON file")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for shape in [tuple(args.shape)] if args.shape else SHAPES:
        rows = measure(shape, list(dict.fromkeys(args.solvers)), args.rounds)
        found += rows
        print(
            f"\n{'x'.join(map(str, shape))}: microseconds per call, as a multiple of the floor, above it; peak states"
        )
        for r in sorted(rows, key=lambda r: (r["method"], r["library"] not in ("diffsolve", "  native"), r["us"])):
            drawn = f"  of which noise {r['noise_us']:.0f} us" if r["library"] == "diffsolve" and r["noise_us"] else ""
            print(
                f"  {r['method']:22}{r['library']:13}{r['us']:10.1f}{r['ratio']:8.2f}{r['above_us']:10.1f}"
                f"{r['states']:8.1f}   ({r['streams']:.1f} streams){drawn}",
                flush=True,
            )
    for name in ("diffsolve", "  native"):
        own = [r for r in found if r["library"] == name and not r["noise_us"]]
        large = sorted(r["ratio"] for r in own if math.prod(r["shape"]) >= 700_000)
        small = sorted(r["above_us"] for r in own if math.prod(r["shape"]) <= 20_000)
        if large:
            within = sum(r <= 2 for r in large)
            print(f"{name}: {within} of {len(large)} at most 2x the floor, median {large[len(large) // 2]:.2f}")
        if small:
            within = sum(u <= 40 for u in small)
            print(f"{name}: {within} of {len(small)} at most 40 us above it, median {small[len(small) // 2]:.1f}")
    behind = [
        (r["shape"], r["method"], p["library"])
        for r in found
        for p in found
        if r["library"] == "diffsolve"
        and not r["noise_us"]
        and (p["shape"], p["method"]) == (r["shape"], r["method"])
        and p["library"] not in ("diffsolve", "  native")
        and p["us"] <= r["us"]
    ]
    print(f"behind a peer: {behind or 'nowhere'}")
    if args.save:
        Path(args.save).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
