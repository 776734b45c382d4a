"""How the package is laid out: imports run one way, files and functions stay short, and no test leans on a test."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "diffsolve"
ORDER = [
    *("common", "native", "paths", "noise", "kernels", "tableau", "grids", "guidance", "models", "conditioning"),
    *("solvers", "reference", "execute", "integrations", "dynamics", "adaptive", "parallel", "likelihood", "gradients"),
    *("api", "training", "distill", "tuning", "metrics", "serving", "cli", "__main__"),
]
"""The folders from the bottom to the top: each imports from those before it."""

TREES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        file.read_text()
    )
    for file in PACKAGE.rglob("*.py")
}
"""Module -> its syntax tree."""


def imports(module: str) -> set[str]:
    """Modules of the package that this one imports anywhere: in functions and under TYPE_CHECKING too.

    `from diffsolve.execute import graph` is of the module diffsolve.execute.graph, where there is one.
    """
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in TREES else node.module for name in inner}
    return {name for name in found if name in TREES}


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_folder_has_its_place():
    assert {folder(module) for module in TREES} - {""} == set(ORDER)


def test_imports_run_one_way():
    """From a folder to those below it. The package itself, the public face, is for the command line alone."""
    place = {"": ORDER.index("cli"), **{name: i for i, name in enumerate(ORDER)}}
    up = [(m, other) for m in TREES if folder(m) for other in imports(m) if place[folder(other)] > place[folder(m)]]
    assert not up


def test_no_circles_within_a_folder():
    """A package's own `__init__` collects what its modules define: to import through it would close a circle."""
    graph = {m: {other for other in imports(m) if folder(other) == folder(m)} - {m} for m in TREES if folder(m)}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_files_and_functions_are_short():
    files = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: count for name, count in files.items() if count > 400} == {}
    functions = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: count for name, count in functions.items() if count > 80} == {}


def test_no_test_imports_a_test():
    """What tests share is in tests/support."""
    tests = {file.stem for file in TESTS.rglob("test_*.py")}
    for file in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not tests & {part for name in names for part in name.split(".")}, file
    assert len(tests) == len([*TESTS.rglob("test_*.py")])  # pytest imports them by their bare names
