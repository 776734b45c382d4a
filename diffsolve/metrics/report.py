"""A sweep as one page of HTML that needs no server and nothing from the net."""

from __future__ import annotations

import base64
import io
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.files import dumps, write_whole
from diffsolve.metrics.advice import Configuration, advice, configurations, main_measure, pareto
from diffsolve.metrics.charts import Point, Series, chart, marker, scatter
from diffsolve.metrics.images import as_bytes
from diffsolve.metrics.table import ENDPOINT, Table

__all__ = ["report"]

TEMPLATE = Path(__file__).with_name("report.html.j2")
PACKAGES = ("diffsolve", "torch", "numpy", "scipy")
SMALLEST = 64  # pixels: the width of a shown image, at least


def report(table: Table, path: str | Path, title: str = "Which solver, how many calls?") -> None:
    """Write a page with the table (sortable), charts, what to use, the same noises under all solvers, and settings.

    Args:
        table: of `sweep`; of `sweep(.., strip=8)` if samples are to be shown.
        path: an .html file.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("reports need jinja2: pip install 'diffsolve[report]'") from error
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = page.from_string(TEMPLATE.read_text(encoding="utf-8"))
    write_whole(path, template.render(title=title, **_context(table)))


def _context(table: Table) -> dict[str, Any]:
    found, measure = configurations(table), main_measure(table)
    front = [] if measure is None else pareto(found, measure)
    numbers = {solver: i for i, solver in enumerate(table.solvers)}
    return {
        "measure": measure,
        "measures": table.measures,
        "advice": [] if measure is None else [
            {"budget": a.budget, "use": a.use, "score": _score(a.use.scores[measure]), "best": a.best,
             "least": _score(a.best.scores[measure])}
            for a in advice(found, measure)
        ],
        "charts": _charts(table, found, front, measure, numbers),
        "legend": [
            {"solver": solver, "number": i, "colour": i % 8, "marker": marker(i, 9, 9)} for solver, i in numbers.items()
        ],
        "rows": [
            {
                "solver": c.solver, "number": numbers[c.solver], "nfe": c.nfe, "method": c.method, "calls": c.calls,
                "seconds": c.seconds, "front": c in front,
                "scores": [(_sortable(c.scores.get(m)), _score(c.scores.get(m))) for m in table.measures],
            }
            for c in found
        ],
        "strips": _strips(table, numbers),
        "subject": _subject(table),
        "about": {name: _setting(value) for name, value in table.about.items()},
        "versions": {"Python": platform.python_version(), **_versions(), "machine": platform.platform()},
    }  # fmt: skip


def _charts(
    table: Table,
    found: Sequence[Configuration],
    front: Sequence[Configuration],
    measure: str | None,
    numbers: Mapping[str, int],
) -> list[dict[str, str]]:
    """Title and SVG: the deciding measure against calls and against seconds, the others against calls."""
    calls, seconds, ticks = "network calls", "milliseconds a sample", [n for n in table.budgets if n is not None]
    drawn = []
    for name in sorted(table.measures, key=lambda name: (name != measure, name != ENDPOINT)):
        best = front if name == measure else ()
        lines = _series(found, name, numbers, "calls")
        drawn.append((f"{name} against {calls}", chart(lines, calls, name, _points(best, name, "calls"), ticks)))
        if name == measure:
            lines = _series(found, name, numbers, "milliseconds")
            quick = _points(pareto(found, name, "seconds"), name, "milliseconds")
            drawn.append((f"{name} against time", chart(lines, seconds, name, quick)))
    return [{"title": title, "svg": svg} for title, svg in drawn if svg]


def _series(found: Sequence[Configuration], measure: str, numbers: Mapping[str, int], cost: str) -> list[Series]:
    lines = []
    for solver, number in numbers.items():
        points = _points([c for c in found if c.solver == solver], measure, cost)
        if points:
            lines.append(Series(number, sorted(points)))
    return lines


def _points(found: Sequence[Configuration], measure: str, cost: str) -> list[Point]:
    points = []
    for c in found:
        value, error = c.scores.get(measure, (math.nan, math.nan))
        x = c.calls if cost == "calls" else 1000 * c.seconds
        if math.isfinite(value):
            text = f"{c.solver}: {_score((value, error))} with {c.calls:.4g} calls, {1000 * c.seconds:.3g} ms"
            points.append(Point(x, value, error, text))
    return points


def _strips(table: Table, numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The samples of each solver and budget: as pictures, or, of points in the plane, as one plot."""
    shown = []
    limit = max((float(x.abs().nan_to_num(0, 0, 0).max()) for x in table.strips.values() if x.dim() == 2), default=1.0)
    for (solver, nfe), x in sorted(table.strips.items(), key=lambda item: (item[0][1] or 0, numbers[item[0][0]])):
        entry: dict[str, Any] = {"solver": solver, "nfe": nfe, "number": numbers[solver], "images": [], "scatter": ""}
        if x.dim() == 4 and x.shape[1] in (1, 3):
            entry["images"] = [_picture(one) for one in x]
        elif x.dim() == 2 and x.shape[1] == 2:
            entry["scatter"] = scatter([(float(a), float(b)) for a, b in x], limit or 1.0)
        else:
            continue
        shown.append(entry)
    return shown


def _picture(x: Tensor) -> dict[str, Any]:
    """A data URI of an image (C, H, W), and the size at which it is shown."""
    from PIL import Image

    array = as_bytes(x[None].nan_to_num(0))[0].permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, "png")
    times = max(1, math.ceil(SMALLEST / array.shape[1]))
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "width": times * array.shape[1], "height": times * array.shape[0]}


def _score(score: tuple[float, float] | None) -> str:
    if score is None:
        return ""
    value, error = score
    if math.isnan(value):
        return "not finite"
    return f"{value:.4g}" if math.isnan(error) else f"{value:.4g} ± {error:.1g}"


def _subject(table: Table) -> str:
    """What was sampled: the network, its path, what it predicts, and how often."""
    model, seeds = table.about.get("model"), len({row.seed for row in table.rows})
    named = ""
    if isinstance(model, Mapping):
        net, path = (model.get(name) for name in ("net", "path"))
        of = [part if isinstance(part, str) else part[0] for part in (net, path) if part]
        named = f"{' on '.join(map(str, of))}, predicts {model.get('predicts')}: "
    return f"{named}{table.about.get('num', '?')} samples of each of {seeds} seed{'' if seeds == 1 else 's'}"


def _sortable(score: tuple[float, float] | None) -> float:
    """What a column is sorted by; what is missing stands last."""
    return 1e300 if score is None or math.isnan(score[0]) else score[0]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["torch"] = torch.__version__
    return found
