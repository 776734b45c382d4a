"""Features by name: `"pixels"`, `"inception"`, `"dinov2(size='base')"`, or one's own, `"package.module:factory"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from diffsolve.common.checks import required
from diffsolve.common.imports import named_object
from diffsolve.common.registry import Registry
from diffsolve.metrics.extractors import clip, dinov2, inception
from diffsolve.metrics.statistics import Features, pixels

__all__ = ["named", "names", "register"]

registry: Registry[Features] = Registry(
    "features",
    Callable,
    {"pixels": lambda: pixels, "inception": inception, "dinov2": dinov2, "clip": clip},
    group="diffsolve.features",
)
register = registry.register


def named(features: str | Features) -> Features:
    """The features of that name, or those that "package.module:factory" makes; a function is returned unchanged.

    Raises:
        ValueError: if the name is unknown, or its weights are not there.
        TypeError: if the factory makes no callable.
    """
    if isinstance(features, str) and ":" in features and "(" not in features:
        made: Any = named_object("features", features)()
        required(callable(made), f"what {features!r} makes", made, "a callable, images (B, ...) -> (B, F)", TypeError)
        return cast(Features, made)
    return registry.resolve(features)


def names() -> list[str]:
    """The names that `named` accepts."""
    return registry.names()
