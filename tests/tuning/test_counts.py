"""How many network calls a learning makes, and says that it makes."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import diffsolve as ds
from diffsolve.tuning import fit
from diffsolve.tuning.learning import _result
from diffsolve.tuning.pilot import STARTS, Start
from diffsolve.tuning.progress import Progress


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"method": "adam", "gradient": "direct"}, 1),
        ({"method": "adam", "gradient": "checkpoint"}, 2),
        ({"method": "least-squares"}, 0),
    ],
)
def test_calls_are_counted_once_for_every_sample(options, passes):
    """The teacher's, those of the pilot, of validation and of learning, twice where a forward pass is repeated."""
    seen = 0

    def net(x, t):
        nonlocal seen
        seen += len(x)
        return -torch.tanh(x) * t.cos()[:, None]

    model = ds.adapt(net, "condot", "velocity")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few iterations may learn nothing
        tuning = fit(model, (12, 2), nfe=4, iterations=3, batch=4, teacher=10, seed=0, **options)
    looked = 1 if passes else 0  # Adam looks whether the network has derivatives
    assert tuning.calls == seen - looked
    if passes:
        pilot = 9 * 4 * len(STARTS)  # the noises that are not held out
        validated = len(tuning.validation) * 1  # of one noise each
        validated += len(STARTS) * 10 + 2 * 12  # then the best of the list, of those so far; and it and what is learned
        assert tuning.calls == 12 * 10 + pilot + 3 * 4 * 4 * passes + validated * 4


def test_a_learning_begins_at_nothing():
    student = SimpleNamespace(parameters={"w": torch.nn.Parameter(torch.ones(2))})
    progress = Progress(student, {}, None, None)
    assert (progress.iteration, progress.losses, progress.best, progress.done) == (0, [], float("inf"), False)


def test_ends_that_are_given_cost_no_calls():
    model, noise = ds.adapt(lambda x, t: -x * (1 + t.view(-1, 1)), "condot", "velocity"), torch.randn(8, 2)
    ends = ds.sample(model, noise=noise, nfe=50)
    options = {"nfe": 2, "iterations": 1, "batch": 8, "seed": 0, "noise": noise}
    given, taught = (fit(model, teacher=teacher, **options).calls for teacher in (ends, 50))
    assert taught - given == 8 * 50


def test_ends_that_were_made_before_cost_no_calls(tmp_path):
    model = ds.adapt(lambda x, t: -x * (1 + t.view(-1, 1)), "condot", "velocity")
    options = {"iterations": 1, "seed": 0, "teacher": 50, "solver": "ddim", "cache": tmp_path}
    first = fit(model, (8, 2), nfe=2, **options)
    again, other = fit(model, (8, 2), nfe=2, **options), fit(model, (8, 2), nfe=3, **options)
    assert first.calls - again.calls == 8 * 50
    assert (again.tableau, again.before) == (first.tableau, first.before)
    assert len(list(tmp_path.iterdir())) == 1
    assert other.calls < 8 * 50
    fit(model, (8, 2), nfe=2, **{**options, "teacher": 51})
    fit(model, (8, 2), nfe=2, guidance=2.0, **options)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    for file in files:
        file.write_bytes(b"?")
    with pytest.raises(ValueError, match="must be the ends of a teacher's runs, got"):
        fit(model, (8, 2), nfe=2, **options)


class Errors:
    """A task whose runs, by their order, have these errors on 12 noises: 8 to learn from, 2 to choose by, 2 unseen."""

    loss, calls, seconds = None, 0, 0.0
    learning, choosing, unseen = torch.split(torch.arange(12), [8, 2, 2])

    def __init__(self, of):
        self.of = of

    def errors(self, run, index):
        return torch.tensor(self.of[run.order], dtype=torch.float64)[index]

    def most(self, errors):
        return 50 * float(errors.median())


def test_a_run_that_ends_elsewhere_too_often_is_not_returned():
    """Nearer on the unseen noises, and to the best of the list; but one of those learned from ended far away."""
    start, best, table = (replace(ds.plan("condot", "euler", steps=2), order=order) for order in (1, 2, 3))
    near, good, flipped = [0.3] * 12, [0.2] * 12, [*[0.1] * 7, 4.0, *[0.1] * 4]
    starts = [Start(start, "start"), Start(best, "best")]
    with pytest.warns(UserWarning, match="nothing learned is better than the start, whose held-out loss is 0.2"):
        result = _result(Errors({1: near, 2: good, 3: flipped}), starts, table)
    assert result.tableau is result.start is best
    assert (result.learning, result.gain.value) == (pytest.approx(0.2), 0)
    overfitted = [*[0.1] * 10, 0.3, 0.3]
    with pytest.warns(UserWarning, match="nothing learned"):
        result = _result(Errors({1: near, 2: good, 3: overfitted}), starts, table)
    assert result.tableau is best
    result = _result(Errors({1: near, 2: good, 3: [0.1] * 12}), starts, table)
    assert result.tableau is table
    assert (result.start, result.before.value) == (best, pytest.approx(0.2))
