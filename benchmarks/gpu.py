"""One command on a GPU: kernels against references and the memory roofline, graphs, whole samples, overhead and peers.

    python -m benchmarks gpu                 # at most 8 minutes; results/gpu.jsonl
    python -m benchmarks gpu --budget 120    # seconds; what does not fit is named

Every part is recorded as soon as it is measured, so that a run that is stopped keeps what it has. Times are of the
device (CUDA events), the least of several repetitions. Without a CUDA or ROCm device it says so, and exits with 2.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter compiles nothing

import torch
from record import Recorder
from torch import Tensor, nn

import diffsolve as ds

SHAPE = (64, 3, 64, 64)
SOLVERS = ("euler", "ddim", "dpmpp-2m", "unipc-3", "heun", "ddim(eta=1)", "sa-2(tau=0.5)")


def milliseconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The least time of a run on the device, after one that is not counted."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end))
    return best


class Network(nn.Module):
    """A few convolutions with random weights: a network with the launches of one and the cost of a small one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = [3, width, width, width, 3]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x
        for layer in self.layers[:-1]:
            h = nn.functional.silu(layer(h) + t.to(x.dtype)[:, None, None, None])
        return self.layers[-1](h)


def correctness(recorder: Recorder) -> None:
    """The samples of the kernels against plain PyTorch's on the device, and against the CPU's."""
    columns = {"kernels to torch": ".1e", "kernels to the CPU": ".1e", "noise, most": ".1e"}
    table = recorder.table("largest difference, over the largest value", ["solver", "state"], columns)
    noise, host = (ds.Key(0).normal((8, 5, 7), device=device).cpu() for device in ("cuda", "cpu"))
    off = float((noise - host).abs().max())
    net = Network(16)
    x = ds.Key(1).normal((4, 3, 31, 33), dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16):
        for solver in SOLVERS:
            found = {}
            for where, kernels in (("cuda", "triton"), ("cuda", "torch"), ("cpu", "torch")):
                os.environ["DIFFSOLVE_KERNELS"] = kernels
                model = ds.adapt(net.to(where, torch.float32), "condot", "velocity")
                run = ds.sample(model, noise=x.to(where, dtype), solver=solver, steps=10, seed=0)
                found[where, kernels] = run.double().cpu()
            os.environ.pop("DIFFSOLVE_KERNELS")
            size = found["cpu", "torch"].abs().max()
            far = [float((found["cuda", "triton"] - found[k]).abs().max() / size)
                   for k in (("cuda", "torch"), ("cpu", "torch"))]  # fmt: skip
            table.add([solver, str(dtype).removeprefix("torch.")], [*far, off])


def roofline(recorder: Recorder) -> None:
    """Each kernel beside a copy of as many bytes, and beside what torch does in its place."""
    from kernels import time_cases

    columns = {"kernel": (".1f", "us"), "copy": (".1f", "us"), "eager": (".1f", "us"), "of the roofline": ".0%"}
    table = recorder.table(f"kernels at {SHAPE}", ["case"], columns)
    for case, kernel, copy, eager, _ in time_cases(compiled=False):
        table.add([case], [1e3 * kernel, copy and 1e3 * copy, eager and 1e3 * eager, copy and copy / kernel])


