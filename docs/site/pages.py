"""Pages that are made of other files: API, table of solvers, gallery, what stands beside docs/, llms.txt."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import mkdocs_gen_files as made

import diffsolve as ds

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "solvers", "grids", "paths", "models", "conditioning", "noise", "likelihood", "metrics", "serving", "training",
    "distill", "reference", "integrations",
)  # fmt: skip
BESIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
          "benchmarks/README.md": "benchmarks.md",
          "examples/README.md": "examples.md"}  # fmt: skip


def page(name: str, text: str) -> None:
    with made.open(name, "w") as stream:
        stream.write(text)


def value_of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def home(module: str, name: str) -> str:
    """The full name under which an object is defined, for a class or a function; else where it is public."""
    value = value_of(module, name)
    defined = getattr(value, "__module__", None)
    known = isinstance(defined, str) and defined.startswith("diffsolve") and hasattr(value, "__qualname__")
    return f"{defined}.{value.__qualname__}" if known else f"{module}.{name}"


def api() -> None:
    """A page for `diffsolve` itself and one for each public package; every public name has its entry."""
    seen = {home("diffsolve", name) for name in ds.__all__}
    top = [name for name in ds.__all__ if name not in PACKAGES and name != "__version__"]
    lines = ["# The API\n", "`import diffsolve as ds`. What `ds` itself has is [here](ds.md); its packages:\n"]
    body = ["# ds\n", "What `import diffsolve as ds` has itself.\n"]
    body += [f"\n::: {home('diffsolve', name)}\n" for name in top]
    page("api/ds.md", "\n".join(body))
    for package in PACKAGES:
        module = f"diffsolve.{package}"
        about = (import_module(module).__doc__ or "").strip().partition("\n")[0]
        lines.append(f"- [`diffsolve.{package}`]({package}.md) · {about}")
        names = [name for name in getattr(import_module(module), "__all__", ()) if home(module, name) not in seen]
        text = [f"# diffsolve.{package}\n", f"{about}\n"]
        text += [
            f"\n::: {home(module, name)}\n" for name in names if not isinstance(value_of(module, name), ModuleType)
        ]
        page(f"api/{package}.md", "\n".join(text))
    page("api/index.md", "\n".join(lines) + "\n")


def solver_table() -> None:
    """All solvers in one table, with a field to find one; the rows are those of the registry."""
    rows = []
    for name in ds.solvers.names():
        solver = ds.solvers.named(name)
        plan = ds.plan("edm", solver, steps=12)
        kind = "SDE" if plan.stochastic else "ODE"
        about = (type(solver).__doc__ or "").strip().partition("\n")[0]
        others = ", ".join(alias for alias, meant in sorted(ds.solvers.aliases().items()) if meant[0] == name)
        rows.append(f"| `{name}` | {kind} | {solver.order} | {solver.calls} | {plan.history} | {about} | {others} |")
    page("solver-table.md", "\n".join([
        "---\nhide: [toc]\n---\n\n# Find a solver\n",
        "Type to find: a name, `SDE`, another library's name. All are accepted as `solver=`, with options, as in "
        "`\"ddim(eta=0.5)\"`. `order` is the order of convergence, `calls` are network calls in a step, `history` how "
        "many outputs are kept. [Measured errors of all](solvers.md), and [which one to take](which-solver.md).\n",
        '<input type="search" class="find" aria-label="Find a solver" placeholder="dpmpp, SDE, order ..">\n',
        "| name | kind | order | calls | history | is | also called |", "|---|---|---|---|---|---|---|", *rows, "",
    ]))  # fmt: skip


def gallery() -> None:
    """Each script of examples/gallery, its picture and its first sentence."""
    parts = [
        "# Gallery\n",
        "Each picture is made by the script under it, with the networks that come with the package.\n",
    ]
    for script in sorted((ROOT / "examples" / "gallery").glob("*.py")):
        if script.stem in ("run", "style"):
            continue
        source = script.read_text()
        about = ast.get_docstring(ast.parse(source)) or ""
        parts += [f"\n## {script.stem.capitalize()}\n", f"{about}\n", f"![{about}](gallery/{script.stem}.png)\n"]
        code = source.split('"""', 2)[2].strip()
        parts += [
            '??? example "the script"\n',
            *(f"    {line}".rstrip() for line in ("```python", *code.splitlines(), "```")),
        ]
    page("gallery.md", "\n".join(parts) + "\n")


def beside() -> None:
    """What stands beside docs/, with links that fit."""
    for source, name in BESIDE.items():
        text = (ROOT / source).read_text()
        text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
        for other, here in BESIDE.items():
            text = text.replace(f"]({other})", f"]({here})").replace(f"](../{other})", f"]({here})")
        text = re.sub(r"\[(\w+\.py)\]\(\1\)", r"`\1`", text)  # scripts are no pages
        page(name, text.replace("](results/", "](measured/"))
    for result in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        text = re.sub(r"\]\(\.\./\.\./docs/", "](../", result.read_text())
        page(f"measured/{result.name}", text)
    for picture in (ROOT / "benchmarks" / "results").glob("*.png"):
        with made.open(f"measured/{picture.name}", "wb") as stream:
            stream.write(picture.read_bytes())


def for_machines() -> None:
    """llms.txt: what the package is, and a line for each page."""
    lines = [
        "# diffsolve\n",
        "> " + " ".join((ROOT / "README.md").read_text().split("\n\n")[1].split()) + "\n",
        "## Pages\n",
    ]
    for file in sorted((ROOT / "docs").glob("*.md")):
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
        first = next(part for part in text.split("\n\n")[1:] if part.strip() and part[0] not in "#|`!<")
        title = text.partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({file.stem}.html): {' '.join(first.split())}")
    page("llms.txt", "\n".join(lines) + "\n")


for make in (api, solver_table, gallery, beside, for_machines):
    make()
