"""Small edits of a source: signs, operators, comparisons, constants, swapped operands; each gives a mutant."""

from __future__ import annotations

import ast
import bisect
import random
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Pow: "*", ast.Mod: "//"}
COMPARED: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">"), ast.LtE: ("<", ">"), ast.Gt: (">=", "<"), ast.GtE: (">", "<"), ast.Eq: ("!=",),
    ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
OPPOSITE = {"min": "max", "amin": "amax", "minimum": "maximum", "all": "any", "floor": "ceil"}
OPPOSITE |= {other: name for name, other in OPPOSITE.items()}
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow, ast.Mod, ast.MatMult)
"""Operations whose operands do not commute."""
Lines = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """The bytes start:end of a file replaced by `new`."""

    file: str
    start: int
    end: int
    new: str
    kind: str
    lines: tuple[Lines, ...]
    """Where a test must pass to notice: ranges of lines, the narrowest first."""

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def texts(self, source: bytes) -> tuple[str, str]:
        """The lines touched, before and after, each on one line."""
        first = source.rfind(b"\n", 0, self.start) + 1
        last = source.find(b"\n", self.end) % (len(source) + 1)
        mutated = source[first : self.start] + self.new.encode() + source[self.end : last]
        before, after = (" ".join(text.decode().split()) for text in (source[first:last], mutated))
        return before, after

    def line(self, source: bytes) -> int:
        return source.count(b"\n", 0, self.start) + 1


class Edits(ast.NodeVisitor):
    """Collects the mutants of one file; docstrings, annotations, messages and decorators are left alone."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source, self.mutants = file, source, list[Mutant]()
        self.starts = [0, *(i + 1 for i, byte in enumerate(source) if byte == 10)]
        self.places: tuple[Lines, ...] | None = None  # of the import-time code being visited; None inside a function
        self.statement: Lines = (1, len(self.starts))
        lines = source.splitlines(keepends=True)
        self.tokens: list[tuple[int, int]] = []
        for token in tokenize.tokenize(iter([*lines, b""]).__next__):
            if token.type in (tokenize.OP, tokenize.NAME) and token.string not in "()":
                row, column = token.start
                at = self.starts[row - 1] + len(lines[row - 1].decode()[:column].encode())
                self.tokens.append((at, at + len(token.string.encode())))
        self.places = (self.statement,)
        self.visit(ast.parse(source))

    # Where

    def span(self, node: Any) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def between(self, left: ast.AST, right: ast.AST) -> tuple[int, int]:
        """The operator between two operands, which parentheses and comments may surround."""
        low, high = ((at,) for at in (self.span(left)[1], self.span(right)[0]))
        tokens = self.tokens[bisect.bisect_left(self.tokens, low) : bisect.bisect_left(self.tokens, high)]
        return tokens[0][0], tokens[-1][1]

    def add(self, kind: str, node: Any, span: tuple[int, int], *replacements: str) -> None:
        lines = ((node.lineno, node.end_lineno), self.statement) if self.places is None else self.places
        self.mutants += [Mutant(self.file, *span, new, kind, lines) for new in replacements]

    # What is left alone

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if any("overload" in ast.unparse(d) for d in node.decorator_list):
            return
        outer = self.places
        if outer is not None:
            self.places = ((node.body[0].lineno, node.end_lineno or node.lineno), *outer)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self.places = None
        for child in node.body:
            self.visit(child)
        self.places = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = self.places
        if outer is not None:
            self.places = ((node.lineno, node.end_lineno or node.lineno), *outer)
        for child in node.body:
            self.visit(child)
        self.places = outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.statement = (node.lineno, node.end_lineno or node.lineno)
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(t, ast.Name) and t.id.startswith("__") for t in node.targets):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "__name__ == '__main__'"):
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            self.statement = (node.lineno, node.end_lineno or node.lineno)
        elif isinstance(node, ast.If | ast.While):
            self.statement = (node.test.lineno, node.test.end_lineno or node.test.lineno)
        super().generic_visit(node)

    # What is changed

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self.generic_visit(node)
        if any(
            isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", 0), str) for n in (node.left, node.right)
        ):
            return
        if type(node.op) in BINARY:
            self.add("operator", node, self.between(node.left, node.right), BINARY[type(node.op)])
        if isinstance(node.op, ORDERED):
            left, right = (self.source[slice(*self.span(n))].decode() for n in (node.left, node.right))
            operator = self.source[slice(*self.between(node.left, node.right))].decode()
            self.add("swapped", node, self.span(node), f"({right}) {operator} ({left})")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if type(node.op) in BINARY:
            self.add("operator", node, self.between(node.target, node.value), BINARY[type(node.op)] + "=")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.generic_visit(node)
        sign, new = {ast.USub: ("-", "+"), ast.UAdd: ("+", "-"), ast.Not: ("not", ""), ast.Invert: ("~", "")}[
            type(node.op)
        ]
        start = self.span(node)[0]
        self.add("unary", node, (start, start + len(sign)), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.generic_visit(node)
        for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
            self.add("comparison", node, self.between(left, right), *COMPARED[type(operator)])

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.generic_visit(node)
        other = "or" if isinstance(node.op, ast.And) else "and"
        for left, right in pairwise(node.values):
            self.add("logic", node, self.between(left, right), other)

    def visit_Constant(self, node: ast.Constant) -> None:
        value, span = node.value, self.span(node)
        if isinstance(value, bool):
            self.add("constant", node, span, str(not value))
        elif isinstance(value, int):
            self.add("constant", node, span, *(str(v) if v >= 0 else f"({v})" for v in (value + 1, value - 1)))
        elif isinstance(value, float):
            self.add("constant", node, span, repr(value * 1.5 if value else 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in ("warn", "TypeVar", "cast"):
            return
        self.generic_visit(node)
        if name in OPPOSITE:
            end = self.span(node.func)[1]
            self.add("name", node, (end - len(name), end), OPPOSITE[name])
        for keyword in node.keywords if name.startswith("clamp") else []:
            if keyword.arg in OPPOSITE:
                start = self.span(keyword)[0]
                self.add("name", node, (start, start + len(keyword.arg)), OPPOSITE[keyword.arg])


@lru_cache
def _program(source: bytes) -> str:
    return ast.dump(ast.parse(source))


def changes(mutant: Mutant, source: bytes) -> bool:
    """Whether a mutant compiles and is another program than the source."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != _program(source)
    except SyntaxError:
        return False


def sample(files: Mapping[str, bytes], count: int, seed: int) -> list[Mutant]:
    """`count` mutants, the same for the same seed and sources, no two of one line."""
    pool = [mutant for file, source in sorted(files.items()) for mutant in Edits(file, source).mutants]
    random.Random(seed).shuffle(pool)
    chosen: dict[tuple[str, int], Mutant] = {}
    for mutant in pool:
        source = files[mutant.file]
        place = (mutant.file, mutant.line(source))
        if len(chosen) < count and place not in chosen and changes(mutant, source):
            chosen[place] = mutant
    return list(chosen.values())


def equivalents(text: str) -> set[tuple[str, str, str]]:
    """(file, before, after) of each entry "file, - before, + after, why"; # begins a comment."""
    entries = set()
    file = before = ""
    for line in text.splitlines():
        if line.startswith("- "):
            before = " ".join(line[2:].split())
        elif line.startswith("+ "):
            entries.add((file, before, " ".join(line[2:].split())))
        elif line.endswith(".py"):
            file = line.strip()
    return entries
