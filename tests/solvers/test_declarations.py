"""What solvers say of themselves: their order, their points, the clock of their rows, their variables."""

import math
from fractions import Fraction as F

import pytest

import diffsolve as ds
from diffsolve import paths
from diffsolve.solvers import DPMpp, butcher
from diffsolve.solvers.butcher import Butcher
from diffsolve.tableau.frames import VARIABLES

METHODS = [value for value in vars(butcher).values() if isinstance(value, Butcher)]


def trees(method):
    """order -> the sums of its rooted trees, less what they must be, up to order 4."""
    b, a = [F(x) for x in method.b], [[F(x) for x in row] for row in method.a]
    c = [sum(row, F(0)) for row in a]
    inner = lambda v: [sum((w * x for w, x in zip(row, v, strict=False)), F(0)) for row in a]  # noqa: E731
    dot = lambda v: sum((w * x for w, x in zip(b, v, strict=True)), F(0))  # noqa: E731
    square = [x * x for x in c]
    return {
        1: [dot([F(1)] * len(b)) - 1],
        2: [dot(c) - F(1, 2)],
        3: [dot(square) - F(1, 3), dot(inner(c)) - F(1, 6)],
        4: [
            dot([x**3 for x in c]) - F(1, 4),
            dot([x * y for x, y in zip(c, inner(c), strict=True)]) - F(1, 8),
            dot(inner(square)) - F(1, 12),
            dot(inner(inner(c))) - F(1, 24),
        ],
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_declared_order_is_the_order(method):
    """Neither less nor more, as far as four; dopri8's coefficients are published with sixteen digits."""
    exact = max(k for k, sums in trees(method).items() if k == 1 or all(abs(s) < 1e-14 for s in sums))
    kept = [k for k in range(1, 5) if all(abs(s) < 1e-14 for j in range(1, k + 1) for s in trees(method)[j])]
    assert min(method.order, 4) == max(kept) <= exact


def test_a_step_that_is_not_corrected_costs_order_where_it_has_one_value():
    assert ds.solvers.named("abm-3(uncorrected=(0,))").order == 2
    assert ds.solvers.named("abm-3(start='rk4', uncorrected=(0,))").order == 4
    assert ds.solvers.named("abm-3(uncorrected=(-1,))").order == ds.solvers.named("abm-3").order


def test_dpmpp_has_at_most_three_points():
    with pytest.raises(ValueError, match="1 or 2 points, or 3 in lambda"):
        DPMpp(4)


def test_rows_without_noise_have_no_clock():
    clock = ds.plan("vp", "ddim(eta=1)", steps=4).clock
    assert (clock[:-1, 1] > clock[:-1, 0]).all()
    assert clock[-1].tolist() == [0.0, 0.0]
    assert not ds.plan("vp", "ddim", steps=4).clock.any()


def test_the_variable_of_the_designed_weights():
    at = paths.EDM().nodes([80.0, 1.0, 0.01])
    expected = [math.atan(80.0**0.5), math.pi / 4, math.atan(0.1)]
    assert VARIABLES["arc"](at).tolist() == pytest.approx(expected, rel=1e-15)


def test_the_variable_of_karras():
    at = paths.EDM().nodes([80.0, 2.0])
    assert VARIABLES["rho7"](at).tolist() == pytest.approx([80.0 ** (1 / 7), 2.0 ** (1 / 7)], rel=1e-15)


def test_noise_is_not_added_towards_the_noise_however_short_the_step():
    with pytest.raises(ValueError, match="from the (data to|noise)"):
        ds.solvers.named("ddim(eta=0.5)")(paths.EDM(), [1.0, 1.5])
