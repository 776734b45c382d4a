"""How many network calls a learning makes, and says that it makes."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import diffsolve as ds
from diffsolve.tuning import fit
from diffsolve.tuning.pilot import STARTS
from diffsolve.tuning.progress import Progress


@pytest.mark.parametrize(("gradient", "passes"), [("direct", 1), ("checkpoint", 2)])
def test_calls_are_counted_once_for_every_sample(gradient, passes):
    """The teacher's, validation's and learning's, twice where a forward pass is repeated; + 1 to look at the net."""
    seen = 0

    def net(x, t):
        nonlocal seen
        seen += len(x)
        return -torch.tanh(x) * t.cos()[:, None]

    model = ds.adapt(net, "condot", "velocity")
    options = {"iterations": 3, "batch": 4, "teacher": 10, "seed": 0, "gradient": gradient}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few iterations may learn nothing
        tuning = fit(model, (12, 2), nfe=4, **options)
    assert tuning.calls == seen - 1
    learned = 3 * 4 * 4 * passes
    pilot = 9 * (10 + 4 * len(STARTS))  # the noises that are not held out
    held = tuning.calls - 12 * 10 - pilot - learned
    assert held > 0
    assert held % 4 == 0


def test_a_learning_begins_at_nothing():
    student = SimpleNamespace(parameters={"w": torch.nn.Parameter(torch.ones(2))})
    progress = Progress(student, {}, None)
    assert (progress.iteration, progress.calls, progress.losses, progress.best) == (0, 0, [], float("inf"))


def test_ends_that_are_given_cost_no_calls():
    model, noise = ds.adapt(lambda x, t: -x * (1 + t.view(-1, 1)), "condot", "velocity"), torch.randn(8, 2)
    ends = ds.sample(model, noise=noise, nfe=50)
    options = {"nfe": 2, "iterations": 1, "batch": 8, "seed": 0, "noise": noise}
    given, taught = (fit(model, teacher=teacher, **options).calls for teacher in (ends, 50))
    assert taught - given == (8 + 6) * 50  # and in the pilot
