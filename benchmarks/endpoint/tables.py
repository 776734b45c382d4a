"""From errors to the tables: the best of each cell, ratios, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from endpoint.ours import POINTS, RULE
from endpoint.problems import REPORT, TARGETS, TUNE, Course
from endpoint.runner import Pair, Table, named

Study = dict[str, Table]
"""kind ("auto", "points", "named", "family", "peers") -> table; of one course."""

ROLES = {"tune": TUNE, "held out": REPORT}


def best(table: dict[str, list[float]], b: int) -> tuple[float, str]:
    """(error, name) of the best configuration for budget b."""
    return min(((e[b], name) for name, e in table.items() if math.isfinite(e[b])), default=(math.nan, "none"))


def ours(study: Study, target: str, b: int) -> tuple[float, str]:
    """(error, name) of the best of ours for budget b."""
    found = [best(study[kind].get(target, {}), b) for kind in ("auto", "points", "named", "family")]
    return min((f for f in found if math.isfinite(f[0])), default=(math.nan, "none"))


def mean_log(values: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(v) for v in values if math.isfinite(v) and v > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def ratio(study: Study, target: str, b: int, kind: str = "", name: str = "") -> float:
    """Of one configuration's error, or of the best of ours, to the best peer's."""
    error = study[kind][target][name][b] if kind else ours(study, target, b)[0]
    return (error if math.isfinite(error) else 1e3) / best(study["peers"][target], b)[0]


def summary(study: Study, budgets: Sequence[int]) -> dict[str, object]:
    """What a study comes to: worst and mean ratios of the best of ours, and of auto, to the best peer of each cell."""
    columns = range(len(budgets))
    cells = [(target, b) for target in study["peers"] for b in columns]
    best_ours = {(target, b): ratio(study, target, b) for target, b in cells}
    found: dict[str, object] = {
        "configurations": {kind: len(next(iter(table.values()))) for kind, table in study.items() if table},
        "best of ours / best peer": {
            "cells": len(cells),
            "at most 1": sum(r <= 1 + 1e-6 for r in best_ours.values()),
            "worst": max(best_ours.values()),
            "geometric mean": mean_log(best_ours.values()),
        },
    }
    for role, names in ROLES.items():
        among = [t for t in names if t in study["peers"]]
        per = {n: mean_log(ratio(study, t, b, "auto", "auto @ angle") for t in among) for b, n in enumerate(budgets)}
        found[f"auto / best peer, {role}"] = {**per, "all": mean_log(per.values())}
    return found


def cells(study: Study, budgets: Sequence[int]) -> dict[str, dict[int, dict[str, object]]]:
    """target -> budget -> the best peer, the best of ours and auto."""
    return {
        target: {
            nfe: {
                "peer": best(study["peers"][target], b)[::-1],
                "ours": ours(study, target, b)[::-1],
                "auto": study["auto"][target]["auto @ angle"][b],
            }
            for b, nfe in enumerate(budgets)
        }
        for target in study["peers"]
    }


def rows(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    lines = [heads, ["--"] * len(heads), *body]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def markdown(course: Course, study: Study, budgets: Sequence[int]) -> str:
    """The means over all targets, the numbers of points that auto chooses among, and one table per target."""
    targets = [t for t in TARGETS if t in study["peers"]]
    roles = {role: [t for t in names if t in targets] for role, names in ROLES.items()}
    roles = {role: names for role, names in roles.items() if names}
    heads = ["configuration", "targets", *map(str, budgets), "all"]

    def line(title: str, role: str, kind: str = "", name: str = "") -> list[str]:
        per = [mean_log(ratio(study, t, b, kind, name) for t in roles[role]) for b in range(len(budgets))]
        return [title, role, *(f"{r:.2f}" for r in [*per, mean_log(per)])]

    def compared(kind: str, pairs: Iterable[Pair]) -> list[list[str]]:
        return [line(f"`{name}`", role, kind, name) for name in map(named, pairs) for role in roles]

    text = [f"# {course.name}: {course.path}, (alpha, sigma) from {course.start} to {course.end}", ""]
    text += ["## Error over that of the best peer of each cell: geometric means over targets, by network calls", ""]
    text += rows(heads, [*(line("best of ours", role) for role in roles), *compared("auto", RULE)])
    text += ["## The same for each number of points that auto chooses among", ""]
    text += rows(heads, compared("points", POINTS))
    for target in targets:
        text += [f"## {target} ({TARGETS[target][1]})", ""]
        body = []
        for b, nfe in enumerate(budgets):
            (peer, peer_name), (own, name) = best(study["peers"][target], b), ours(study, target, b)
            auto = study["auto"][target]["auto @ angle"][b]
            cells = [f"{peer:.2e}", peer_name, f"{own:.2e}", f"`{name}`", f"{own / peer:.2f}"]
            body.append([str(nfe), *cells, f"{auto:.2e}", f"{auto / peer:.2f}"])
        text += rows(["NFE", "best peer", "", "best of ours", "", "ours / peer", "auto", "auto / peer"], body)
    return "\n".join(text)
