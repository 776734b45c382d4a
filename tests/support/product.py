"""Fewer cases than a product: every value of every axis, and the whole product by a command of its own.

    @pytest.mark.product({"solver": SOLVERS, "path, predicts": PAIRS}, each=2)
    def test_it(solver, path, predicts): ...

The README's command runs two pairs for every solver, the next solver taking up where the last one stopped, so that
every pair meets its share of the solvers; `pytest -m full` runs each solver with each pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


def latin(axes: Mapping[str, Sequence[Any]], each: int = 1, over: str | None = None) -> Iterator[tuple[Any, ...]]:
    """A part of the product of some axes, without chance.

    Args:
        each: how many cases each value of the leading axis gets.
        over: the leading axis; by default the longest one. An axis longer than the cases there are is met in part,
            evenly spread.

    Example: 4 values of a and 3 of b, each=1, give a0 b0, a1 b1, a2 b2, a3 b0.
    """
    lead = over or max(axes, key=lambda name: len(axes[name]))
    chosen = dict.fromkeys(_rotate({name: len(axis) for name, axis in axes.items()}, lead, each))
    for case in chosen:
        yield tuple(axis[i] for axis, i in zip(axes.values(), case, strict=True))


def _rotate(sizes: Mapping[str, int], lead: str, each: int) -> Iterator[tuple[int, ...]]:
    turns = sizes[lead] * each
    for i, j in itertools.product(range(sizes[lead]), range(each)):
        turn, case = i * each + j, {lead: i}
        for name, size in sizes.items():
            if name != lead:
                case[name] = turn % size if size <= turns else (i * each + j) * size // turns
                turn += turn // size  # the next axis moves on once more for every round of this one
        yield tuple(case[name] for name in sizes)


def cases(
    axes: Mapping[str, Sequence[Any]], full: bool, some: Mapping[str, Sequence[Any]], **rule: Any
) -> list[list[Any]]:
    """The cases of a test that is marked so: all of them, or the Latin part, of a shorter axis where `some` has one."""
    chosen = itertools.product(*axes.values()) if full else latin({**axes, **some}, **rule)
    return [_flat(case, axes) for case in chosen]


def _flat(case: tuple[Any, ...], axes: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Values in the order of the names: an axis "path, predicts" has pairs."""
    return [v for name, value in zip(axes, case, strict=True) for v in (value if "," in name else (value,))]


def named(case: Sequence[Any]) -> str:
    """An id for a case: functions by their names, as their addresses differ between the processes of pytest-xdist."""
    return "-".join(f"{v[0]}.." if isinstance(v, list) else str(getattr(v, "__name__", v)) for v in case)


def shares(axis: Sequence[Any], count: int) -> list[list[Any]]:
    """An axis dealt out like cards: each value is in one of the shares, neighbours in different ones."""
    return [list(axis[i::count]) for i in range(count)]


def shown(values: Iterable[Any]) -> Iterator[Any]:
    """The values, each printed first: where a test fails, pytest shows which was the last."""
    for value in values:
        print(value)
        yield value
