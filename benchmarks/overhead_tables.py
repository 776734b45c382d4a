"""What overhead.py measured, as tables: all of it, what the page in docs shows, and what must be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

OURS = {"diffsolve": "", "chain": "torch"}
"""Name -> DIFFSOLVE_KERNELS."""
SHOWN = ("euler", "ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "heun", "rk4", "ab-4", "ddim(eta=1.0)")
"""The methods of the page in docs."""

Row = dict[str, Any]


def beside(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Method -> its rows at one shape: ours, the chain, then peers, the fastest first."""
    order = list(OURS)
    ranked = sorted(rows, key=lambda r: (order.index(r["library"]) if r["library"] in order else len(order), r["us"]))
    return {m: [r for r in ranked if r["method"] == m] for m in dict.fromkeys(r["method"] for r in rows)}


def listing(rows: Sequence[Row]) -> str:
    """All the numbers at one shape."""
    lines = ["| method | library | us | x floor | us above it | streams | peak states | noise, us |", "|---" * 8 + "|"]
    for method, group in beside(rows).items():
        for r in group:
            noise = f"{r['noise_us']:.0f}" if r["noise_us"] else ""
            lines.append(
                f"| {method} | {r['library']} | {r['us']:.1f} | {r['ratio']:.2f} | {r['above_us']:.1f} | "
                f"{r['streams']:.1f} | {r['states']:.1f} | {noise} |"
            )
    return "\n".join(lines)


def page(found: Sequence[Row]) -> str:
    """What docs/performance.md shows: ratios, shapes side by side."""
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in found))
    by = {(r["method"], r["library"], tuple(r["shape"])): r for r in found}
    head = ["method", "library", *(" x ".join(map(str, s)) for s in shapes), "memory"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for method in SHOWN:
        name = method
        for library in dict.fromkeys(r["library"] for r in found if r["method"] == method):
            rows = [by.get((method, library, s)) for s in shapes]
            cells = ["-" if r is None else f"{r['ratio']:.1f}" for r in rows]
            states = max(r["states"] for r in rows if r is not None)
            lines.append("| " + " | ".join([name, library, *cells, f"{states:.0f}"]) + " |")
            name = ""
    return "\n".join(lines)


def summary(found: Sequence[Row]) -> str:
    """What must be shown, and by how much; what is beyond, by name."""
    lines = []
    for name in OURS:
        for shape in dict.fromkeys(tuple(r["shape"]) for r in found):
            own = [r for r in found if (r["library"], tuple(r["shape"]), r["stochastic"]) == (name, shape, False)]
            large, small = math.prod(shape) >= 700_000, math.prod(shape) <= 20_000
            for wanted, key, bound, unit in (
                (large, "ratio", 2.0, "x the floor"),
                (small, "above_us", 40.0, "us above"),
            ):
                if not wanted or not own:
                    continue
                values = sorted(r[key] for r in own)
                beyond = [f"{r['method']} {r[key]:.2f}" for r in own if r[key] > bound]
                lines.append(
                    f"{name} at {shape}: {len(own) - len(beyond)} of {len(own)} deterministic methods at most "
                    f"{bound:g} {unit}; median {values[len(own) // 2]:.2f}, most {values[-1]:.2f}; "
                    f"beyond: {', '.join(beyond) or 'none'}"
                )
    for stochastic in (False, True):
        behind = [
            f"{r['method']} at {tuple(r['shape'])} behind {p['library']}"
            for r in found
            for p in found
            if r["library"] == "diffsolve" and p["library"] not in OURS and r["stochastic"] == stochastic
            if (p["shape"], p["method"]) == (r["shape"], r["method"]) and p["us"] <= r["us"]
        ]
        lines.append(
            f"{'stochastic' if stochastic else 'deterministic'}: behind a peer: {', '.join(behind) or 'nowhere'}"
        )
    return "\n".join(lines)
