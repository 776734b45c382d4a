"""Keyword options declared once, as a TypedDict, and shown by `help`, editors and type checkers alike."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["given", "refuse_unknown", "shows"]

F = TypeVar("F", bound=Callable[..., Any])


def shows(options: type, **defaults: Any) -> Callable[[F], F]:
    """Let the signature of `f(.., **options: Unpack[Options])` list every option, for `help` and `inspect.signature`.

    Args:
        options: the TypedDict.
        defaults: of the options whose default is not None.
    """

    def show(function: F) -> F:
        own = inspect.signature(function)
        fixed = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=kind)
            for name, kind in _annotations(options).items()
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*fixed, *keywords])  # type: ignore[attr-defined]
        return function

    return show


def refuse_unknown(function: str, given: Mapping[str, Any], options: type) -> None:
    """Raise a TypeError for a keyword that is not an option, with the closest name."""
    known = _annotations(options)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{function}() got an unknown option {name!r}; {hint}the options are {', '.join(known)}")


def given(options: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options that were set: neither None nor False."""
    return {
        name: value for name, value in options.items() if name not in but and value is not None and value is not False
    }


def _annotations(options: type) -> dict[str, Any]:
    """Names and types; a TypedDict's annotations include those of its bases."""
    return dict(options.__annotations__)
