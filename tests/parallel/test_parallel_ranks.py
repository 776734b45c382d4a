"""The calls of a run shared out over gloo ranks: processes of their own, on one machine."""

import json
import os
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import diffsolve as ds

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

CASES = {
    "picard": ("ddim(eta=1.0)", partial(ds.Picard, window=9, tol=0.05)),
    "anderson": ("unipc-2", partial(ds.Picard, window=9, tol=0.05, accelerate=ds.Anderson(), max_batch=4)),
    "bounded": ("dpmpp-2m", partial(ds.Picard, window=6, tol=0.05, max_rounds=3)),
    "workers": ("heun", partial(ds.Picard, window=9, tol=0.05, workers=4)),
    "warm": ("dpmpp-2m", partial(ds.Picard, window=9, tol=0.05, warm=ds.plan("edm", "heun", steps=3))),
    "parareal": ("ddim(eta=1.0)", partial(ds.Parareal, tol=0.05)),
}


def elementwise(x, t):
    return torch.tanh(x) * 0.3 - 0.1 * x


def solve(net, name, ranks, seed=7):
    solver, parallel = CASES[name]
    model = ds.adapt(net, "edm", "v")
    return ds.solve(model, (3, 5), solver=solver, steps=16, seed=seed, parallel=parallel(ranks=ranks), trajectory=True)


def start(rank, world, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )


def end(rank, folder, found):
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # a group with a dead member does not close


def sharing(rank, folder):
    """World of 4; ranks 0 and 1 are a pair; of the pair 2, 3 the latter does not answer in time."""
    start(rank, 4, folder)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found = {}
    for name in CASES:
        for size, group in ((4, None), (2, pairs[0])):
            if rank < size:
                run = solve(elementwise, name, ds.Ranks(group))
                found[f"{name} {size}"] = [run.trajectory.tolist(), run.parallel.rounds, run.parallel.calls]
    digits = ds.load("digits")
    options = {"solver": "ddim", "steps": 20, "seed": 0, "parallel": ds.Picard(window=20, ranks=ds.Ranks())}
    found["digits"] = ds.sample(digits, (2, 1, 8, 8), **options).tolist()
    if rank >= 2:

        def slow(x, t):
            time.sleep(8 if rank == 3 else 0)
            return elementwise(x, t)

        began = time.monotonic()
        try:
            solve(slow, "picard", ds.Ranks(pairs[1], timeout=2.0))
        except RuntimeError as error:
            found["late"] = [str(error), time.monotonic() - began]
    end(rank, folder, found)


def failing(rank, folder):
    """A pair that differs, then one whose rank 1 fails, then dies."""
    start(rank, 2, folder)
    found, made = {}, 0

    def net(x, t):
        nonlocal made
        made += 1
        if rank == 1 and made == 3:
            raise ZeroDivisionError("of my own")
        if rank == 1 and made == 6:
            os._exit(1)
        return elementwise(x, t)

    for what, seed in (("differ", rank), ("fail", 7), ("die", 7)):
        began = time.monotonic()
        try:
            solve(net, "picard", ds.Ranks(timeout=30), seed)
        except (RuntimeError, ZeroDivisionError) as error:
            found[what] = [str(error), time.monotonic() - began]
    end(rank, folder, found)


