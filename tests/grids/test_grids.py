import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import PATHS

import diffsolve as ds
from diffsolve import grids, paths

SPACED = grids.Spaced, grids.Distilled, grids.Jumps
"""Whose last call is not at the last time."""


@pytest.mark.product({"grid": grids.names(), "path": PATHS})
def test_any_grid_on_any_path(path, grid):
    path, grid = paths.named(path), grids.named(grid)
    for steps in [*range(1, 31), 100]:
        t = grid(path, steps)
        assert t.shape == (steps + 1,)
        assert (np.diff(t) * math.copysign(1, path.t_data - path.t_noise) > 0).all()
        assert t[-1] == path.t_data
        assert t[0] == path.t_noise or getattr(grid, "spacing", "") == "leading"
        if steps > 2 and path.t_last != path.t_data and not isinstance(grid, SPACED):
            assert t[-2] == path.t_last
        assert np.array_equal(t, grid(path, steps))


@pytest.mark.product({"grid": grids.names(), "path": PATHS})
def test_part_of_the_way(path, grid):
    path, grid = paths.named(path), grids.named(grid)
    start, stop = (path.t_noise + w * (path.t_last - path.t_noise) for w in (0.3, 0.8))
    if path.integer:
        start, stop = round(start), round(stop)
    for steps in (1, 2, 7):
        t = grid(path, steps, start=start, stop=stop)
        assert t.shape == (steps + 1,)
        assert t[-1] == stop
        assert t[0] == start


