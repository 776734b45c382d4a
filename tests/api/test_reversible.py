"""A solver that is its own inverse: the round trip, its order, and mutants."""

from dataclasses import replace

import pytest
import torch

import diffsolve as ds
from diffsolve.api import reversible
from diffsolve.execute import State
from diffsolve.execute.plan import plan_back
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring

PREDICTS = {"condot": "velocity", "edm": "denoised", "vp": "noise"}


@pytest.mark.parametrize("frame", ["trig", "straight"])
@pytest.mark.parametrize("path", PREDICTS)
def test_the_round_trip_closes_to_rounding(path, frame):
    mixture = ring()
    model, x = mixture_model(mixture, path, PREDICTS[path]), mixture.sample(16, seed=0)
    for steps in (10, 50):
        pair = reversible.encode(model, x, steps=steps, frame=frame)
        assert (reversible.decode(model, pair, steps=steps, frame=frame) - x).abs().max() < 1e-12
    # An ordinary method of that order, for comparison.
    z = ds.encode(model, x, solver="heun", steps=50, grid="angle")
    assert (ds.sample(model, noise=z, solver="heun", steps=50, grid="angle") - x).abs().max() > 1e-5


def test_the_latent_has_order_two(mixture):
    model, x = mixture_model(mixture, "condot", "velocity"), mixture.sample(16, seed=0)
    exact = mixture.flow(x, (1.0, 0.0), (0.0, 1.0))
    for state in (0, 1):
        errors = [(reversible.encode(model, x, steps=n)[state] - exact).abs().max() for n in (80, 160)]
        assert 3 < errors[0] / errors[1] < 5.5


def test_a_wrong_weight_breaks_the_round_trip():
    mixture = ring()
    model = mixture_model(mixture, "condot", "velocity")
    table = plan_back(model, reversible.ReversibleHeun(), steps=8, grid="angle")
    weights = table.weights.copy()
    weights[3, :, 2] *= 1 + 1e-4
    with pytest.raises(ValueError, match="is off by"):
        replace(table, weights=weights)


@pytest.mark.parametrize("path", PREDICTS)
def test_by_name_it_is_the_same_solver(path):
    """`reversible.decode` from a pair of equal states is `ds.sample`, but for the last step to the data."""
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    last = None if path == "condot" else model.path.t_last
    x = ds.Key(0).normal((4, 2), dtype=torch.float64) * model.path.prior_std()
    run = ds.solve(model, noise=x, solver="reversible-heun", steps=9, grid="angle", stop=last)
    alpha = float(model.path.alpha(run.times[-1]))
    assert torch.equal(reversible.decode(model, (x, x), steps=9), run.x / alpha)
    state = State(0, run.x, run.state.s, (), run.state.key)
    again = ds.solve(model, solver=plan_back(model, "reversible-heun", steps=9, grid="angle"), state=state)
    assert (again.x - x).abs().max() < 1e-12 * model.path.prior_std()
    # To the data: one call more, from the state that the pair closes to.
    full = ds.solve(model, noise=x, solver="reversible-heun", steps=10, grid="angle")
    assert full.nfe == 11


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="frame must be .* got 'polar'"):
        reversible.ReversibleHeun("polar")
