"""Times by dynamic programming: the costs, the cheapest way, and what it is good for."""

import itertools

import numpy as np
import pytest
import torch
from support.learning import Net, noise

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.tuning import fit
from diffsolve.tuning.gits import cheapest, costs, starts
from diffsolve.tuning.runs import Noises


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_no_way_is_cheaper(steps):
    rng = np.random.default_rng(0)
    cost = np.where(np.triu(np.ones((7, 7)), 1) > 0, rng.random((7, 7)), np.inf)

    def total(places):
        return sum(cost[i, j] for i, j in itertools.pairwise(places))

    ways = [(0, *between, 6) for between in itertools.combinations(range(1, 6), steps - 1)]
    assert tuple(cheapest(cost, steps)) == min(ways, key=total)


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "denoised"), ("ddpm", "noise")])
def test_a_cost_is_what_one_step_is_off_by(path, predicts):
    model = ds.adapt(Net(), path, predicts)
    x, teacher = noise() * model.path.prior_std(), ds.plan(path, "unipc-3", nfe=5)
    found = costs(model, Noises(x, {}, Guidance(1.0)), teacher)
    run = ds.solve(model, noise=x, solver=teacher, trajectory="calls")
    for i, j in ((0, 1), (1, 4), (2, 5)):
        times = [teacher.calls[k, 0] if k < 5 else teacher.times[-1] for k in (i, j)]
        step = ds.solvers.named("ab-1(frame='straight')")(model.path, times)
        there = ds.sample(model, noise=run.trajectory[i], solver=step)
        assert found[i, j] == pytest.approx(float((there - run.trajectory[j]).norm(dim=1).mean()), rel=1e-6)
    assert np.isinf(found[np.tril_indices(6)]).all()


TURN = ds.adapt(lambda x, t: torch.tanh(30 * (t - 0.3))[:, None] + 0 * x, "condot", "velocity")
"""Its slope changes at one time, where steps must be short."""


def test_the_times_are_the_teachers_where_the_slope_changes():
    teacher = ds.plan("condot", "euler", steps=50)
    cost = costs(TURN, Noises(noise(4), {}, Guidance(1.0)), teacher)
    (run,) = starts(TURN, cost, teacher, 6, ("ddim",), "gits")
    assert set(run.tableau.times) <= {*teacher.times}
    assert (np.abs(run.tableau.times[1:-1] - 0.3) < 0.15).all()


def test_as_a_method_of_tune():
    options = {"method": "gits", "teacher": 60, "seed": 0, "dtype": torch.float64, "solver": "ddim"}
    tuning = fit(TURN, (16, 2), nfe=5, **options)
    assert tuning.improved
    assert tuning.tableau == ds.plan(TURN, "ddim", grid=tuning.tableau.times)
    assert tuning.after.value < 0.3 * tuning.before.value
    assert (tuning.losses, tuning.validation) == ((), ())
    with pytest.raises(ValueError, match="iterations must be left out with method='gits', got 5"):
        fit(TURN, (8, 2), nfe=5, iterations=5, **options)
    with pytest.raises(ValueError, match="nfe must be given with method='gits'"):
        fit(TURN, (8, 2), **options)