def differing(rank, folder):
    """Two ranks of which one calls with another value of one thing: both are told which, before the first round."""
    start(rank, 2, folder)
    calls = []

    def network(shift):
        weight = torch.eye(5) + shift * torch.eye(5)
        module = torch.nn.Linear(5, 5, bias=False)
        module.weight.data.copy_(weight)

        def net(x, t, label=None):
            calls.append(len(x))
            return module(x) * 0.3

        return net

    usual = {"solver": "ddim", "steps": 16, "seed": 7, "cond": {"label": torch.zeros(3)}, "guidance": 2.0}
    parallel = {"window": 9, "tol": 0.05, "ranks": ds.Ranks(timeout=30)}
    cases = {
        "window": ({}, {"window": 6}, {}),
        "tol": ({}, {"tol": 0.1}, {}),
        "frame": ({}, {"frame": "denoised"}, {}),
        "warm": ({}, {"warm": ds.plan("edm", "heun", steps=3)}, {}),
        "accelerate": ({}, {"accelerate": ds.Anderson()}, {}),
        "solver": ({"solver": "ddim(eta=1.0)"}, {}, {}),
        "steps": ({"steps": 15}, {}, {}),
        "seed": ({"seed": 8}, {}, {}),
        "guidance": ({"guidance": 3.0}, {}, {}),
        "interval": ({"guidance": ds.Guidance(2.0, interval=(0.5, 5.0))}, {}, {}),
        "cond": ({"cond": {"label": torch.ones(3)}}, {}, {}),
        "network": ({}, {}, {"shift": 1e-6}),
        "batch": ({}, {}, {"batch": 4}),
        "nothing": ({}, {}, {}),
        "parareal": None,
    }
    found = {}
    for what, case in cases.items():
        options, other, rest = case if case and rank else ({}, {}, {})
        iteration = ds.Picard(**{**parallel, **other})
        if case is None and rank:
            iteration = ds.Parareal(tol=0.05, ranks=parallel["ranks"])
        model = ds.adapt(network(rest.get("shift", 0.0)), "edm", "v")
        calls.clear()
        try:
            ds.solve(model, (rest.get("batch", 3), 5), **{**usual, **options}, parallel=iteration)
            found[what] = ["", len(calls)]
        except RuntimeError as error:
            found[what] = [str(error), len(calls)]
    end(rank, folder, found)


def spawn(work, world, folder):
    """What each rank found; None for one that died."""
    processes = [mp.get_context("spawn").Process(target=work, args=(rank, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a rank hangs"
    files = [folder / f"{rank}.json" for rank in range(world)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The processes find this module and the package where this one did."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


@pytest.mark.slow
def test_one_two_and_four_ranks_give_the_same_answer(tmp_path):
    found = spawn(sharing, 4, tmp_path)
    for name in CASES:
        alone = solve(elementwise, name, None)
        for size in (4, 2):
            for rank in range(size):
                points, rounds, calls = found[rank][f"{name} {size}"]
                assert torch.equal(torch.tensor(points), alone.trajectory)
                assert (rounds, calls) == (alone.parallel.rounds, alone.parallel.calls)
    # A network that multiplies matrices rounds differently in another batch.
    x = ds.sample(ds.load("digits"), (2, 1, 8, 8), solver="ddim", steps=20, seed=0, parallel=ds.Picard(window=20))
    for rank in range(4):
        torch.testing.assert_close(torch.tensor(found[rank]["digits"]), x, rtol=0, atol=1e-4)
        assert found[rank]["digits"] == found[0]["digits"]
    message, seconds = found[2]["late"]
    assert message == "rank 0 of 2: another rank died, or did not answer within 2 s"
    assert 1.9 < seconds < 7


def test_a_rank_that_differs_fails_or_dies_ends_the_run_for_all(tmp_path):
    found = spawn(failing, 2, tmp_path)
    assert found[1] is None
    assert found[0]["differ"][0].startswith("the ranks differ in seed, start; each must make the same call")
    assert found[0]["fail"][0] == "rank 1 of 2 failed in a network call; its own error says why"
    message, seconds = found[0]["die"]
    assert message == "rank 0 of 2: another rank died, or did not answer within 30 s"
    assert seconds < 30


def test_ranks_that_make_different_calls_are_told_before_the_first_round(tmp_path):
    found = spawn(differing, 2, tmp_path)
    names = {"steps": "solver", "interval": "guidance", "batch": "shape, start, seed", "parareal": "parallel"}
    for what in found[0]:
        for rank in range(2):
            message, calls = found[rank][what]
            if what == "nothing":
                assert message == ""
                assert calls
                continue
            assert message.startswith("the ranks differ in "), (what, message)
            assert not calls
            listed = message.removeprefix("the ranks differ in ").split(";")[0].split(", ")
            assert listed[0] in names.get(what, what), (what, message)


def test_ranks_need_a_seed(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="seed must be given with ranks, the same on each of them, got None"):
        solve(elementwise, "picard", ds.Ranks(), seed=None)
