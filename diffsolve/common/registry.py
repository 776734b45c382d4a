"""Names with options: `"heun"`, `"ddim(eta=0.5)"`, `"karras(rho=5)"`.

One small parser serves solvers, grids, paths, traces and scores. Options are Python literals; an unknown name or
option is an error that says which ones exist. A program adds names with `register`, a package with entry points.
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

LISTED = 20  # so many names an error lists; of more it gives the nearest, and says where all are
NEAREST = 4


class Registry(Generic[T]):
    """The things of one `kind` that have a name; each entry makes one from keyword options.

    Args:
        aliases: other names, which somebody else resolves; an unknown name may be like one of them.
        group: of the entry points where installed packages name more of them, "diffsolve.solvers" say. A package's
            pyproject.toml has

                [project.entry-points."diffsolve.solvers"]
                mine = "my_package:Mine"

            and "mine" is loaded when it is first asked for.
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
        """All names, sorted; those of installed packages too."""
        return sorted({*self.entries, *self._plugins()})

    def register(self, name: str, factory: Callable[..., T], *, replace: bool = False) -> None:
        """Give a name to what a factory makes: a class, or a function of keyword options with defaults.

        Args:
            name: without brackets; capitals do not count.
            replace: take a name that exists already.

        Raises:
            ValueError: for a name that exists, or that a spec could not have.
            TypeError: if the factory cannot be called.
        """
        instance("name", name, str, "a string")
        required(callable(factory), "factory", factory, f"a callable that makes a {self._base_name}", TypeError)
        key, options = parse("name", name)
        required(bool(key) and not options and "(" not in name, "name", name, "a word without brackets")
        taken = key in self.entries or key in self.aliases
        required(replace or not taken, "name", name, f"new among the {self.kind}s (replace=True takes an old one)")
        self.entries[key] = factory

    def resolve(self, spec: str | T) -> T:
        """The object that `spec` names; an object of this kind is returned as it is.

        What a factory itself raises comes through.

        Raises:
            ValueError: for an unknown name or option, naming what exists.
            TypeError: if `spec` is neither a string nor an object of this kind.
        """
        if isinstance(spec, self.base):
            return cast(T, spec)
        text = instance(self.kind, spec, str, f"a name or a {self._base_name}")
        name, options = parse(self.kind, text)
        make = self.factory(name)
        signature = inspect.signature(make)
        known = list(signature.parameters)
        for option in options:
            if option not in known:
                raise ValueError(self._unknown_option(text, option, known))
        try:
            signature.bind(**options)
        except TypeError as error:
            raise ValueError(f"{self.kind} must be {name!r} with its options, got {text!r}: {error}") from None
        thing = make(**options)
        required(isinstance(thing, self.base), f"what {text!r} makes", thing, f"a {self._base_name}", TypeError)
        return thing

    def factory(self, name: str) -> Callable[..., T]:
        """What makes the thing of that name; loaded from the package that brings it, if need be.

        Raises:
            ValueError: for an unknown name.
        """
        if name not in self.entries:
            brought = self._plugins()
            if name not in brought:
                raise ValueError(self._unknown(name))
            self.entries[name] = brought[name].load()
        return self.entries[name]

    def _plugins(self) -> dict[str, metadata.EntryPoint]:
        return {} if self.group is None else {point.name.lower(): point for point in plugins(self.group)}

    def _unknown(self, name: str) -> str:
        """What is said of an unknown name: near misses first, all names if they are few, else where they are."""
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
    """The entry points of a group, from all installed packages; none is loaded."""
    return list(metadata.entry_points(group=group))


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
        raise ValueError(f"{kind} must be written name or name(option=value, ...), got {spec!r}") from None