def samples(recorder: Recorder) -> None:
    """Whole samples of a network: plain PyTorch, the kernels, and the kernels with the run captured as a graph."""
    table = recorder.table(
        "a sample of 20 steps", ["network", "state", "solver"],
        {"torch": (".2f", "ms"), "kernels": (".2f", "ms"), "graph": (".2f", "ms"), "network alone": (".2f", "ms"),
         "graph equals plain": ""},
    )  # fmt: skip
    for width, batch in ((8, 1), (64, 16)):
        for dtype in (torch.float32, torch.bfloat16):
            net = Network(width).to("cuda", dtype)
            x = ds.Key(0).normal((batch, 3, 64, 64), device="cuda")
            model = ds.adapt(lambda y, t, net=net, dtype=dtype: net(y.to(dtype), t), "condot", "velocity")
            t = torch.zeros(batch, device="cuda")
            for solver in ("euler", "dpmpp-2m", "unipc-3", "ddim(eta=1)"):
                run = lambda graph=False, m=model, n=x, s=solver: ds.sample(  # noqa: E731
                    m, noise=n, solver=s, steps=20, seed=0, graph=graph
                )
                times = []
                for kernels, graph in (("torch", False), ("triton", False), ("triton", True)):
                    os.environ["DIFFSOLVE_KERNELS"] = kernels
                    with torch.no_grad():
                        times.append(milliseconds(lambda r=run, g=graph: r(g)))
                same = torch.equal(run(True), run(False))
                os.environ.pop("DIFFSOLVE_KERNELS")
                calls = ds.plan("condot", solver, steps=20).nfe
                with torch.no_grad():
                    y = x.to(dtype)
                    alone = milliseconds(lambda n=net, y=y, t=t, k=calls: [n(y, t) for _ in range(k)])
                name = f"{width} channels, batch {batch}"
                table.add([name, str(dtype).removeprefix("torch."), solver], [*times, alone, "yes" if same else "NO"])


def peers(recorder: Recorder) -> None:
    """A step between two calls, of a network that costs nothing: ours beside diffusers' schedulers."""
    table = recorder.table(
        f"a step at {SHAPE}", ["method"], {"kernels": (".0f", "us"), "graph": (".0f", "us"), "torch": (".0f", "us"),
                                            "diffusers": (".0f", "us")},
    )  # fmt: skip
    x, out = (torch.randn(SHAPE, device="cuda") for _ in range(2))
    model = ds.adapt(lambda x, t: out, "condot", "velocity")
    theirs = diffusers_steps(x, out)
    for solver in ("euler", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3"):
        calls = ds.plan("condot", solver, steps=20).nfe
        times: list[float | None] = []
        for kernels, graph in (("triton", False), ("triton", True), ("torch", False)):
            os.environ["DIFFSOLVE_KERNELS"] = kernels
            run = lambda g=graph, s=solver: ds.sample(model, noise=x, solver=s, steps=20, graph=g)  # noqa: E731
            times.append(1e3 * milliseconds(run) / calls)
        os.environ.pop("DIFFSOLVE_KERNELS")
        peer = theirs.get(solver)
        table.add([solver], [*times, 1e3 * milliseconds(peer) / 20 if peer else None])


def diffusers_steps(x: Tensor, out: Tensor) -> dict[str, Callable[[], object]]:
    """20 steps of a diffusers scheduler, by our method's name."""
    try:
        import diffusers
    except ImportError:
        return {}

    def loop(name: str, options: dict[str, Any]) -> object:
        scheduler = getattr(diffusers, name)(**options)
        scheduler.set_timesteps(20, device="cuda")
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(out, t, state).prev_sample
        return state

    names: dict[str, tuple[str, dict[str, Any]]] = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        **{f"dpmpp-{p}m": ("DPMSolverMultistepScheduler", {"solver_order": p}) for p in (2, 3)},
        **{f"unipc-{p}": ("UniPCMultistepScheduler", {"solver_order": p}) for p in (2, 3)},
    }
    return {method: lambda n=name, o=options: loop(n, o) for method, (name, options) in names.items()}


PARTS = {"correctness": correctness, "samples": samples, "peers": peers, "roofline": roofline}
"""In the order of their worth, should the time not suffice."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=450.0, help="seconds after which no part is begun")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", default="", help="the file of records, if not results/gpu.jsonl")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA or ROCm device: this benchmark measures nothing without one", file=sys.stderr)
        return 2
    recorder, began, failed = Recorder("gpu", options.out), time.monotonic(), []
    for name in options.parts:
        if time.monotonic() - began > options.budget:
            print(f"{name}: left out, {options.budget:.0f} seconds are over", flush=True)
            continue
        print(f"\n## {name}\n", flush=True)
        start = time.monotonic()
        try:
            PARTS[name](recorder)
        except Exception:  # one part that breaks does not take the others with it
            traceback.print_exc()
            failed.append(name)
        print(f"\n{name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
