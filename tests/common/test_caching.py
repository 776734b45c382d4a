"""A cache that keeps what is its own, and lets go of what is not."""

import gc
import threading
import weakref

import pytest
import torch

import diffsolve as ds
from diffsolve.common.caching import remembered
from diffsolve.execute.plan import _plan
from diffsolve.solvers.world import world


def path_of(tensor):
    return ds.paths.Custom(lambda t: 1 - t + 0 * tensor[0], lambda t: t)


@pytest.mark.parametrize("options", [
    {"solver": "dpmpp-2m", "steps": 4}, {"solver": "designed", "steps": 4}, {"solver": "unipc-3", "nfe": 6},
    {"solver": ds.Adaptive()}, {"solver": ds.AdaptiveSDE()}, {"solver": "rk4", "steps": 3, "log_prob": "model"},
    {"solver": "rk4", "steps": 3, "parallel": ds.Picard()}, {"solver": "rk4", "steps": 3, "gradient": "adjoint"},
])  # fmt: skip
def test_a_path_is_freed_with_its_closure(options):
    gc.freeze()  # what stands already is not looked through
    tensor = torch.zeros(1000)
    kept = weakref.ref(tensor)
    model = ds.adapt(lambda x, t: -x, path_of(tensor), "velocity")
    first = ds.solve(model, (2, 2), seed=0, **options).x
    assert torch.equal(ds.solve(model, (2, 2), seed=0, **options).x, first)
    ds.encode(model, first, solver="rk4", steps=3)
    del tensor, model
    gc.collect()
    gc.unfreeze()
    assert kept() is None


def test_results_for_a_living_path_are_kept():
    path = path_of(torch.zeros(3))
    model = ds.adapt(lambda x, t: -x, path, "velocity")
    assert ds.plan(model, "ddim", steps=5) is ds.plan(model, "ddim", steps=5)
    condot = ds.adapt(lambda x, t: -x, "condot", "velocity")
    assert ds.plan(condot, "heun", steps=5) is ds.plan(ds.adapt(condot.net, "condot", "velocity"), "heun", steps=5)
    before = len(_plan.cache.entries)
    del model, path
    gc.collect()
    assert len(_plan.cache.entries) == before - 1
    assert world.cache.maxsize == 16


class Foreign:
    """Not of the package; equal by its number."""

    def __init__(self, n):
        self.n = n

    def __eq__(self, other):
        return self.n == other.n

    def __hash__(self):
        return hash(self.n)


def test_what_is_remembered():
    made = []

    @remembered(maxsize=2)
    def f(*args):
        made.append(args)
        return object()

    a = Foreign(1)
    assert f(a, 1) is f(Foreign(1), 1)
    assert f(a, 1) is not f(a, 1.0)
    del a
    made.clear()
    gc.collect()
    assert not f.cache.entries
    one = f(1)
    assert f(1) is one
    f(2), f(3)
    assert f(1) is not one
    assert f([1]) is not f([1])  # no hash: not kept
    assert f((Foreign(1),)) is not f((Foreign(1),))  # no weak reference to a tuple


def test_threads_share_the_cache():
    @remembered(maxsize=4)
    def f(foreign, n):
        return foreign.n + n

    wrong = []

    def work():
        for i in range(300):
            if f(Foreign(i % 7), i % 3) != i % 7 + i % 3:
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
