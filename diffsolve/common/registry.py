"""Names with options: `"heun"`, `"ddim(eta=0.5)"`, `"karras(rho=5)"`.

One small parser serves solvers, grids, paths, traces and scores. Options are Python literals; an unknown name or
option is an error that lists the known ones. A program adds names with `register`, a package with entry points.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar, cast

from diffsolve.common.checks import described, instance, required

__all__ = ["Registry", "parse", "plugins"]

T = TypeVar("T")

LISTED = 20  # an error lists at most this many names; of more it gives the nearest and says where to find all
NEAREST = 4  # the most suggestions in an error


class Registry(Generic[T]):
    """The objects of one `kind` by name; each entry is a factory that takes keyword options.

    Args:
        kind: what messages call the objects, such as "solver".
        base: the class of the objects.
        entries: name -> factory.
        aliases: names that are resolved elsewhere; errors suggest them for an unknown name.
        group: the entry-point group through which installed packages add names, such as "diffsolve.solvers". Their
            pyproject.toml has

                [project.entry-points."diffsolve.solvers"]
                mine = "my_package:Mine"

            and "mine" is loaded when it is first used.
    """

    def __init__(
        self,
        kind: str,
        base: Any,
        entries: Mapping[str, Callable[..., T]],
        aliases: Iterable[str] = (),
        group: str | None = None,
    ) -> None:
        self.kind, self.base, self.entries, self.group = kind, base, dict(entries), group
        self.aliases = {alias.lower(): alias for alias in aliases}

    def names(self) -> list[str]:
        """All names, sorted, those of installed packages included."""
        return sorted({*self.entries, *self._plugins()})

    def register(self, name: str, factory: Callable[..., T], *, replace: bool = False) -> None:
        """Add a name for a factory: a class, or a function of keyword options with defaults.

        Args:
            name: without brackets; case is ignored.
            replace: allow a name that exists already.

        Raises:
            ValueError: if the name exists, or is not a word without brackets.
            TypeError: if the name is not a string, or the factory is not callable.
        """
        instance("name", name, str, "a string")
        required(callable(factory), "factory", factory, f"a callable that makes a {self._base_name}", TypeError)
        key, options = parse("name", name)
        required(bool(key) and not options and "(" not in name, "name", name, "a word without brackets")
        taken = key in self.entries or key in self.aliases
        required(replace or not taken, "name", name, f"new among the {self.kind}s (replace=True takes an old one)")
        self.entries[key] = factory

    def resolve(self, spec: str | T) -> T:
        """The object that `spec` names; an object of this kind is returned unchanged.

        Exceptions of the factory itself are not caught.

        Raises:
            ValueError: if the name or an option is unknown, with a list of the known ones.
            TypeError: if `spec` is neither a string nor an object of this kind.
        """
        if isinstance(spec, self.base):
            return cast(T, spec)
        text = instance(self.kind, spec, str, f"a name or a {self._base_name}")
        name, options = parse(self.kind, text)
        factory = self.factory(name)
        signature = inspect.signature(factory)
        known = list(signature.parameters)
        for option in options:
            if option not in known:
                raise ValueError(self._unknown_option(text, option, known))
        try:
            signature.bind(**options)
        except TypeError as error:
            raise ValueError(f"{self.kind} must be {name!r} with its options, got {text!r}: {error}") from None
        resolved = factory(**options)
        required(isinstance(resolved, self.base), f"what {text!r} makes", resolved, f"a {self._base_name}", TypeError)
        return resolved

    def factory(self, name: str) -> Callable[..., T]:
        """The factory of that name, loaded from an installed package if it is an entry point.

        Raises:
            ValueError: if the name is unknown.
        """
        if name not in self.entries:
            plugged_in = self._plugins()
            if name not in plugged_in:
                raise ValueError(self._unknown_name(name))
            self.entries[name] = plugged_in[name].load()
        return self.entries[name]

    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        return {} if self.group is None else {point.name.lower(): point for point in plugins(self.group)}

    def _unknown_name(self, name: str) -> str:
        """The message for an unknown name: all names if they are few, else where to find them, and near misses."""
        names = self.names()
        near = difflib.get_close_matches(name, [*names, *self.aliases], n=NEAREST)
        hint = f"; did you mean {' or '.join(repr(self.aliases.get(one, one)) for one in near)}?" if near else ""
        if len(names) <= LISTED:
            accepted = f"one of {', '.join(map(repr, names))}"
        else:
            module = (self.group or f"diffsolve.{self.kind}s").replace("diffsolve", "ds")
            accepted = f"one of the {len(names)} names that {module}.names() lists"
        return f"{self.kind} must be {accepted}, got {described(name)}{hint}"

    def _unknown_option(self, text: str, option: str, known: list[str]) -> str:
        near = difflib.get_close_matches(option, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        listed = f"its options are {', '.join(known)}" if known else "it has no options"
        return f"{self.kind}={text!r} has no option {option!r}; {hint}{listed}"

    @property
    def _base_name(self) -> str:
        return str(getattr(self.base, "__name__", self.base))


def plugins(group: str) -> list[metadata.EntryPoint]:
    """The entry points of a group, from all installed packages, not loaded."""
    return list(metadata.entry_points(group=group))


def parse(kind: str, spec: str) -> tuple[str, dict[str, Any]]:
    """The name, in lower case, and the options of a spec such as "karras(rho=5)".

    Raises:
        ValueError: if the spec is not name or name(option=value, ...).
    """
    name, bracket, rest = spec.strip().partition("(")
    name = name.strip().lower()
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(word.arg for word in call.keywords):
            raise ValueError(rest)
        return name, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # the last two of values nested deeply
        message = f"{kind} must be written name or name(option=value, ...), got {described(spec)}"
        raise ValueError(message) from None
