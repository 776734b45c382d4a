"""Processes killed at any moment: no result is lost, no file is half-written, and the same call goes on.

The killed are forks of this process, which have everything imported, so that a kill costs milliseconds.
"""

import os
import random
import signal
import time
from functools import partial

import pytest
import torch

import diffsolve as ds
from diffsolve.common.records import read
from diffsolve.metrics import Statistics, bits, sweep
from diffsolve.reference import digits
from diffsolve.training.digits import train
from diffsolve.tuning import fit

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of this process"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

RING = ds.load("mixture-2d")
TUNE = {"nfe": 3, "solver": "unipc-2", "teacher": 9, "iterations": 25, "batch": 8, "seed": 0}


def forked(work):
    """The process that does it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(300)  # rather than hang
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def in_a_fork(work, delay=None):
    """(whether it ended by itself, whether it failed), of work that is killed after a delay."""
    child = forked(work)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return os.WIFEXITED(status), os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0


def integers():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 17, (6, 2), generator=generator), torch.zeros(6), {"levels": 17}


def swept(folder):
    return sweep(RING, (2,), solvers=["ddim", "heun", "unipc-2"], nfe=[2, 4, 6], num=8, exact=2, fine=4, batch=8,
                 seeds=2, out=folder / "file")  # fmt: skip


def evaluated(folder):
    solver = ds.Adaptive("dopri5", rtol=0.1, atol=0.1)
    return bits.evaluate(RING, "points", folder / "file", batch=2, conditional=False, about={}, solver=solver)


def trained(folder):
    return train(folder / "file", steps=12, batch=2, checkpoint_every=0)


def tuned(folder):
    return fit(RING, (24, 2), checkpoint=folder / "file.checkpoint", out=folder / "file", **TUNE)


def lines(folder):
    """What must still be there after the next kill: the results in the file."""
    file = folder / "file"
    return read(file)[1] if file.exists() and file.stat().st_size else []


def whole(folder):
    """Files replaced as a whole: what is there is read."""
    if (folder / "file").exists():
        (ds.Tableau.load if b"diffsolve.tableau" in (folder / "file").read_bytes() else digits.load)(folder / "file")
    return []


def timeless(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


WORK = {"sweep": (swept, lines), "logprob": (evaluated, lines), "train": (trained, whole), "tune": (tuned, whole)}
REST = ("logprob", "train", "tune")


def kill_and_resume(name, folder, kills):
    """Kill the work `kills` times, several times on one file; let it end then, with what it has without a kill."""
    work, found = WORK[name]
    once = folder / "once"
    once.mkdir()
    began = time.monotonic()
    assert in_a_fork(partial(work, once)) == (True, False)
    life, moments, made = time.monotonic() - began, random.Random(0), 0
    while made < kills:
        here, before = folder / f"from kill {made}", []
        here.mkdir()
        for _ in range(min(4, kills - made)):
            ended, failed = in_a_fork(partial(work, here), moments.uniform(0, 0.8 * life))
            made += 1
            assert not failed
            after = found(here)
            assert after[: len(before)] == before
            before = after
            if ended:
                break
        assert in_a_fork(partial(work, here)) == (True, False)
        assert found(here)[: len(before)] == before
        assert same(found, here, once)
        left = {file.name for file in here.iterdir() if file.suffix != ".partial"}
        assert left == {"file"}


def same(found, one, two):
    if found is lines:
        return timeless(lines(one)) == timeless(lines(two))
    return (one / "file").read_bytes() == (two / "file").read_bytes()


@pytest.fixture(autouse=True)
def _points(monkeypatch):
    monkeypatch.setitem(bits.DATA, "points", integers)


def test_a_sweep_killed_a_few_times(tmp_path):
    kill_and_resume("sweep", tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_killed_fifty_times(name, tmp_path):
    if name == "train":
        pytest.importorskip("sklearn")
    kill_and_resume(name, tmp_path, 50)


def saves():
    run = ds.solve(RING, (2000, 2), solver="unipc-3", nfe=8, seed=0, max_calls=4)
    statistics = Statistics.of(torch.randn(500, 20, generator=torch.Generator().manual_seed(0)))
    return {
        "t.json": (ds.plan("condot", "unipc-3", nfe=100).save, ds.Tableau.load),
        "s.safetensors": (run.state.save, ds.State.load),
        "m.npz": (statistics.save, Statistics.load),
        "m.safetensors": (statistics.save, Statistics.load),
    }


def kill_saves(folder, kills):
    moments = random.Random(0)
    for name, (save, load) in saves().items():
        file = folder / name
        save(file)
        contents = file.read_bytes()

        def again(save=save, file=file):
            while True:
                save(file)

        for _ in range(kills):
            in_a_fork(again, moments.uniform(0, 0.05))
            assert file.read_bytes() == contents
        load(file)


def test_saves_killed_a_few_times(tmp_path):
    kill_saves(tmp_path, 5)


@pytest.mark.slow
def test_saves_killed_fifty_times(tmp_path):
    kill_saves(tmp_path, 50)


@pytest.mark.parametrize("name", ["sweep", *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_of_two_at_once_one_is_refused_or_both_are_right(name, tmp_path):
    """And what is left is right: the one that was refused goes on where the other ended."""
    if name == "train":
        pytest.importorskip("sklearn")
    work, found = WORK[name]

    def with_patience():
        while True:
            try:
                return work(tmp_path)
            except BlockingIOError:
                time.sleep(0.01)

    children = [forked(with_patience) for _ in range(2)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found(tmp_path)
    (tmp_path / "once").mkdir()
    work(tmp_path / "once")
    assert same(found, tmp_path, tmp_path / "once")
