"""The commands that list names: solvers, grids and paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from inspect import getdoc, signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsolve.common.registry import Registry

__all__ = ["grids", "paths", "solvers", "tables"]


def solvers() -> None:
    """List the solvers: what --solver accepts."""
    import diffsolve as ds

    def on_condot(solver: ds.solvers.Solver) -> ds.Tableau:
        return ds.plan("condot", solver, steps=12)

    tables(
        ds.solvers.registry,
        {
            "order": lambda solver: solver.order,
            "calls": lambda solver: solver.calls,
            "history": lambda solver: on_condot(solver).history,
            "frame": lambda solver: on_condot(solver).frame[on_condot(solver).nfe // 2],  # away from the ends
        },
    )


def grids() -> None:
    """List the grids: what --grid accepts."""
    import diffsolve as ds

    tables(ds.grids.registry, {"is": str})


def paths() -> None:
    """List the paths: what --path accepts."""
    import diffsolve as ds

    tables(ds.paths.registry, {"grid": lambda path: path.grid})


def tables(registry: Registry[Any], columns: dict[str, Callable[[Any], object]]) -> None:
    """Print all names of one kind in tables, one for the names that share a description, with computed columns.

    Options that all names of a table have are listed above it, with the most common defaults; others beside a name.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, highlight=False)
    families: dict[str, dict[str, dict[str, str]]] = {}
    for name in registry.names():
        make = registry.factory(name)
        about = (getdoc(make) or getdoc(type(registry.resolve(name))) or "").partition("\n")[0]
        options = {p.name: f"{p.name}={p.default!r}" for p in signature(make).parameters.values()}
        families.setdefault(about, {})[name] = options
    for about, members in families.items():
        common = set.intersection(*map(set, members.values()))
        first, *_ = members.values()
        shared = [Counter(m[key] for m in members.values()).most_common(1)[0][0] for key in first if key in common]
        own = {name: [text for text in options.values() if text not in shared] for name, options in members.items()}
        last = "own options" if any(own.values()) else ""
        heads = [Column(registry.kind, no_wrap=True), *(Column(head, overflow="fold") for head in (*columns, last))]
        table = Table(*heads, box=None, padding=(0, 0, 0, 2))
        for name in members:
            value = registry.resolve(name)
            table.add_row(name, *(str(cell(value)) for cell in columns.values()), ", ".join(own[name]))
        console.print(about)
        if shared:
            console.print("Options:", ", ".join(shared))
        console.print(table)
        console.print()
