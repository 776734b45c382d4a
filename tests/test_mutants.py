"""The tool that makes mutants: its edits are valid and differ, and a mutant that a test would notice dies."""

import json
import subprocess
import sys
from pathlib import Path

import mutants
import mutations
import pytest

SOURCE = b'''
"""A module: 1 + 1."""

__all__ = ["middle"]
LIMIT: int = 10


def middle(a: float, b: float = 2.0, *, half: bool = False) -> float:
    """The mean of 2 numbers."""
    if not half and a <= b and b != LIMIT:
        raise ValueError(f"a must be < 2, got {a + 1}")
    return max(a, (a + b) / 2, -b)
'''


def test_edits():
    """Every kind of edit, and none in docstrings, annotations or messages; each compiles and differs."""
    found = mutations.Edits("m.py", SOURCE).mutants
    assert all(mutations.changes(m, SOURCE) for m in found)
    edits = {(SOURCE[m.start : m.end].decode(), m.new) for m in found}
    assert edits == {
        ("10", "11"), ("10", "9"), ("2.0", "3.0"), ("False", "True"), ("not", ""), ("and", "or"), ("<=", "<"),
        ("<=", ">"), ("!=", "=="), ("max", "min"), ("+", "-"), ("/", "*"), ("2", "3"), ("2", "1"), ("-", "+"),
        ("(a + b) / 2", "(2) / (a + b)"),
    }  # fmt: skip


def test_texts_of_an_edit_over_lines():
    source = b"x = (\n    1\n    + 2\n)\n"
    (mutant,) = (m for m in mutations.Edits("m.py", source).mutants if m.new == "-")
    assert mutant.texts(source) == ("+ 2", "- 2")
    assert mutant.apply(source) == b"x = (\n    1\n    - 2\n)\n"


def test_a_sample_repeats():
    files = {"m.py": SOURCE, "n.py": SOURCE}
    assert mutations.sample(files, 6, 3) == mutations.sample(files, 6, 3) != mutations.sample(files, 6, 4)


def test_a_sample_has_one_mutant_a_line():
    chosen = mutations.sample({"m.py": SOURCE}, 100, 0)
    assert len(chosen) == len({m.line(SOURCE) for m in chosen}) == 4


def test_the_edits_of_a_folder_of_the_package_can_be_made():
    files = {f: s for f, s in mutants.sources(mutants.ROOT, "diffsolve").items() if f.startswith("diffsolve/parallel/")}
    chosen = mutations.sample(files, 40, 0)
    assert len(chosen) == 40
    assert all(mutations.changes(m, files[m.file]) for m in chosen)


def test_equivalents():
    text = "# no file.py\nm.py\n- a  <  b\n+ a <= b\nThey never meet.\n"
    assert mutations.equivalents(text) == {("m.py", "a < b", "a <= b")}


@pytest.mark.slow
def test_a_noticed_mutant_dies_and_the_others_are_listed(tmp_path: Path):
    """Of a tiny package with one test: what the test checks dies, what it does not check survives, or is excused."""
    pytest.importorskip("pytest_cov")
    (tmp_path / "tests/part").mkdir(parents=True)
    (tmp_path / "tiny/part").mkdir(parents=True)
    for folder in ("tiny", "tiny/part"):
        (tmp_path / folder / "__init__.py").touch()
    functions = ("add", "a + b"), ("less", "a < b"), ("both", "a and b")
    source = "\n".join(f"def {name}(a, b):\n    return {result}\n" for name, result in functions)
    (tmp_path / "tiny/part/sums.py").write_text(source)
    test = "from tiny.part import sums\n\n\ndef test_sums():\n    assert sums.add(2, 3) == 5\n"
    test += "    sums.less(2, 3)\n    sums.both(2, 3)\n"
    (tmp_path / "tests/part/test_sums.py").write_text(test)
    excuse = "tiny/part/sums.py\n- return a and b\n+ return a or b\nNobody minds.\n"
    (tmp_path / "tests/equivalent_mutants.txt").write_text(excuse)
    command = [sys.executable, mutants.__file__, "--root", str(tmp_path), "--package", "tiny", "--count", "9"]
    out = tmp_path / "out.jsonl"
    run = subprocess.run([*command, "--jobs", "1", "--out", str(out)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1, run.stderr
    assert "3 mutants, 1 killed, 1 equivalent, 1 survivors" in run.stdout
    assert "tiny/part/sums.py:5 (survived)\n- return a < b\n" in run.stdout
    verdicts = {row["before"]: row["status"] for row in map(json.loads, out.read_text().splitlines())}
    assert verdicts == {"return a + b": "killed", "return a < b": "survived", "return a and b": "survived"}
