"""Ticks as recorded graphs, and the update as a launch, as far as they can be tested without a GPU."""

import pytest
import torch
from support.recorder import Recorder

import diffsolve as ds
from diffsolve.serving import capture

SHAPE = (4, 4, 4)
LOT = [
    {"solver": "dpmpp-2m", "steps": 3, "seed": 0, "guidance": 2.0},
    {"solver": "heun", "steps": 3, "seed": 1, "guidance": None},
    {"solver": "ddim(eta=1.0)", "steps": 2, "seed": 2, "guidance": None},
]


def net(x, t, shift, gain=1.0):
    return 0.5 * x * gain + shift.view(-1, 1, 1, 1) * t.view(-1, 1, 1, 1)


def requests():
    for i, options in enumerate(LOT):
        shift, none = ({"shift": torch.tensor(value), "gain": GAIN} for value in (float(i), 0.0))
        guided = options["guidance"]
        yield {**options, "cond": shift, "guidance": guided and ds.Guidance(guided, uncond=none)}


GAIN = ds.Shared(torch.tensor(1.5))


def results(model, **options):
    stepper = ds.Stepper(model, max_batch=8, **options)
    tickets = [stepper.submit(SHAPE, **one) for one in requests()]
    stepper.run()
    return [stepper.result(ticket).x for ticket in tickets]


@pytest.fixture
def recorded(monkeypatch):
    record = Recorder()
    monkeypatch.setattr(capture, "recorder", lambda device: record)
    monkeypatch.setattr("diffsolve.serving.stepper.recorder", lambda device: record)
    return record.made


def test_launches_and_replays_are_the_runs(monkeypatch, recorded):
    """In Triton's interpreter: a launch to rounding, a replay to the last bit of the launches, one record a size."""
    pytest.importorskip("triton", minversion="3.3")
    model = ds.adapt(net, "edm", "edm")
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "torch")
    want = results(model)
    monkeypatch.setenv("DIFFSOLVE_KERNELS", "triton")
    launched = results(model)
    replayed = results(model, graph=True)
    for a, b, c in zip(want, launched, replayed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(b, c)
    assert len(recorded) == 2  # of 4 rows and of 1


def test_no_graph_without_a_gpu():
    with pytest.raises(ValueError, match="device must be a CUDA device with graph=True, got"):
        ds.Stepper(ds.adapt(net, "condot", "velocity"), graph=True)
