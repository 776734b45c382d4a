"""A cache of results by their arguments that keeps no one else's object alive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar, cast
from weakref import ref

__all__ = ["remembered"]

P = ParamSpec("P")
R = TypeVar("R")

HOME = (__name__.partition(".")[0], "builtins", "fractions", "numpy", "torch")


def remembered(maxsize: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`functools.lru_cache` that holds foreign arguments weakly: the results for one are dropped with it.

    Foreign is what is of a class or a function outside of this package, or has such a thing inside: it may keep
    anything alive, as a `paths.Custom` keeps what its functions close over. Of the others the last `maxsize` results
    are kept. The arguments must be positional.
    """

    def remember(function: Callable[P, R]) -> Callable[P, R]:
        cache = _Cache(maxsize)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            assert not kwargs
            try:
                key = tuple(ref(arg, cache.drop) if _foreign(arg) else (type(arg), arg) for arg in args)
                return cast(R, cache.entries[key])
            except TypeError:  # something in it has no hash, or takes no weak reference
                return function(*args, **kwargs)
            except KeyError:
                pass
            result = function(*args, **kwargs)
            cache.keep(key, result)
            return result

        call.cache = cache  # type: ignore[attr-defined]
        return call

    return remember


class _Cache:
    def __init__(self, maxsize: int) -> None:
        self.maxsize, self.entries, self.lock = maxsize, OrderedDict[Any, Any](), Lock()

    def keep(self, key: tuple[Any, ...], result: Any) -> None:
        with self.lock:
            self.entries[key] = result
            while len(self.entries) > self.maxsize:
                self.entries.popitem(last=False)

    def drop(self, dead: Any) -> None:
        """Remove the results for an object that is gone, by the reference to it."""
        for key in list(self.entries):
            if any(part is dead for part in key):
                self.entries.pop(key, None)


def _foreign(value: Any, depth: int = 4) -> bool:
    """Whether a value is, or has in its attributes, something from outside of this package."""
    if isinstance(value, tuple | list):
        return any(_foreign(part, depth) for part in value)
    kind = type(value)
    if kind.__module__.partition(".")[0] not in HOME:
        return True
    if kind.__name__ in ("function", "method", "builtin_function_or_method"):
        return (value.__module__ or "").partition(".")[0] != HOME[0]
    attributes = getattr(value, "__dict__", None) if kind.__module__.startswith(HOME[0]) else None
    if attributes is None:
        return False
    return depth == 0 or any(_foreign(part, depth - 1) for part in attributes.values())
