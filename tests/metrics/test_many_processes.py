"""A sweep that is cut off, shared by ranks, or dealt out to machines: the numbers of one unbroken run."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import diffsolve as ds
from diffsolve import metrics
from diffsolve.metrics import Statistics, Table
from diffsolve.metrics.gathered import Checkpoint, Gathered
from diffsolve.reference.mixture import ring

SMALL = {"nfe": [4], "num": 40, "batch": 8, "exact": 16, "fine": 20}
CODE = """
import sys, time, torch
import diffsolve as ds
from diffsolve import metrics
from diffsolve.reference.mixture import ring
torch.set_num_threads(1)
model = ds.load("mixture-2d")
net = model.net
def slow(x, t):
    time.sleep(float(sys.argv[2]))
    return net(x, t)
slow.__qualname__ = "slow"
reference = metrics.Statistics.of(ring().sample(400, seed=0))
metrics.sweep(
    ds.adapt(slow, "condot", "velocity"), (2,), reference=reference, solvers=["heun", "ddim"], nfe=[4, 6], num=40,
    batch=8, exact=16, fine=20, seeds=2, out=sys.argv[1],
)
"""


class Stop(Exception):
    pass


def run(net, out, **options):
    reference = Statistics.of(ring().sample(400, seed=0))
    return metrics.sweep(ds.adapt(net, "condot", "velocity"), (2,), reference=reference, out=out, **SMALL | options)


def limited(calls):
    """The ring's network, which fails after so many samples."""
    net, left = ds.load("mixture-2d").net, [calls]

    def network(x, t):
        left[0] -= len(x)
        if left[0] < 0:
            raise Stop
        return net(x, t)

    network.__qualname__ = "network"
    return network


def scores(table):
    return [(row.solver, row.nfe, row.seed, row.calls, row.scores) for row in table.rows]


@pytest.mark.parametrize("options", [{}, {"scores": {"FD": metrics.frechet}}, {"scores": ["precision", "vendi"]}])
def test_a_cell_goes_on_from_the_batch_it_was_at(tmp_path, monkeypatch, options):
    """Bit for bit; of 5 batches 3 were done, and are not run again."""
    monkeypatch.setattr("diffsolve.metrics.gathered.SHARE", 1e9)  # save after every batch
    whole = run(limited(10**9), None, **options)
    with pytest.raises(Stop):
        run(limited(3 * 8 * 4), tmp_path / "s.jsonl", **options)
    assert os.listdir(tmp_path) == ["s.jsonl.cell"]
    table = run(limited(2 * 8 * 4 + 16 * 30), tmp_path / "s.jsonl", **options)
    assert scores(table) == scores(whole)
    assert os.listdir(tmp_path) == ["s.jsonl"]


def test_a_kill_between_a_result_and_the_removal_of_its_cell_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsolve.metrics.gathered.SHARE", 1e9)
    out, remove = tmp_path / "s.jsonl", Checkpoint.remove

    def killed(self):
        raise Stop

    monkeypatch.setattr(Checkpoint, "remove", killed)
    with pytest.raises(Stop):
        run(limited(10**9), out)
    monkeypatch.setattr(Checkpoint, "remove", remove)
    kept = out.with_name("s.jsonl.cell").read_bytes()
    run(limited(0), out)  # all that was asked for is there
    assert os.listdir(tmp_path) == ["s.jsonl"]
    with pytest.raises(Stop):
        run(limited(3 * 8 * 4), tmp_path / "t.jsonl", solvers=["heun"])
    under_way = (tmp_path / "t.jsonl.cell").read_bytes()
    assert kept != under_way
    (tmp_path / "s.jsonl.cell").write_bytes(under_way)  # of a cell that is not in the file
    run(limited(0), out)
    assert (tmp_path / "s.jsonl.cell").read_bytes() == under_way


def test_what_another_run_left_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsolve.metrics.gathered.SHARE", 1e9)
    with pytest.raises(Stop):
        run(limited(3 * 8 * 4), tmp_path / "s.jsonl")
    for other in ({"num": 48}, {"solvers": ["heun"]}, {"batch": 20}):
        assert scores(run(limited(10**9), tmp_path / "s.jsonl", **other)) == scores(run(limited(10**9), None, **other))
        (tmp_path / "s.jsonl").unlink()
    (tmp_path / "s.jsonl.cell").write_bytes(b"broken")
    assert scores(run(limited(10**9), tmp_path / "s.jsonl")) == scores(run(limited(10**9), None))


def test_memory_is_flat_where_rows_are_not_needed(tmp_path):
    """The file of a cell under way has all that is held: moments alone, whatever the number of samples."""
    sizes = {}
    for kept in (False, True):
        for batches in (2, 20):
            part, checkpoint = Gathered(("",), kept), Checkpoint(tmp_path / "s.jsonl", {}, "")
            for number in range(batches):
                part.add(number, {"": torch.randn(50, 4)}, torch.zeros(0, 2))
            checkpoint.save(part, "cell", force=True)
            sizes[kept, batches] = (tmp_path / "s.jsonl.cell").stat().st_size
            again = checkpoint.load(Gathered(("",), kept), "cell")
            assert again.batches == part.batches
            assert torch.equal(again.statistics("").cov, part.statistics("").cov)
    assert sizes[False, 20] < sizes[False, 2] + 200
    assert sizes[True, 20] > sizes[True, 2] + 18 * 50 * 4 * 4


