"""From errors to the tables: the best of each cell, ratios, and what they come to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from endpoint.ours import POINTS, PREDICTIONS
from endpoint.problems import REPORT, TARGETS, TUNE, Course
from endpoint.runner import Table, named

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
    return found | rules(study, budgets)


def rules(study: Study, budgets: Sequence[int]) -> dict[str, dict[object, float]]:
    """What auto comes to, for every prediction: geometric means of its error over the best peer's, and the worst."""
    found: dict[str, dict[object, float]] = {}
    for role, names in ROLES.items():
        among = [t for t in names if t in study["peers"]]
        for rule in dict.fromkeys(name for t in among for name in study["auto"][t]):
            every = {n: [ratio(study, t, b, "auto", rule) for t in among] for b, n in enumerate(budgets)}
            per = {n: mean_log(ratios) for n, ratios in every.items()}
            worst = max(itertools.chain.from_iterable(every.values()))
            found[f"{rule} / best peer, {role}"] = {**per, "all": mean_log(per.values()), "worst": worst}
    return found


def cells(study: Study, budgets: Sequence[int]) -> dict[str, dict[int, dict[str, object]]]:
    """target -> budget -> the best peer, the best of ours and auto."""
    return {
        target: {
            nfe: {
                "peer": best(study["peers"][target], b)[::-1],
                "ours": ours(study, target, b)[::-1],
                **{rule: errors[b] for rule, errors in study["auto"][target].items()},
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

    text = [f"# {course.name}: {course.path}, (alpha, sigma) from {course.start} to {course.end}", ""]
    text += ["## Error over that of the best peer of each cell: geometric means over targets, by network calls", ""]
    rules = [f"auto, {predicts}" for predicts in PREDICTIONS[course.name]]
    by_rule = [line(f"`{rule}`", role, "auto", rule) for rule in rules for role in roles]
    text += rows(heads, [*(line("best of ours", role) for role in roles), *by_rule])
    text += ["## The same for Adams in the angle, by the number of points", ""]
    text += rows(heads, [line(f"`{n}`", role, "points", n) for n in map(named, POINTS) for role in roles])
    for target in targets:
        text += [f"## {target} ({TARGETS[target][1]})", ""]
        body = []
        for b, nfe in enumerate(budgets):
            (peer, peer_name), (own, name) = best(study["peers"][target], b), ours(study, target, b)
            cells = [f"{peer:.2e}", peer_name, f"{own:.2e}", f"`{name}`", f"{own / peer:.2f}"]
            body.append([str(nfe), *cells, *(f"{study['auto'][target][rule][b] / peer:.2f}" for rule in rules)])
        heads = ["NFE", "best peer", "", "best of ours", "", "ours / peer", *(f"{rule} / peer" for rule in rules)]
        text += rows(heads, body)
    return "\n".join(text)
