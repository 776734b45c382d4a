"""Old public names, kept for one version: modules, names in modules, and names in classes. Each warns when used."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["deprecated_alias", "deprecated_names", "install", "renamed"]

MOVED = {
    "adaptive.adjoint": "gradients.adaptive",
    "adaptive.replay": "adaptive.retrace",
    "adjoint": "gradients.cotangents",
    "augmented": "tableau.augmented",
    "brownian": "noise.brownian",
    "dequantise": "likelihood.bits",
    "evaluate": "metrics.bits",
    "flow": "adaptive.flow",
    "frames": "tableau.frames",
    "graph": "execute.graph",
    "names": "common.registry",
    "planning": "execute.plan",
    "reversible": "api.reversible",
    "runs": "execute.results",
    "sampling": "api.sampling",
    "starting": "execute.start",
    "traces": "likelihood.traces",
    "transitions": "likelihood.transitions",
}
"""Modules of version 0.1, without "diffsolve.". (Not `diffsolve.langevin`, which would hide the
function, nor `diffsolve.guidance`, which is a package again and knows the old name.)"""


class _Moved(MetaPathFinder, Loader):
    """Imports a module by its old name: the same module object as under the new name."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        self.moved = {f"diffsolve.{old}": f"diffsolve.{new}" for old, new in moved.items()}

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self.moved:
            return None
        _warn(f"module {fullname}", self.moved[fullname], stacklevel=3)
        return ModuleSpec(fullname, self, origin=self.moved[fullname])

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self.moved[spec.name])
        spec.loader_state = module.__spec__  # the import system overwrites it next
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let the old names of modules be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved(MOVED))


def deprecated_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` for its old names: {"Old": "package.module:New"}."""

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].partition(":")
        _warn(f"{module}.{name}", f"{home}.{new}", stacklevel=3)
        return getattr(import_module(home), new)

    return __getattr__


class deprecated_alias:
    """The old name of an attribute or method, in a class: `numbers = deprecated_alias("dim")`."""

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = f"{owner.__name__}.{name}"

    def __get__(self, instance: Any, owner: type) -> Any:
        _warn(self.old, f"{owner.__name__}.{self.new}", stacklevel=3)
        return getattr(owner if instance is None else instance, self.new)


def renamed(function: str, options: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Keyword options by their new names."""
    for old in options.keys() & names.keys():
        _warn(f"option {old} of {function}", names[old], stacklevel=4)
    return {names.get(name, name): value for name, value in options.items()}


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(f"{old} is now {new}; the old name goes in the next version", DeprecationWarning, stacklevel)
