"""Random mutants of the source: does a test fail when one sign, index, comparison or constant changes?

    python tests/mutants.py --count 150 --seed 0               # the whole package
    python tests/mutants.py --only diffsolve/parallel --count 20 --tests tests/parallel
    python tests/mutants.py --out mutants.jsonl                # go on with an interrupted run
    python tests/mutants.py --out mutants.jsonl --again        # its survivors, once more

A mutant is the package with one small edit of the text of one file. It dies when a test fails, or takes ten times as
long as it should; a survivor is a line that the tests run and do not check. Survivors that mean the same as the source
are listed with the reason in `equivalent_mutants.txt`, where they are not counted. The exit status is 1 if any is left.

Which tests run a line, and how long each test takes, is measured once with coverage and kept in `.mutants/`; test files
that are new or changed are measured again. Of the tests that run the mutated line the cheapest of each function come
first, then the second cheapest, and so on, within `--cap` seconds. The choice knows nothing of the tests' names.

The process that starts the mutants has the heavy libraries imported, but not the package: each mutant is a fork of it
that imports an overlay, a copy of the package with the edit. Subprocesses of tests find the overlay by PYTHONPATH.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from mutations import Mutant, equivalents, sample

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "numpy", "scipy", "torch", "torch._dynamo", "triton", "torchdiffeq", "torchsde", "hypothesis", "sklearn",
    "diffusers", "typer", "safetensors.torch", "flow_matching.path", "PIL.Image",
)  # fmt: skip
"""What the tests import; a missing one is passed over."""

# Which tests to run -----------------------------------------------------------------------------------------------


def inside_functions(source: bytes) -> set[int]:
    """The lines that run when a function is called, not when the module is imported."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines.update(range(node.body[0].lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.Lambda):
            lines.update(range(node.lineno, (node.end_lineno or 0) + 1))
    return lines


class CoverageMap:
    """Which tests run a line, and the seconds of each; in a folder, with the sources as they were."""

    def __init__(self, folder: Path, root: Path, package: str) -> None:
        self.folder, self.root, self.package = folder, root, package
        self.state = folder / "tests.json"
        old = json.loads(self.state.read_text()) if self.state.exists() else {"files": {}, "seconds": {}}
        self.files: dict[str, str] = old["files"]
        self.seconds: dict[str, float] = old["seconds"]

    def update(self, tests: Sequence[str], jobs: int) -> None:
        """Measure the test files that are new or changed, on the sources as they were first; all of them if many of
        the sources have changed since."""
        if self.changed() > 0.1:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.files, self.seconds = {}, {}
            copy_package(self.root / self.package, self.folder / self.package)
        hashes = {file: digest((self.root / file).read_bytes()) for file in test_files(self.root, tests)}
        stale = [file for file, value in hashes.items() if self.files.get(file) != value]
        if not stale:
            return
        print(f"measuring {len(stale)} test files", flush=True)
        began, timed = time.perf_counter(), self.folder / "seconds.json"
        timed.unlink(missing_ok=True)
        os.waitpid(start(lambda: self._measure(stale, jobs, timed)), 0)
        if not timed.exists():
            raise SystemExit(f"the tests could not be measured: see {self.folder / 'log'}")
        outcomes = json.loads(timed.read_text())
        self.seconds = {t: s for t, s in self.seconds.items() if t.split("::")[0] not in stale} | outcomes["passed"]
        self.files |= {file: hashes[file] for file in stale}
        self.state.write_text(json.dumps({"files": self.files, "seconds": self.seconds}))
        failed = outcomes["failed"]
        print(f"{len(outcomes['passed'])} tests pass, {len(failed)} do not {failed[:3] or ''}, ", end="")
        print(f"{time.perf_counter() - began:.0f} s", flush=True)

    def changed(self) -> float:
        """The share of the package's files that are not as they were."""
        files = sources(self.root, self.package)
        old = sources(self.folder, self.package)
        return sum(old.get(file) != text for file, text in files.items()) / len(files)

    def _measure(self, files: Sequence[str], jobs: int, timed: Path) -> None:
        import pytest

        os.environ["COVERAGE_FILE"] = str(self.folder / "coverage")
        prepare(self.folder, self.folder / "log")
        recorder = Recorder()
        options = [f"--cov={self.folder / self.package}", "--cov-context=test", "--cov-report=", "--cov-append"]
        options += ["-n", str(jobs)] if jobs > 1 else []
        pytest.main([*options, "-q", "--tb=short", "-p", "no:cacheprovider", *files], plugins=[recorder])
        timed.write_text(json.dumps(recorder.outcomes()))

    @lru_cache  # noqa: B019 (one map a process)
    def tests_by_line(self, file: str) -> dict[int, set[str]]:
        """The tests that run each line of the file as it was, inside functions."""
        from coverage import CoverageData

        inside = inside_functions((self.folder / file).read_bytes())
        data = CoverageData(str(self.folder / "coverage"))
        data.read()
        lines: dict[int, set[str]] = defaultdict(set)
        for line, contexts in data.contexts_by_lineno(str(self.folder / file)).items():
            if line in inside:
                lines[line] = {c.rsplit("|", 1)[0] for c in contexts if c} & self.seconds.keys()
        return lines

    def old_line(self, file: str, line: int) -> int:
        """Where a line of the file was when it was measured, or the line that it came after."""
        old, new = ((f / file).read_text().splitlines() for f in (self.folder, self.root))
        if old == new:
            return line
        last = 1
        for a, b, size in difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
            if b <= line - 1 < b + size:
                return a + line - b
            last = a + size if b + size < line else last
        return last

    def choose(self, mutant: Mutant, cap: float, tests: Sequence[str]) -> list[str]:
        """Tests for a mutant, in the order in which they are to be run."""
        names: set[str] = set()
        folder = Path(mutant.file).parent
        mirrored = f"tests/{folder.relative_to(self.package).as_posix()}/"
        if (self.folder / mutant.file).exists():
            by_line = self.tests_by_line(mutant.file)
            for first, last in (*mutant.lines, (1, 10**6)):
                first, last = self.old_line(mutant.file, first), self.old_line(mutant.file, last)
                names = set().union(*(found for line, found in by_line.items() if first <= line <= last))
                names = {name for name in names if name.startswith(tuple(tests))}
                if names:
                    break
        if not names:
            names = {name for name in self.seconds if name.startswith((mirrored, mirrored[:-1] + ".py"))}
        functions: dict[str, list[str]] = defaultdict(list)
        for name in sorted(names, key=lambda name: (self.seconds[name], name)):
            functions[name.split("[")[0]].append(name)
        order = sorted(
            (rank, not name.startswith(mirrored), self.seconds[name], name)
            for cases in functions.values()
            for rank, name in enumerate(cases)
        )
        chosen, total = [], 0.0
        for *_, seconds, name in order:
            if total + seconds <= cap or not chosen:
                chosen.append(name)
                total += seconds
        return chosen


