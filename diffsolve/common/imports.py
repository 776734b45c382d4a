"""Objects by where they are: `"package.module:name"`, as entry points are written."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from diffsolve.common.checks import required

__all__ = ["named_object"]


def named_object(name: str, where: str) -> Any:
    """The object `attribute` of a module, from "package.module:attribute"; the current folder is searched too.

    Args:
        name: what the argument is called, for messages.

    Raises:
        ValueError: if it is not written so, or there is no such module or attribute.
    """
    module, colon, attribute = where.partition(":")
    written = bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))
    required(written, name, where, "written package.module:name")
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of something that the module itself imports
        raise ValueError(f"{name} must be in a module that can be imported, got {where!r}: {error}") from error
    for part in attribute.split("."):
        required(hasattr(found, part), name, where, f"the name of something in {module}")
        found = getattr(found, part)
    return found
