"""One set of argument checks, and one grammar for what they say: `steps must be an integer >= 1, got 0.5`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from operator import index
from typing import Any, TypeVar

__all__ = ["choice", "described", "exactly_one", "instance", "integer", "mapping", "number", "required", "single"]

T = TypeVar("T")


def required(holds: bool, name: str, value: object, accepted: str, error: type[Exception] = ValueError) -> None:
    """Raise `error` unless the condition holds: "<name> must be <accepted>, got <value>"."""
    if not holds:
        raise error(f"{name} must be {accepted}, got {described(value)}")


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """The value as an int: Python and NumPy integers in [low, high] pass, bools do not.

    Raises:
        ValueError: for any other value.
    """
    accepted = "an integer" + _range(low, high)
    required(not isinstance(value, bool) and hasattr(type(value), "__index__"), name, value, accepted)
    try:
        whole = index(value)
    except TypeError:  # an array or a tensor of several numbers, or of floats
        raise ValueError(f"{name} must be {accepted}, got {described(value)}") from None
    required((low is None or whole >= low) and (high is None or whole <= high), name, value, accepted)
    return whole


def number(
    name: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """The value as a finite float in the range; the bounds `low` and `high` belong to it, `above` and `below` do not.

    Raises:
        ValueError: for any other value.
    """
    lower = f" > {above:g}" if above is not None else f" >= {low:g}" if low is not None else ""
    upper = f" < {below:g}" if below is not None else f" <= {high:g}" if high is not None else ""
    accepted = "a finite number" + " and".join(part for part in (lower, upper) if part)
    required(isinstance(value, Real) and not isinstance(value, bool), name, value, accepted)
    real = float(value)
    inside = (
        math.isfinite(real)
        and (low is None or real >= low)
        and (high is None or real <= high)
        and (above is None or real > above)
        and (below is None or real < below)
    )
    required(inside, name, value, accepted)
    return real


def single(name: str, value: Any) -> float:
    """The value as a float that single precision holds: what outputs of a network are multiplied by.

    Raises:
        ValueError: for any other value.
    """
    largest = 2.0**128 - 2.0**104
    real = number(name, value)
    required(abs(real) <= largest, name, value, f"of size at most {largest:g}, which float32 holds")
    return real


def choice(name: str, value: Any, accepted: Iterable[Any], meant: Mapping[str, Any] | None = None) -> Any:
    """The value, which must be one of `accepted`.

    Args:
        meant: other libraries' names -> the accepted value that they stand for, for the message.

    Raises:
        ValueError: for any other value.
    """
    known = list(accepted)  # at least one
    listed = ", ".join(repr(option) for option in known[:-1])
    listed = f"{listed} or {known[-1]!r}" if listed else repr(known[-1])
    # `is` and type first: 1 must not pass for True, nor an array be compared element by element.
    if not any(type(value) is type(option) and value == option for option in known):
        near = (meant or {}).get(value.lower()) if isinstance(value, str) else None
        hint = "" if near is None else f"; did you mean {near!r}?"
        raise ValueError(f"{name} must be {listed}, got {described(value)}{hint}")
    return value


def instance(name: str, value: Any, kind: type[T] | tuple[type[T], ...], accepted: str) -> T:
    """The value, which must be an instance of `kind`; `accepted` describes the kind in the message.

    Raises:
        TypeError: for any other value.
    """
    required(isinstance(value, kind), name, value, accepted, TypeError)
    return value  # type: ignore[no-any-return]


def mapping(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Keyword arguments for the network; None gives an empty mapping.

    Raises:
        TypeError: for anything else.
    """
    required(value is None or isinstance(value, Mapping), name, value, "a mapping of keyword arguments", TypeError)
    return value or {}


def exactly_one(**values: Any) -> str:
    """The name of the one value that is not None.

    Raises:
        ValueError: if none or several are given.
    """
    given = [name for name, value in values.items() if value is not None]
    if len(given) != 1:
        got = ", ".join(f"{name}={described(values[name])}" for name in given) or "none of them"
        raise ValueError(f"exactly one of {' and '.join(values)} must be given, got {got}")
    return given[0]


def described(value: object, most: int = 200) -> str:
    """A value as messages show it: at most `most` characters, a tensor or array by its type, shape and dtype."""
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, type):
        return f"{type(value).__name__} of shape {tuple(shape)} and dtype {getattr(value, 'dtype', None)}"
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _range(low: int | None, high: int | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return f" >= {low}" if low is not None else f" <= {high}" if high is not None else ""
