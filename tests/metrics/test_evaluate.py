"""Bits per dimension over a data set from the command line, resumed."""

import json
import re
import statistics

import pytest

typer = pytest.importorskip("typer")
pytest.importorskip("sklearn")
from typer.testing import CliRunner  # noqa: E402

from diffsolve.cli.app import app  # noqa: E402


def run(out, *options):
    arguments = [
        "logprob",
        "--out",
        str(out),
        "--batch",
        "2",
        "--tol",
        "1e-2",
        "--trace",
        "hutchinson(probes=2)",
        *options,
    ]
    return CliRunner().invoke(app, arguments)


@pytest.mark.slow
def test_it_goes_on_where_it_was(tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    result = run(whole, "--num", "4")
    assert result.exit_code == 0, result.output
    assert "samples  4" in result.output
    assert "per dimension" in result.output
    entries = [json.loads(line) for line in whole.read_text().splitlines()[1:]]
    assert [entry["index"] for entry in entries] == list(range(4))
    assert all(0.5 < entry["bits_per_dim"] < 4 and entry["stderr"] > 0 for entry in entries)
    bits = [entry["bits_per_dim"] for entry in entries]
    shown = [float(number) for number in re.findall(r"\d+\.\d+", result.output.partition("per dimension")[0])]
    assert shown[-2:] == pytest.approx([statistics.mean(bits), statistics.stdev(bits) / 2], abs=6e-4)
    run(part, "--num", "2")
    text = part.read_text()
    part.write_text(text + '{"index": 2, "bits')  # a line cut short
    run(part, "--num", "4")
    assert part.read_text().startswith(text)
    again = [json.loads(line)["bits_per_dim"] for line in part.read_text().splitlines()[1:]]
    assert again == pytest.approx([entry["bits_per_dim"] for entry in entries], abs=1e-5)
    refused = run(part, "--num", "4", "--seed", "1")
    assert refused.exit_code == 2
    assert "other settings" in " ".join(refused.output.split())
    assert run(tmp_path / "x.txt").exit_code == 2
    assert run(tmp_path / "y.jsonl", "--data", "faces").exit_code == 2
