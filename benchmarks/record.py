"""One record format for all benchmarks: JSON lines in `results/NAME.jsonl`, and the tables made of them.

A record is one number (or word) that was measured:

    {"bench": "tune", "table": "mixtures", "case": {"path": "ve", "NFE": 4}, "metric": "auto", "value": 0.068,
     "unit": "", "format": ".1e", "commit": "03f4a25", "torch": "2.13.0", "device": "cpu", "cpu": "..", "date": ".."}

A table has a row for each case and a column for each metric; `format` says how a value is shown. A commit that ends in
"+" had changes that were not committed. A later record of the same table, case and metric takes the place of an earlier
one. The name of the host is not recorded.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
Column = str | tuple[str, str]
"""How a value is shown, as in `format(value, ..)`; with its unit."""


@cache
def stamp() -> dict[str, str]:
    """What a number depends on besides the code: commit, torch, device, processor, date."""

    def git(*command: str) -> str:
        try:
            run = subprocess.run(["git", *command], cwd=RESULTS, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return run.stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no", "--", "../../diffsolve", "..") else ""
    return {
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown") + changed,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": processor(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Recorder:
    """The records of a benchmark, written to its file as they come.

    Args:
        bench: the benchmark's name.
        file: where to write; `results/NAME.jsonl` if not given, and None for nowhere (a quick look).
        resume: keep the records that the file has, which `Table.value` then knows; otherwise begin anew.
    """

    def __init__(self, bench: str, file: str | Path | None = "", *, resume: bool = False) -> None:
        self.bench = bench
        self.file = RESULTS / f"{bench}.jsonl" if file == "" else None if file is None else Path(file)
        self.records: list[dict[str, Any]] = read(self.file) if resume and self.file else []
        if self.file is not None and not resume:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text("")

    def table(self, title: str, labels: Sequence[str], columns: Mapping[str, Column]) -> Table:
        """A table of this benchmark; labels name what tells its rows apart."""
        return Table(self, title, labels, columns)

    def add(self, table: str, case: Mapping[str, Any], metric: str, value: Any, unit: str = "", form: str = "") -> None:
        """Record one value, in the place of an older one of the same table, case and metric."""
        about = {"bench": self.bench, "table": table, "case": dict(case), "metric": metric, "value": value}
        older = [r for r in self.records if (r["table"], r["case"], r["metric"]) != (table, dict(case), metric)]
        measured_again, self.records = len(older) < len(self.records), older
        self.records.append(about | {"unit": unit, "format": form} | stamp())
        if self.file is None:
            return
        if measured_again:
            whole = self.file.with_suffix(".part")
            whole.write_text("".join(json.dumps(record) + "\n" for record in self.records))
            whole.replace(self.file)
            return
        with self.file.open("a") as stream:
            stream.write(json.dumps(self.records[-1]) + "\n")


class Table:
    """Rows of one table: recorded, and printed as Markdown when they come if `live`."""

    def __init__(self, recorder: Recorder, title: str, labels: Sequence[str], columns: Mapping[str, Column]) -> None:
        self.recorder, self.title, self.labels = recorder, title, list(labels)
        self.columns = {name: (c, "") if isinstance(c, str) else c for name, c in columns.items()}
        self._begun = False

    def add(self, case: Sequence[Any], values: Sequence[Any], *, live: bool = True) -> None:
        """A row: the values of its labels and of its columns; None where there is none."""
        labelled = dict(zip(self.labels, case, strict=True))
        for (metric, (form, unit)), value in zip(self.columns.items(), values, strict=True):
            self.recorder.add(self.title, labelled, metric, value, unit, form)
        if live:
            lines = markdown(self.recorder.records[-len(self.columns) :])
            print("\n".join(lines[2:] if self._begun else lines), flush=True)
            self._begun = True

    def put(self, case: Sequence[Any], metric: str, value: Any) -> None:
        """One value of a row, where they do not come together."""
        form, unit = self.columns[metric]
        self.recorder.add(self.title, dict(zip(self.labels, case, strict=True)), metric, value, unit, form)
        print(f"{self.title}, {' '.join(map(str, case))}, {metric}: {shown(self.recorder.records[-1])}", flush=True)

    def value(self, case: Sequence[Any], metric: str) -> Any:
        """What is recorded, or None."""
        labelled = dict(zip(self.labels, case, strict=True))
        for record in reversed(self.recorder.records):
            if (record["table"], record["case"], record["metric"]) == (self.title, labelled, metric):
                return record["value"]
        return None

    def markdown(self) -> list[str]:
        """The lines of the table."""
        return markdown([record for record in self.recorder.records if record["table"] == self.title])


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; a last line that was cut off is left out."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def shown(record: Mapping[str, Any]) -> str:
    """A value as the table has it."""
    value = record["value"]
    return "" if value is None else format(value, record["format"]) if isinstance(value, int | float) else str(value)


def markdown(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The lines of one table, in the order in which rows and columns came first."""
    rows: dict[str, dict[str, str]] = {}
    heads: dict[str, None] = {}
    cases: dict[str, Mapping[str, Any]] = {}
    for record in records:
        key = json.dumps(record["case"])
        cases[key] = record["case"]
        head = f"{record['metric']}, {record['unit']}" if record["unit"] else record["metric"]
        heads.setdefault(head)
        rows.setdefault(key, {})[head] = shown(record)
    labels = list(dict.fromkeys(label for case in cases.values() for label in case))
    lines = [[*labels, *heads], ["---"] * (len(labels) + len(heads))]
    lines += [[*(str(cases[k].get(label, "")) for label in labels), *(row.get(h, "") for h in heads)]
              for k, row in rows.items()]  # fmt: skip
    return ["| " + " | ".join(line) + " |" for line in lines]


def stamped(records: Sequence[Mapping[str, Any]]) -> str:
    """Where the records come from, in a line."""
    sets = {key: dict.fromkeys(r[key] for r in records) for key in ("commit", "torch", "device", "cpu", "date")}
    return "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in sets.items())


def render(bench: str, records: Sequence[Mapping[str, Any]]) -> str:
    """All tables of a benchmark, with their stamp."""
    lines = [f"# {bench}", "", stamped(records), ""]
    for title in dict.fromkeys(r["table"] for r in records):
        lines += [f"## {title}", "", *markdown([r for r in records if r["table"] == title]), ""]
    return "\n".join(lines)
