"""The soft loss: the run may start a little beside the noise."""

from types import SimpleNamespace

import pytest
import torch
from support.learning import RING, Net, moved, noise

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.tuning import fit
from diffsolve.tuning.adam import Adam
from diffsolve.tuning.losses import relative
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.task import Task

SMALL = {"solver": "unipc-3", "teacher": 12, "seed": 0, "dtype": torch.float64, "iterations": 8}


def learner(path, ball, loss=None):
    model = ds.adapt(Net(), path, "denoised")
    x, student = noise(12) * model.path.prior_std(), moved(model, nfe=3)
    ends = ds.sample(model, noise=x, nfe=20)
    settings = {"held_out": 0.25, "ball": ball, "lr": 0.02, "gradient": "direct"}
    task = Task(model, Noises(x, {}, Guidance(1.0)), ends, loss or relative(ends), 12, 0, settings)
    return Adam(task, student, SimpleNamespace(moments=Adam.moments(student))), x, ends


@pytest.mark.parametrize("path", ["condot", "edm"])
def test_no_point_of_the_ball_is_nearer_to_first_order(path):
    radius = 1e-3
    adam, x, ends = learner(path, radius)
    scale = adam.student.model.path.prior_std()
    found = adam.beside(adam.task.noises, ends)
    assert float((found - x).norm(dim=1).max()) <= radius * scale * (1 + 1e-9)

    def loss(x):
        return adam.task.loss(ds.sample(adam.student.model, noise=x, solver=adam.student.tableau()), ends)

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        other = x + radius * scale * other / other.norm(dim=1, keepdim=True)
        assert (loss(found) < loss(other) + 1e-6).all()
    assert (loss(found) < loss(x)).all()


def test_it_goes_no_further_than_to_no_loss():
    adam, x, ends = learner("condot", 100.0)
    found, plain = (adam.task.loss(adam.student(start, {}, Guidance(1.0)), ends) for start in
                    (adam.beside(adam.task.noises, ends), x))  # fmt: skip
    assert float(found.mean().detach()) < 0.8 * float(plain.mean().detach())


def test_of_a_loss_that_is_a_number_the_whole_radius():
    adam, x, ends = learner("condot", 0.25, lambda x, ends: (x - ends).square().mean())
    torch.testing.assert_close((adam.beside(adam.task.noises, ends) - x).norm(dim=1), torch.full((12,), 0.25).double())


def test_as_an_option_of_tune():
    tuning = fit(RING, (32, 2), nfe=3, ball=0.1, **SMALL)
    plain = fit(RING, (32, 2), nfe=3, method="adam", **SMALL)
    assert tuning.losses[0] < plain.losses[0]  # its own start is nearer
    assert tuning.before == plain.before  # what is reported has none
    learned = 8 * 24 * 3  # iterations of the 24 noises that are not held out, 3 calls each, once more for the ball
    assert tuning.calls - plain.calls == learned
    for options, message in (
        ({"ball": -1}, "ball must be .* >= 0"),
        ({"ball": 1, "method": "least-squares"}, "ball must be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (8, 2), nfe=3, **options)