def test_parts_joined_are_the_whole():
    torch.manual_seed(0)
    rows = [{"": torch.randn(9, 3)} for _ in range(5)]
    whole, odd, even = (Gathered(("",), True) for _ in range(3))
    for number, part in enumerate(rows):
        whole.add(number, part, part[""][:1])
        (odd if number % 2 else even).add(number, part, part[""][:1])
    joined, expected = Gathered.joined([even, odd]), whole.statistics("")
    assert torch.equal(joined.statistics("").rows, expected.rows)
    assert torch.allclose(joined.statistics("").cov, expected.cov, rtol=1e-12)
    assert torch.equal(joined.first_ends(), whole.first_ends())
    odd.add(7, {"": torch.tensor([[float("nan")] * 3])}, torch.zeros(0, 3))
    assert Gathered.joined([even, odd]).statistics("") is None


def test_the_cells_of_machines_join(tmp_path):
    options = {"solvers": ["heun", "ddim"], "nfe": [4, 6], "seeds": 2}
    whole = run(limited(10**9), None, **options)
    files = [tmp_path / f"{i}.jsonl" for i in (1, 2, 3)]
    for i, file in enumerate(files, 1):
        run(limited(10**9), file, part=(i, 3), **options)
    joined = Table.read(*files)
    assert sorted(map(str, scores(joined))) == sorted(map(str, scores(whole)))
    assert [len(Table.read(file).rows) for file in files] == [3, 3, 2]
    for part, message in (((4, 3), "from 1 to 3, got 4"), ((1, 0), "integer >= 1, got 0")):
        with pytest.raises(ValueError, match=message):
            run(limited(1), None, part=part)


def test_the_command_joins_files(tmp_path, monkeypatch):
    testing = pytest.importorskip("typer.testing")
    from diffsolve.cli import app as cli

    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return testing.CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])

    options = ("--model", "mixture-2d", "--solver", "heun", "--solver", "ddim", "--nfe", 4, "--num", 20, "--exact", 4)
    for i in (1, 2):
        assert invoke(*options, "--cells", f"{i}/2", "--out", f"{i}.jsonl").exit_code == 0
    joined = invoke("--join", "1.jsonl", "--join", "2.jsonl")
    assert joined.output == invoke(*options).output
    assert "cells must be a part as 3/16, got '3'" in " ".join(invoke(*options, "--cells", "3").output.split())


def start(out, delay=0.0, ranks=1, **more):
    """The sweep in a process of its own, or as so many ranks as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        env = dict(os.environ, OMP_NUM_THREADS="1")
        if ranks > 1:
            env |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", textwrap.dedent(CODE), str(out), str(delay)]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    return processes


def results(file):
    """The lines of a file without the time, by cell."""
    lines = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    return {(line["solver"], line["nfe"], line["seed"]): (line["calls"], line["scores"]) for line in lines}


@pytest.mark.slow
def test_ranks_are_one_process(tmp_path):
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    for file, ranks in ((one, 1), (two, 2)):
        for process in start(file, ranks=ranks):
            assert process.wait() == 0, process.stderr.read()
    alone, shared = results(one), results(two)
    assert alone.keys() == shared.keys()
    assert len(alone) == 8
    for cell, (calls, found) in alone.items():
        assert shared[cell][0] == calls
        assert shared[cell][1] == pytest.approx(found, rel=1e-6, abs=1e-9)
        assert shared[cell][1]["endpoint error"] == found["endpoint error"]  # of the samples themselves, bit for bit
    assert sorted(os.listdir(tmp_path)) == ["1.jsonl", "2.jsonl"]


@pytest.mark.slow
def test_a_rank_that_is_killed_is_told_and_nothing_finished_is_lost(tmp_path):
    out = tmp_path / "s.jsonl"
    first, second = start(out, delay=0.03, ranks=2)
    while not out.exists() or len(out.read_bytes().splitlines()) < 3:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    assert first.wait(timeout=60) != 0
    assert "ConnectionError: every rank must answer" in first.stderr.read()
    assert len(results(out)) >= 2
    for process in start(out, ranks=2):
        assert process.wait() == 0, process.stderr.read()
    whole = tmp_path / "whole.jsonl"
    assert start(whole)[0].wait() == 0
    found, expected = results(out), results(whole)
    assert found.keys() == expected.keys()
    for cell, (_, values) in expected.items():
        assert found[cell][1] == pytest.approx(values, rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_a_sweep_killed_twenty_times_is_the_unbroken_one(tmp_path):
    out, whole, kills, chance = tmp_path / "s.jsonl", tmp_path / "whole.jsonl", 0, random.Random(0)
    assert start(whole)[0].wait() == 0
    while kills < 20:
        (process,) = start(out, delay=0.05)
        until = time.monotonic() + 120
        while not any(tmp_path.glob("s.jsonl*")) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.2, 2.5))
        if process.poll() is not None:  # done: from the beginning, to be killed more
            out.unlink()
            continue
        process.kill()
        process.wait()
        kills += 1
    assert start(out)[0].wait() == 0
    assert results(out) == results(whole)
    assert sorted(os.listdir(tmp_path)) == ["s.jsonl", "whole.jsonl"]


@pytest.mark.slow
def test_a_second_process_on_one_file_is_refused(tmp_path):
    out = tmp_path / "s.jsonl"
    (first,) = start(out, delay=0.1)
    while not out.exists():
        time.sleep(0.02)
    (second,) = start(out)
    assert second.wait() != 0
    assert "must be open once only, got one that another run is writing" in second.stderr.read()
    first.kill()
    first.wait()
