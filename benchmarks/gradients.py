"""What the gradients through a run keep and cost, on the digits network: the tables of docs/gradients.md.

python benchmarks/gradients.py            (about a minute on one core; results/gradients.jsonl)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from record import Recorder

import diffsolve as ds

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
from support.live import live_numbers

SIZE = (2, 1, 8, 8)
RUNS: dict[str, list[dict[str, Any]]] = {
    "rk4": [{"solver": "rk4", "steps": n} for n in (4, 16)],
    "unipc-2": [{"solver": "unipc-2", "steps": n} for n in (16, 64)],
    "reversible-heun": [{"solver": "reversible-heun", "steps": n} for n in (15, 63)],
    "ds.Adaptive, 1e-3 and 1e-5": [{"solver": ds.Adaptive(rtol=tol, atol=tol)} for tol in (1e-3, 1e-5)],
}


def run(gradient: str, options: dict[str, Any]) -> tuple[int, int, float, torch.Tensor]:
    """(network calls of the run, all calls, MiB alive at the peak, all gradients as one vector)."""
    model, calls = ds.load("digits"), [0]
    model.net.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    weights = [p for p in model.net.requires_grad_().parameters()]
    x = ds.Key(0).normal(SIZE).requires_grad_()
    with live_numbers(1) as live:
        made = ds.solve(model, noise=x, gradient=gradient, **options)
        found = torch.autograd.grad(made.x.square().sum(), [x, *weights], materialize_grads=True)
    nfe = int(torch.as_tensor(made.nfe).max())
    return nfe, calls[0], live.peak * 4 / 2**20, torch.cat([g.flatten() for g in found]).detach()


def main() -> None:
    torch.set_num_threads(1)
    columns = ("calls", "network calls in all", "MiB", "error")
    table = Recorder("gradients").table("gradients", ["solver", "gradient"], dict.fromkeys(columns, ""))
    for name, settings in RUNS.items():
        exact: list[torch.Tensor] = []
        for gradient in ("direct", "checkpoint", "adjoint"):
            cells: list[list[str]] = []
            for k, options in enumerate(settings):
                nfe, calls, peak, found = run(gradient, options)
                if gradient == "direct":
                    exact.append(found)
                off = float((found - exact[k]).norm() / exact[k].norm())
                cells.append([str(nfe), str(calls), f"{peak:.1f}", f"{off:.0e}" if off else "0"])
            table.add([name, gradient], [" / ".join(column) for column in zip(*cells, strict=True)])


if __name__ == "__main__":
    main()
