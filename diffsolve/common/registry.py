"""Names with options: `"heun"`, `"ddim(eta=0.5)"`, `"karras(rho=5)"`.

One small parser serves solvers, grids and paths. Options are Python literals; an unknown name or option is an
error that says which ones exist.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ["Registry", "parse"]

T = TypeVar("T")


class Registry(Generic[T]):
    """The things of one `kind` that have a name; each entry makes one from keyword options.

    Args:
        aliases: other names, which somebody else resolves; an unknown name may be like one of them.
    """

    def __init__(
        self, kind: str, base: type, entries: Mapping[str, Callable[..., T]], aliases: Iterable[str] = ()
    ) -> None:
        self.kind, self.base, self.entries = kind, base, dict(entries)
        self.aliases = {alias.lower(): alias for alias in aliases}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.entries)

    def resolve(self, spec: str | T) -> T:
        """The object that `spec` names; an object of this kind is returned as it is.

        Raises:
            ValueError: for an unknown name or option, naming what exists.
            TypeError: if `spec` is neither a string nor an object of this kind.
        """
        if isinstance(spec, self.base):
            return spec  # type: ignore[return-value]
        if not isinstance(spec, str):
            raise TypeError(f"{self.kind}={spec!r}: a name or a {self.base.__name__} is accepted")
        name, options = parse(self.kind, spec)
        if name not in self.entries:
            near = difflib.get_close_matches(name, [*self.entries, *self.aliases], n=1)
            hint = f"did you mean {self.aliases.get(near[0], near[0])!r}? " if near else ""
            raise ValueError(f"{self.kind}={spec!r} is unknown; {hint}accepted: {', '.join(self.names())}")
        make = self.entries[name]
        known = list(inspect.signature(make).parameters)
        unknown = [key for key in options if key not in known]
        if unknown:
            accepted = f"accepted options: {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"{self.kind}={spec!r}: unknown option {unknown[0]!r}; {accepted}")
        try:
            return make(**options)
        except TypeError as error:
            raise ValueError(f"{self.kind}={spec!r}: {error}") from error


def parse(kind: str, spec: str) -> tuple[str, dict[str, Any]]:
    """The name, in lower case, and the options of a spec.

    Raises:
        ValueError: if it cannot be read.
    """
    name, bracket, rest = spec.strip().partition("(")
    name = name.strip().lower()
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(rest)
        return name, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(f"{kind}={spec!r} cannot be read; write name or name(option=value, ...)") from None