class Recorder:
    """A plugin: the seconds of the tests that passed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bad: set[str] = set()  # failed, skipped, expected to fail
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.bad.add(report.nodeid)
        if report.failed:
            self.failed.add(report.nodeid)

    def outcomes(self) -> dict[str, Any]:
        passed = {name: round(value, 4) for name, value in self.seconds.items() if name not in self.bad}
        return {"passed": passed, "failed": sorted(self.failed)}


# Running them -----------------------------------------------------------------------------------------------------


class Chosen:
    """A plugin: runs the chosen tests in their order, each within its time, and remembers the first that fails."""

    def __init__(self, seconds: Mapping[str, float]) -> None:
        self.seconds, self.killer, self.count = seconds, "", 0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        places = {name: i for i, name in enumerate(self.seconds)}
        items[:] = sorted((i for i in items if i.nodeid in places), key=lambda item: places[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        def late(*_: object) -> None:
            raise TimeoutError(nodeid)

        signal.signal(signal.SIGALRM, late)
        signal.alarm(int(15 + 10 * self.seconds[nodeid]))
        self.count += 1

    def pytest_runtest_logfinish(self) -> None:
        signal.alarm(0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.killer:
            self.killer = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.killer:
            self.killer = f"collection of {report.nodeid}"


def prepare(path: Path, log: Path) -> None:
    """Make this process run tests: the package from `path`, what is printed into a file, no bytecode."""
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT / "tests")]), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(path))
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)


def start(body: Callable[[], None]) -> int:
    """The process id of a fork, the head of a group of its own, that runs `body`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setsid()
            body()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


class Overlay:
    """A copy of the package in which one file at a time is mutated, for one job."""

    def __init__(self, folder: Path, root: Path, package: str) -> None:
        self.folder, self.root, self.package = folder, root, package
        copy_package(root / package, folder / package)

    def judge(self, mutant: Mutant, tests: Mapping[str, float]) -> Iterator[dict[str, Any] | None]:
        """Yields None until the verdict: status, by which test, how many were run, seconds."""
        file, verdict = self.folder / mutant.file, self.folder / "verdict.json"
        source = (self.root / mutant.file).read_bytes()
        file.write_bytes(mutant.apply(source))
        verdict.unlink(missing_ok=True)
        began = time.monotonic()
        limit = 60 + 5 * sum(tests.values())
        pid = start(lambda: self._run(tests, verdict))
        try:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() - began > limit:
                    break
                yield None
            result = (
                json.loads(verdict.read_text()) if verdict.exists() else {"status": "killed", "by": "time or crash"}
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            file.write_bytes(source)
        yield result | {"seconds": round(time.monotonic() - began, 1)}

    def _run(self, tests: Mapping[str, float], verdict: Path) -> None:
        import pytest

        prepare(self.folder, self.folder / "log")
        memory = 16 << 30  # a mutant may ask for any amount
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        plugin = Chosen(tests)
        files = list(dict.fromkeys(name.split("::")[0] for name in tests))
        code = pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *files], plugins=[plugin])
        where = str(getattr(sys.modules.get(self.package), "__file__", self.folder))
        if code == 0 and not where.startswith(str(self.folder)):
            result = {"status": "error", "by": f"the package was imported from {where}"}
        else:
            result = {"status": "survived" if code in (0, 5) else "killed", "by": plugin.killer or "import"}
        verdict.write_text(json.dumps(result | {"tests": plugin.count}))


