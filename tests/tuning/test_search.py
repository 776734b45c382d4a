"""The search for a solver and a grid: what alike means, and that few runs find what many would."""

import math

import numpy as np
import pytest

import diffsolve as ds
from diffsolve.tuning.search import Search, likeness
from diffsolve.tuning.space import OWN, space


def test_likeness_counts_the_properties_in_which_any_differ():
    described = [{"kind": 1, "points": 2, "same": 0}, {"kind": 1, "points": 3, "same": 0}, {"kind": 2, "same": 0}]
    np.testing.assert_array_equal(likeness(described), [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(likeness(described[:1] * 2), np.ones((2, 2)))


def covariance_of(*pairs):
    return Search(pairs, [1.0] * len(pairs)).covariance - 100


def test_pairs_are_alike_by_solver_and_by_grid():
    found = covariance_of(("ab-2", "karras"), ("ab-2", "uniform-t"), ("ab-3", "karras"), ("ab-3", "uniform-t"))
    expected = np.array([[7, 3, 3, 0], [3, 7, 0, 3], [3, 0, 7, 3], [0, 3, 3, 7]])
    np.testing.assert_allclose(found, expected)
    near = covariance_of(("ab-2", "karras"), ("ab-2", "karras(rho=5)"), ("ab-2", "uniform-t"))
    assert near[0, 1] > near[0, 2]
    np.testing.assert_allclose(covariance_of(OWN, ("auto", "karras"))[0], [7, 3])


def test_paper_orders_what_was_not_tried():
    pairs = [("ab-1", "karras"), ("ab-2", "karras"), ("ab-3", "karras")]
    assert Search(pairs, [1.0, 5.0, 2.0]).next({0: 1.0}) == 2
    assert Search(pairs, [1.0, 2.0, 5.0]).next({0: 1.0}) == 1
    assert Search(pairs, [1.0, math.inf, math.nan]).next({0: 1.0}) in (1, 2)


def test_an_error_is_judged_by_what_paper_led_to_expect():
    """Euler errs e times as much where e^1.2 was expected, the other as expected: what is like Euler promises more."""
    pairs = [("ab-1", "karras"), ("ab-1", "uniform-t"), ("unipc-2", "karras"), ("unipc-2", "uniform-t")]
    assert Search(pairs, [math.exp(4), 1.0, 1.0, 1.0]).next({0: math.e, 2: 1.0}) == 1
    assert Search(pairs, [1.0, 1.0, 1.0, 1.0]).next({0: math.e, 2: 1.0}) == 3


def test_a_family_that_errs_less_is_gone_on_with():
    """From two families' first members on two grids, the other member of the better one on the better grid."""
    pairs = [
        ("ab-1", "karras"),
        ("unipc-2", "karras"),
        ("unipc-2", "uniform-t"),
        ("unipc-3", "karras"),
        ("ab-2", "karras"),
    ]
    assert Search(pairs, [1.0] * 5).next({0: 1.0, 1: 0.01, 2: 1.0}) == 3
    assert Search(pairs, [1.0] * 5).next({0: 0.01, 1: 1.0, 2: 1.0}) == 4


@pytest.mark.parametrize("seed", range(3))
def test_few_runs_find_what_many_would(seed):
    """Each option of a solver and of a grid has an effect on the error, with noise and failures; `choose`'s space."""
    pairs, draw = space(), np.random.default_rng(seed)
    effects: dict[object, float] = {}

    def effect(thing):
        options = {"": type(thing), **vars(thing)} if thing else {}
        return sum(effects.setdefault((name, repr(value)), draw.normal()) for name, value in options.items())

    of = [(ds.solvers.named(s), None if g is None else ds.grids.named(g)) for s, g in pairs]
    true = np.exp([effect(s) + effect(g) + 0.1 * draw.normal() for s, g in of])
    true[draw.random(len(true)) < 0.05] = math.inf
    search, errors = Search(pairs, np.exp(draw.normal(size=len(pairs)))), {0: float(true[0])}
    while len(errors) < 40:
        i = search.next(errors)
        assert i not in errors
        errors[i] = float(true[i])
    assert min(errors.values()) <= np.sort(true)[2]  # of 40 out of 400 at random the least is, in the mean, the tenth
