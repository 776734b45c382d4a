"""What a density says that it cost, and when its trace is exact by default."""

import pytest
import torch

import diffsolve as ds


def linear(x, t):
    return -0.5 * x


@pytest.mark.parametrize("predicts", ["velocity", "noise"])
def test_every_call_of_the_network_is_counted_and_no_other(predicts):
    calls = []

    def net(x, t):
        calls.append(1)
        return -0.5 * x

    model = ds.adapt(
        net, "condot", predicts
    )  # the noise does not give the data at alpha = 0, nor the noise at the data
    x = torch.ones(2, 3)
    if predicts == "noise":
        model = ds.adapt(net, "vp", predicts)
    lp = ds.log_prob(model, x, solver="euler", steps=4, trace="exact")
    assert lp.nfe.tolist() == [len(calls)] * 2
    assert lp.jvps.tolist() == [3 * len(calls)] * 2


def test_the_trace_is_exact_by_default_up_to_128_values():
    model = ds.adapt(linear, "condot", "velocity")
    for dim, jvps in ((128, 128), (129, 8)):
        lp = ds.log_prob(model, torch.ones(1, dim), solver="euler", steps=2)
        assert (lp.jvps / lp.nfe).tolist() == [jvps]


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float32])
def test_bits_are_of_integers(dtype):
    with pytest.raises(TypeError, match="n must be"):
        ds.bits_per_dim(ds.adapt(linear, "condot", "velocity"), torch.ones(1, 2).to(dtype))