# The command ------------------------------------------------------------------------------------------------------


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def sources(root: Path, package: str) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted((root / package).rglob("*.py"))}


def test_files(root: Path, tests: Iterable[str]) -> list[str]:
    paths = {p for t in tests for p in ([root / t] if t.endswith(".py") else (root / t).rglob("test_*.py"))}
    return sorted(p.relative_to(root).as_posix() for p in paths)


def copy_package(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def judged(out: Path, again: bool) -> dict[str, dict[str, Any]]:
    """The verdicts in a file, by mutant; without the survivors if they are to be tried again."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    rows = list({row["id"]: row for row in rows}.values())
    return {row["id"]: row for row in rows if row["status"] == "killed" or (row["status"] == "survived" and not again)}


def identity(mutant: Mutant, source: bytes) -> str:
    return digest(json.dumps([asdict(mutant), digest(source)]).encode())


def run_all(
    todo: Sequence[Mutant], files: Mapping[str, bytes], chart: CoverageMap, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The verdict of each mutant, as it comes, `jobs` at a time."""
    waiting = list(reversed(todo))
    with tempfile.TemporaryDirectory() as scratch:
        free = [Overlay(Path(scratch) / str(j), options.root, options.package) for j in range(options.jobs)]
        running: list[tuple[Mutant, Overlay, Iterator[dict[str, Any] | None]]] = []
        while waiting or running:
            while waiting and free:
                mutant, overlay = waiting.pop(), free.pop()
                tests = {name: chart.seconds[name] for name in chart.choose(mutant, options.cap, options.tests)}
                running.append((mutant, overlay, overlay.judge(mutant, tests)))
            for job in list(running):
                mutant, overlay, verdicts = job
                verdict = next(verdicts)
                if verdict is not None:
                    next(verdicts, None)
                    running.remove(job)
                    free.append(overlay)
                    source = files[mutant.file]
                    before, after = mutant.texts(source)
                    yield {
                        "id": identity(mutant, source), "file": mutant.file, "line": mutant.line(source),
                        "kind": mutant.kind, "before": before, "after": after, **verdict,
                    }  # fmt: skip
            time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other mutants")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PATH", help="files or folders to mutate")
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="test files or folders to use")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--cap", type=float, default=60.0, help="seconds of tests for each mutant")
    parser.add_argument("--out", type=Path, help="JSON lines; mutants that are in it are not run again")
    parser.add_argument("--again", action="store_true", help="run the survivors in --out again")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of package and tests")
    parser.add_argument("--package", default="diffsolve")
    options = parser.parse_args(argv)
    root, out = options.root.resolve(), options.out and options.out.resolve()
    options.root = root
    os.chdir(root)
    os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    for name in HEAVY if options.package == "diffsolve" else ():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert options.package not in sys.modules
    files = {f: text for f, text in sources(root, options.package).items() if f.startswith(tuple(options.only))}
    wanted = sample(files, options.count, options.seed)
    chart = CoverageMap(root / ".mutants", root, options.package)
    chart.update(options.tests, options.jobs)

    rows = judged(out, options.again) if out else {}
    todo = [m for m in wanted if identity(m, files[m.file]) not in rows]
    known = root / "tests/equivalent_mutants.txt"
    same = equivalents(known.read_text()) if known.exists() else set()
    results = [rows[key] for m in wanted if (key := identity(m, files[m.file])) in rows]
    for i, row in enumerate(run_all(todo, files, chart, options), 1):
        results.append(row)
        if out:
            with out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        place = f"{row['file']}:{row['line']}"
        by = f"by {row['by']}" if row["status"] == "killed" else f"{row.get('tests', 0)} tests"
        print(f"[{i}/{len(todo)}] {row['status']:8} {row['seconds']:5.1f} s  {place}  {row['after']}  {by}", flush=True)

    alive = [row for row in results if row["status"] != "killed"]
    left = [row for row in alive if (row["file"], row["before"], row["after"]) not in same]
    print(
        f"\n{len(results)} mutants, {len(results) - len(alive)} killed, {len(alive) - len(left)} equivalent, ", end=""
    )
    print(f"{len(left)} survivors; {time.perf_counter() - began:.0f} s")
    for row in left:
        print(f"\n{row['file']}:{row['line']} ({row['status']})\n- {row['before']}\n+ {row['after']}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
