"""The commands under `torchrun`: the results of one process, and nothing finished lost with a rank."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from support.idx import clothes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"),
]

FACTORY = '''
import os, signal
import diffsolve as ds

def ring(dies_after=0):
    """The ring's network; the second rank's is killed at so many calls."""
    net, calls = ds.load("mixture-2d").net, [0]
    def network(x, t):
        calls[0] += 1
        if calls[0] == dies_after and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return net(x, t)
    network.__qualname__ = "network"
    return ds.adapt(network, "condot", "velocity")

def points():
    return ds.reference.mixture.ring().sample(400, seed=0)
'''
BENCH = ("bench", "--model", "rings:ring", "--data", "rings:points", "--features", "pixels", "--solver", "heun",
         "--solver", "ddim", "--nfe", "4", "--nfe", "6", "--num", "48", "--batch", "8", "--exact", "16")  # fmt: skip


def run(folder, ranks, *arguments):
    """The command, in the folder, whose modules it finds; without "--" torchrun takes --num for its own option."""
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "--", "diffsolve"]
    command = [sys.executable, *(group if ranks > 1 else ["-m", "diffsolve"]), *map(str, arguments)]
    env = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def cells(file):
    """solver, budget and seed of each line -> what was found, but for the time."""
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return {(line["solver"], line["nfe"], line["seed"]): line["scores"] | {"calls": line["calls"]} for line in lines}


def same_cells(found, expected):
    assert found.keys() == expected.keys()
    for cell, values in expected.items():
        assert found[cell] == pytest.approx(values, rel=1e-6, abs=1e-9)
        assert found[cell]["endpoint error"] == values["endpoint error"]  # of the samples themselves, bit for bit


def test_bench_is_that_of_one_process(tmp_path):
    (tmp_path / "rings.py").write_text(FACTORY)
    one, two = (run(tmp_path, n, *BENCH, "--seeds", 2, "--out", f"{n}.jsonl") for n in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert len(cells(tmp_path / "1.jsonl")) == 8
    same_cells(cells(tmp_path / "2.jsonl"), cells(tmp_path / "1.jsonl"))
    assert two.stdout.count("FD") == one.stdout.count("FD") > 0  # the first rank alone shows the tables
    assert {"1.jsonl", "2.jsonl", "rings.py"} == {name for name in os.listdir(tmp_path) if "__" not in name}


def test_bench_keeps_what_is_finished_when_a_rank_is_killed(tmp_path):
    """The first two cells and the accurate runs take 370 calls of the second rank at most: it dies in a later cell."""
    (tmp_path / "rings.py").write_text(FACTORY)
    out = ("--out", "s.jsonl")
    killed = run(tmp_path, 2, *BENCH, "--model-args", "dies_after=340", *out)
    assert killed.returncode != 0
    for told in ("rank      : 1", "exitcode  : -9", "Signal 9 (SIGKILL)"):
        assert told in killed.stderr
    kept = cells(tmp_path / "s.jsonl")
    assert 0 < len(kept) < 4
    again, whole = run(tmp_path, 2, *BENCH, *out), run(tmp_path, 1, *BENCH, "--out", "whole.jsonl")
    assert (again.returncode, whole.returncode) == (0, 0), again.stderr
    found = cells(tmp_path / "s.jsonl")
    assert {cell: found[cell] for cell in kept} == kept
    same_cells(found, cells(tmp_path / "whole.jsonl"))
    assert not list(tmp_path.glob("s.jsonl.*"))


def test_training_is_that_of_one_process(tmp_path):
    folder = tmp_path / "clothes"
    folder.mkdir()
    train = ("train", "fashion", "--folder", clothes(folder, train=10), "--steps", 3, "--batch", 4)
    one, two = (run(tmp_path, n, *train, "--out", f"{n}.safetensors", "--log", f"{n}.jsonl") for n in (1, 2))
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    weights, others = (safetensors.torch.load_file(tmp_path / f"{n}.safetensors") for n in (1, 2))
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=2e-3, atol=1e-5)  # they are in float16
    assert two.stdout.count("finished") == 1
    assert not list(tmp_path.glob("*.checkpoint*"))
