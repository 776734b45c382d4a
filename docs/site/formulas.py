"""Formulas of docstrings, written as in reStructuredText, as MathML, which browsers show without a script."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math::(?: (.*))?\n((?:\n|\1 +.*\n?)*)", re.M)
PARTS = re.compile(r"^( *)\| ", re.M)  # the lines of reference lists


def shown(source: str, display: str) -> str:
    return convert(re.sub(r"\\(begin|end)\{aligned?\}|&", "", source), display=display).replace("\n", " ")


def block(found: re.Match[str]) -> str:
    body = "\n".join(part for part in (found[2], textwrap.dedent(found[3]).strip()) if part)
    lines = [line for line in re.split(r"\\\\|\n\n", body) if line.strip()]
    return f"{found[1]}\n" + "".join(f"{found[1]}{shown(line, 'block')}\n\n" for line in lines)


def rewritten(text: str) -> str:
    """The docstring with formulas as MathML and lines of references as a list."""
    text = BLOCK.sub(block, text if text.endswith("\n") else text + "\n")
    text = INLINE.sub(lambda found: shown(found[1], "inline"), text)
    return PARTS.sub(r"\1- ", text)


class Formulas(griffe.Extension):
    """Rewrite each docstring once."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


__all__ = ["Formulas"]
