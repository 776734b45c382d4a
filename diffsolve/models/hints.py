"""Errors of a network that say what to change in the call, and a warning for one left in training mode."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from diffsolve.models.guidance import Guidance
from diffsolve.models.model import Model

__all__ = ["hints", "warn_training"]

INDICES = re.compile(r"argument #\d 'indices'|used as indices|index tensor|as an index")
"""What torch says of a table that is asked for a row by floats."""

_warned: WeakSet[nn.Module] = WeakSet()


@contextmanager
def hints(model: Model, cond: Mapping[str, Any], guidance: Guidance) -> Iterator[None]:
    """Name the option of a run that its network's own error asks for.

    Raises:
        TypeError: for a guided network that needs an argument without its condition, and for a table of times that got
            the time as it is told, a float.
    """
    try:
        yield
    except (TypeError, RuntimeError, IndexError) as error:
        hint = _hint(error, model, cond, guidance)
        if hint is None:
            raise
        raise TypeError(hint) from error


def _hint(error: Exception, model: Model, cond: Mapping[str, Any], guidance: Guidance) -> str | None:
    text = str(error)
    missing = [name for name in cond if name not in guidance.uncond and f"{name!r}" in text]
    if isinstance(error, TypeError) and missing and "missing" in text:
        return (
            f"uncond must be given for a network without a default, as guidance=ds.Guidance({guidance.level:g}, "
            f"uncond={{{missing[0]!r}: ...}}), got none for {missing[0]!r}: {error}"
        )
    if not INDICES.search(text):
        return None
    told = "ds.adapt(..., clock='index'), which tells whole rows, and " if model.clock != "index" else ""
    return (
        f"net must take the time as a float tensor, and its other indices as integers, got {text.splitlines()[0]!r}. A "
        f"network with a table of times wants {told}t.long() where it looks into the table"
    )


def warn_training(net: object, what: str = "net") -> None:
    """Warn, once for each network, if it has dropout or batch normalisation in training mode.

    Only what is inside an `nn.Module`, or a bound method of one, is seen.
    """
    module = net if isinstance(net, nn.Module) else getattr(net, "__self__", None)
    if not isinstance(module, nn.Module) or module in _warned:
        return
    kinds = {type(part).__name__ for part in module.modules() if part.training and _of_training(part)}
    if kinds:
        _warned.add(module)
        warnings.warn(
            f"{what} is in training mode, with {', '.join(sorted(kinds))} inside: two runs of one seed differ, and a "
            f"sample depends on its batch. Call {what}.eval() first",
            RuntimeWarning,
            stacklevel=4,
        )


def _of_training(part: nn.Module) -> bool:
    name = type(part).__name__.lower()
    shares = [getattr(part, share, 0.0) for share in ("p", "drop_prob", "dropout")]
    drops = any(isinstance(share, float) and share > 0 for share in shares)
    return "batchnorm" in name or "rrelu" in name or (drops and ("drop" in name or hasattr(part, "dropout")))