def test_formulas():
    edm, i = paths.EDM(), np.arange(8)
    karras = (80 ** (1 / 7) + i / 7 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(grids.named("karras")(edm, 8), [*karras, 0], rtol=1e-12)
    exponential = np.exp(np.linspace(math.log(80), math.log(0.002), 8))
    np.testing.assert_allclose(grids.named("exponential")(edm, 8), [*exponential, 0], rtol=1e-12)
    np.testing.assert_allclose(grids.named("uniform-t")(paths.CondOT(), 4), [0, 0.25, 0.5, 0.75, 1])
    s = np.linspace(1, 0, 9)
    flow = paths.Rectified(shift=3.0)
    np.testing.assert_allclose(grids.named(flow.grid)(flow, 8), 3 * s / (1 + 2 * s), atol=1e-15)
    np.testing.assert_allclose(grids.named("quadratic")(flow, 8), s**2, atol=1e-15)
    theta = np.arctan2(*(f(grids.named("uniform-theta")(edm, 9, stop=0.002)).numpy() for f in (edm.sigma, edm.alpha)))
    np.testing.assert_allclose(np.diff(theta), np.diff(theta)[0], rtol=1e-9)


def test_spacings_of_a_table():
    path = paths.named("ddpm")
    assert grids.named("trailing")(path, 4).tolist() == [999, 749, 499, 249, -1]
    assert grids.named("leading")(path, 4).tolist() == [750, 500, 250, 0, -1]
    assert grids.named("leading(offset=1)")(path, 4).tolist() == [751, 501, 251, 1, -1]
    assert grids.named("leading")(path, 4, start=500).tolist() == [500, 250, 125, 0, -1]
    assert grids.named("linspace")(path, 4).tolist() == [999, 666, 333, 0, -1]
    assert grids.named("trailing")(path, 1000).tolist() == list(range(999, -2, -1))
    assert all(float(t).is_integer() for n in range(1, 101) for t in grids.named("trailing")(path, n))


def test_own_times_are_used_bit_for_bit(mixture):
    times = [80.0, 10.0, 1.0 / 3.0, 0.0]
    for grid in (times, tuple(times), np.array(times), torch.tensor(times, dtype=torch.float64)):
        tableau = ds.plan("edm", "euler", grid=grid)
        assert tableau.times.tolist() == times
    assert ds.plan("edm", "euler", grid=times, steps=3).steps == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grids.named("karas"), r"grid must be one of .*, got 'karas'; did you mean 'karras'"),
        (lambda: grids.named("karras(rh=3)"), "has no option 'rh'"),
        (lambda: grids.named("karras(rho=0)"), "rho must be a finite number > 0, got 0"),
        (lambda: grids.Uniform("sigmas"), "variable must be 't', 'lambda', .* got 'sigmas'"),
        (lambda: grids.named("karras")(paths.EDM(), 0), "steps must be an integer >= 1, got 0"),
        (lambda: grids.named("karras")(paths.EDM(), 2.5), "steps must be an integer >= 1, got 2.5"),
        (
            lambda: grids.named("karras")(paths.EDM(), 5, start=90.0),
            "start must be between 80.0 and 0.0, the ends of EDM.*, got 90.0",
        ),
        (lambda: grids.named("karras")(paths.EDM(), 5, start=1.0, stop=2.0), "start must be on the noisier side"),
        (lambda: grids.named("trailing")(paths.named("ddpm"), 1001), "at most 1000"),
        (lambda: grids.Spaced("trailing", offset=1), "offset must be 0 but for the spacing 'leading', got 1"),
        (lambda: grids.named("leading(offset='a')"), "offset must be an integer >= 0, got 'a'"),
        (lambda: grids.named("leading(offset=-1)"), "offset must be an integer >= 0, got -1"),
        (lambda: grids.named("leading(offset=0.5)"), "offset must be an integer >= 0, got 0.5"),
        (lambda: ds.plan("edm", "euler", grid=[80.0, 90.0, 0.0]), "strictly"),
        (lambda: ds.plan("edm", "euler", grid=[80.0, 1.0, 1.0]), "strictly"),
        (lambda: ds.plan("edm", "euler", grid=[90.0, 1.0, 0.0]), "times must be between t_noise=80.0"),
        (lambda: ds.plan("edm", "euler", grid=[80.0]), "at least 2 times"),
        (lambda: ds.plan("edm", "euler", grid=[80.0, float("nan"), 0.0]), "strictly"),
        (lambda: ds.plan("edm", "euler", grid=[80.0, 1.0, 0.0], steps=5), "steps must be 2, that of the given grid"),
        (lambda: ds.plan("edm", "euler", grid=[80.0, 1.0, 0.0], nfe=5), "nfe=5 cannot be given with a custom grid"),
        (lambda: ds.plan("edm", "euler", grid=object()), "grid must be a name, a Grid or a list of times, got <object"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


@pytest.mark.product(
    {"grid": grids.names(), "path": ["edm", "ddpm", "condot"], "steps": range(1, 31)},
    some={"steps": [1, 5]},
    over="grid",
)
def test_every_solver_on_every_grid(grid, path, steps):
    """No combination fails; each tableau passes its own check when it is built."""
    path = paths.named(path)
    times = grids.named(grid)(path, steps)
    for name in ds.solvers.names():
        assert np.isfinite(ds.solvers.named(name)(path, times).weights).all(), name


def test_defaults_of_a_class_are_those_of_its_name():
    assert grids.Shifted() == grids.named("shifted")
    assert grids.Power() == grids.named("polynomial")


def test_one_step_that_does_not_move_is_refused():
    class Halting(grids.Grid):
        def nodes(self, path, steps, start, stop):
            return np.array([start, 1.0, 1.0, 0.0])

    with pytest.raises(ValueError, match="steps must be at most the distinct steps of .*, got 3"):
        Halting()(paths.EDM(), 3)


# --------------------------------------------------------------------------------------------- whole rows


@given(
    st.sampled_from(["uniform-lambda", "quadratic", "karras", "uniform-t", "arc", "trailing", "beta"]),
    st.integers(1, 40),
    st.integers(20, 999),
    st.integers(-1, 15),
)
def test_whole_rows_are_distinct_and_near(name, steps, start, stop):
    path = ds.paths.named("ddpm")
    try:
        inner = grids.named(name)(path, steps, start=start, stop=stop)
    except ValueError:
        return  # that grid has no such steps
    times = grids.Whole(grids.named(name))(path, steps, start=start, stop=stop)
    assert times[[0, -1]].tolist() == inner[[0, -1]].tolist()
    free = start - stop - 1
    if steps - 1 > free:
        assert times.tolist() == inner.tolist()
        return
    assert (times == times.round()).all()
    assert (np.diff(times) <= -1).all()
    # A node goes further than the nearest row only where that and all rows on the way are taken.
    for node, row in zip(inner[1:-1], times[1:-1], strict=True):
        between = np.arange(min(row, round(node)), max(row, round(node)) + 1)
        assert set(between[(between > stop) & (between < start)]) <= set(times)


def test_whole_rows_of_a_continuous_clock_are_left_alone():
    path = ds.paths.named("condot")
    plain = grids.named("uniform-theta")
    assert grids.Whole(plain)(path, 7).tolist() == plain(path, 7).tolist()
