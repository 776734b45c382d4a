"""What files and ranks compare in place of networks and values."""

from functools import partial

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.common import fingerprint
from diffsolve.common.fingerprint import describe, rounded, weights_of


def module(seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(40, 70), torch.nn.BatchNorm1d(70)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_bit_of_a_network_counts(dtype):
    net = module(dtype=dtype)
    before = weights_of(net)
    assert weights_of(module(dtype=dtype)) == before != weights_of(module(1, dtype))
    with torch.no_grad():
        value = net[0].weight[35, 20].clone()
        net[0].weight[35, 20] = (
            torch.nextafter(value.float(), torch.tensor(9.0)) if dtype == torch.float32 else value + 1
        )
        assert weights_of(net) != before
        net[0].weight[35, 20] = value
        assert weights_of(net) == before
        net[1].running_mean[3] += 1  # a buffer
        assert weights_of(net) != before


def test_weights_in_another_order_are_others(monkeypatch):
    x = torch.arange(100.0)
    flipped = x.flip(0).clone()
    assert weights_of({"a": x}) != weights_of({"a": flipped})
    assert weights_of({"a": x}) != weights_of({"a": x.view(10, 10)})
    assert weights_of({"a": x, "b": flipped}) != weights_of({"a": flipped, "b": x})
    whole = weights_of({"a": x})
    monkeypatch.setattr(fingerprint, "CHUNK", 30)
    parts = weights_of({"a": x})
    assert parts != weights_of({"a": x[torch.randperm(100)].clone()})
    assert isinstance(whole, int)
    assert isinstance(parts, int)
    for odd in (torch.zeros(0), torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.complex64)):
        weights_of({"a": odd})


def test_it_is_made_once_until_the_weights_change(monkeypatch):
    made = []
    content = fingerprint._content
    monkeypatch.setattr(fingerprint, "_content", lambda tensor: made.append(1) or content(tensor))
    net = module()
    first = weights_of(net)
    count = len(made)
    assert weights_of(net) == first
    assert len(made) == count
    with torch.no_grad():
        net[0].bias[0] += 1
    assert weights_of(net) != first


def test_the_network_is_found_in_what_holds_it():
    net, other = module(), module(1)

    class Wrapper:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x, t):
            return self.inner(x)

    for held in (
        lambda net: lambda x, t: net(x),
        lambda net: partial(lambda net, x, t: net(x), net),
        Wrapper,
        lambda net: Wrapper(net).__call__,
        lambda net: ds.adapt(Wrapper(net), "condot", "velocity").net,
    ):
        assert weights_of(held(net)) == weights_of(held(module())) != weights_of(held(other))
    assert weights_of(torch.tanh) == 0  # nothing to be seen


def test_rounding_errors_make_no_other_digest():
    x = np.linspace(-1, 1, 9)
    for digits in (6, 9):
        assert rounded(x, digits=digits) == rounded(x + 1e-13, digits=digits) != rounded(x + 1e-3, digits=digits)
    assert rounded(x, digits=9) != rounded(x + 1e-7, digits=9)
    infinite = np.array([1.0, 2.0, -np.inf])
    assert rounded(infinite) != rounded(np.array([1.0, 3.0, -np.inf])) != rounded(np.array([1.0, 3.0, 0.0]))
    assert describe(ds.plan("ve", "heun", nfe=9)) != describe(ds.plan("ve", "heun", nfe=9, grid="uniform-lambda"))
