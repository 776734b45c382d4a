"""Designed solvers: exact for constants, the least-squares solution of their world, and near the data's own flow."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import diffsolve as ds
from diffsolve import paths
from diffsolve.grids import Arc
from diffsolve.reference import imperfect_model
from diffsolve.reference.mixture import GaussianMixture, random_means
from diffsolve.solvers import Designed, Multistep
from diffsolve.solvers.designed import STEPS, ArcOf, rows
from diffsolve.solvers.world import World, world
from diffsolve.tableau.frames import PREDICTIONS

CASES = {
    "noise": "ddpm",
    "score": "ve",
    "denoised": "edm",
    "edm": "edm",
    "v": "cosine",
    "velocity": "condot",
}
WORLD = (0.03, (0.03, 0.1, 0.3, 1.0), (0.0, 0.5, 1.0), 1.0)


@pytest.fixture(params=CASES)
def case(request):
    path = paths.named(CASES[request.param])
    return world(path, request.param, *WORLD), path, path.nodes(ArcOf(request.param)(path, 7))


def replay(problems, grid, weights):
    """The particles at every node of a run with these weights."""
    u = grid.sigma / (grid.alpha + grid.sigma)
    states, outputs = [problems.at(u[0])], []
    for i, row in enumerate(weights):
        outputs.append(problems.velocity(states[-1], u[i]))
        states.append(states[-1] + sum(w * v for w, v in zip(row, outputs, strict=False)))
    return states


def test_rows_are_exact_for_a_constant_and_short(case):
    problems, path, grid = case
    for history in (1, 2, 4, 7):
        weights = rows(problems, path, grid, history)
        u = grid.sigma / (grid.alpha + grid.sigma)
        np.testing.assert_allclose(weights.sum(1), np.diff(u), rtol=0, atol=1e-15)
        assert not np.triu(weights, 1).any()
        assert not np.tril(weights, -history).any()


def lagrange_means(nodes, start, stop):
    """The means over [start, stop] in u of the Lagrange polynomials in atan(sqrt(u / (1 - u))) through the nodes."""

    def at(u):
        return np.arctan2(np.sqrt(u), np.sqrt(1 - u))

    u = start + (np.arange(20000) + 0.5) / 20000 * (stop - start)
    return [
        np.prod([(at(u) - at(other)) / (at(own) - at(other)) for other in nodes if other != own], axis=0).mean()
        for own in nodes
    ]


def test_rows_against_a_stacked_least_squares(case):
    """Each row again by another formula: the ridge as equations w_j = Adams' w_j, as heavy as their columns."""
    problems, path, grid = case
    weights = rows(problems, path, grid, 4)
    u = grid.sigma / (grid.alpha + grid.sigma)
    states = replay(problems, grid, weights)
    outputs = [problems.velocity(y, at) for y, at in zip(states, u[:-1], strict=False)]
    for i in (1, 2, 4):
        h, used = u[i + 1] - u[i], range(max(0, i - 3), i)
        each = np.hypot(problems.s, problems.m) ** -0.25
        columns = np.stack([(each * h * (outputs[j] - outputs[i])).ravel() for j in used], 1)
        gap = (each * (problems.at(u[i + 1]) - states[i] - h * outputs[i])).ravel()
        three = range(max(0, i - 2), i + 1)
        adams = np.zeros(len(used))
        adams[-(len(three) - 1) :] = lagrange_means([u[j] for j in three], u[i], u[i + 1])[:-1]
        heavy = np.sqrt(1e-3) * np.linalg.norm(columns, axis=0)
        stacked, aim = np.vstack([columns, np.diag(heavy)]), np.concatenate([gap, heavy * adams])
        found = np.linalg.lstsq(stacked, aim, rcond=None)[0]
        np.testing.assert_allclose(weights[i, list(used)], h * found, rtol=0, atol=2e-6 * abs(h))


def test_the_worlds_network_is_the_mixtures_with_an_error_on_the_prediction(case):
    """V of one problem by the exact mixture of `diffsolve.reference`, its own prediction moved by the field."""
    problems, path, _ = case
    row = next(i for i, m in enumerate(problems.m[:, 0]) if m == 0.5)
    s, m = float(problems.s[row, 0]), float(problems.m[row, 0])
    mixture = GaussianMixture.isotropic([[-m], [m]], s)
    lam = 0.3
    p = path.at(path.time(lam))
    alpha, sigma = float(p.alpha), float(p.sigma)
    u, y = sigma / (alpha + sigma), np.full_like(problems.z, 0.4)
    y[row] = np.linspace(-1, 1, len(y[row]))
    x = torch.tensor(y[row]) * (alpha + sigma)
    data, eps = (found[:, 0] for found in mixture.expectations(x[:, None], alpha, sigma))
    a, b = (float(weight) for weight in PREDICTIONS[problems.predicts](p, 0.5))
    unit = np.hypot(1 - u, 0) * np.hypot(s, m), u
    angle = problems.k[row] * (y[row] / np.hypot(*unit))[:, None] + 8 * np.tanh(lam / 8) * problems.omega[row]
    error = torch.tensor((problems.a[row] * np.cos(angle + problems.phase[row])).sum(-1))
    if problems.predicts == "score":
        error = error / sigma
    if problems.predicts == "velocity":
        error = error * max(abs(a), abs(b))
    out = a * data + b * eps + error
    # x = alpha x_0 + sigma eps and out = a x_0 + b eps, solved for both
    found_data, found_eps = (
        (b * x - sigma * out) / (alpha * b - sigma * a),
        (alpha * out - a * x) / (alpha * b - sigma * a),
    )
    expected, sign = (found_eps - found_data).numpy(), 1.0 if alpha * b - sigma * a > 0 else -1.0
    exact = (eps - data).numpy()
    np.testing.assert_allclose(problems.velocity(y, u)[row] - exact, sign * (expected - exact), rtol=1e-3, atol=1e-9)


def test_the_worlds_guidance_is_continuous():
    """Guidance at 1 is none, and a little more changes little."""
    plain, little = (World(paths.named("condot"), "v", 0.0, (0.1,), (1.0,), guidance=w) for w in (1.0, 1.0 + 1e-6))
    np.testing.assert_allclose(little.velocity(little.z, 0.6), plain.velocity(plain.z, 0.6), rtol=0, atol=1e-4)


def test_rows_are_the_least_squares_solution(case):
    """No other weights of a row lead nearer to the flow."""
    problems, path, grid = case
    weights = rows(problems, path, grid, 4)
    u = grid.sigma / (grid.alpha + grid.sigma)
    row = 3

    def squares(change):
        moved = weights[: row + 1].copy()
        moved[row, 1] += change
        moved[row, row] -= change
        error = problems.weight * (replay(problems, grid, moved)[-1] - problems.at(u[row + 1]))
        return (error**2).mean()

    h = abs(u[row + 1] - u[row])
    least = squares(0.0)
    assert squares(0.3 * h) > least
    assert squares(-0.3 * h) > least


def test_a_run_is_the_replay(case):
    """The tableau does to a state what the rows say, on the straight path and on every other."""
    problems, path, grid = case
    tableau = Designed(predicts=problems.predicts)(path, grid.t)
    weights = rows(problems, path, grid, 4)
    c = grid.alpha + grid.sigma
    i = 4
    found = tableau.weights[i, 1]
    assert found[1] == pytest.approx(c[i + 1] / c[i], rel=1e-14)
    kept = found[2:-1]
    np.testing.assert_allclose(kept, c[i + 1] * weights[i, i::-1][: len(kept)], rtol=1e-13, atol=0)


def test_the_world_is_a_flow(case):
    """Its states obey dy/du = V, by differences; twice as fine a solution is the same."""
    problems, _, _ = case
    low, high = problems.low, problems.high
    for lam in np.linspace(low + 0.5, high - 0.5, 5):
        u, e = 1 / (1 + np.exp(lam)), 1e-3
        after, before = (problems.at(1 / (1 + np.exp(lam + d))) for d in (e, -e))
        slope = (after - before) / (2 * e)
        expected = -u * (1 - u) * problems.velocity(problems.at(u), u)
        np.testing.assert_allclose(slope, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("path", [paths.named("condot"), paths.EDM(0.01, 2.0)], ids=["condot", "edm"])
def test_an_exact_world_is_exact(path):
    """Without an error, one Gaussian's flow is y proportional to the square root of its variance, from end to end."""
    problems = World(path, "v", 0.0, (0.3, 1.0), (0.0,))
    for u in (0.6, 0.5, 0.1, 0.01):
        expected = problems.z * np.hypot((1 - u) * problems.size, u)
        np.testing.assert_allclose(problems.at(u), expected, rtol=1e-5)


def test_the_world_against_another_integrator(case):
    """scipy's, in theta, from the state where the run begins."""
    problems, _, _ = case
    u, end = 1 / (1 + np.exp(problems.low)), 1 / (1 + np.exp(problems.high - 2))

    def slope(angle, y):
        at = np.sin(angle) / (np.sin(angle) + np.cos(angle))
        turn = 1 / (np.sin(angle) + np.cos(angle)) ** 2
        return (turn * problems.velocity(y.reshape(problems.z.shape), at)).ravel()

    angles = [np.arctan2(level, 1 - level) for level in (u, end)]
    exact = solve_ivp(slope, angles, problems.at(u).ravel(), method="DOP853", rtol=1e-8, atol=1e-8).y[:, -1]
    error = np.abs(problems.at(end).ravel() - exact)
    assert np.median(error) < 1e-5
    assert error.max() < 2e-3  # of a particle that hesitates between two modes


def test_beyond_its_last_level_the_world_goes_straight_on():
    problems = world(paths.named("condot"), "v", *WORLD)
    slope = (problems.at(0.0) - problems.at(problems.u_last)) / -problems.u_last
    np.testing.assert_allclose(slope, problems.velocity(problems.at(problems.u_last), problems.u_last), atol=1e-9)


def test_the_problems_of_the_world():
    """Four deviations alone, three about +-0.5 and about +-1 (0.3 is at most 0.6 of 0.5), each six times."""
    problems = world(paths.named("condot"), "v", *WORLD)
    kinds = {(float(s), float(m)) for s, m in zip(problems.s[:, 0], problems.m[:, 0], strict=True)}
    few = {(s, m) for s in (0.03, 0.1, 0.3) for m in (0.5, 1.0)}
    assert kinds == {(s, 0.0) for s in (0.03, 0.1, 0.3, 1.0)} | few
    assert problems.z.shape == (60, 6)
    near = World(paths.named("condot"), "v", 0.0, (0.5, 0.8), (1.0,))  # 0.8 is not two modes
    assert set(near.s[:, 0]) == {0.5}


def test_where_no_call_is_made_at_the_data_the_last_step_is_the_last_outputs(case):
    problems, path, grid = case
    last = rows(problems, path, grid, 4)[-1]
    assert bool(last[:-1].any()) == (path.t_last == path.t_data)


def test_many_steps_are_adams():
    path = paths.named("condot")
    tableaux = [Designed()(path, ArcOf()(path, steps)) for steps in (40, 41)]
    few, many = ([list(row) for row in t.weights[5]] for t in tableaux)
    assert len(few[0]) == len(many[0]) + 1  # four outputs, and three
    adams = Multistep(3, "straight", "arc")(path, ArcOf()(path, 41))
    np.testing.assert_array_equal(tableaux[1].weights, adams.weights)


def test_guidance_leads_to_the_wanted_mode():
    ends = [World(paths.named("condot"), "v", 0.0, (0.1,), (1.0,), guidance=w) for w in (1.0, 3.0)]
    wanted = [float((np.sign(e.at(0.0)) == e.sign).mean()) for e in ends]
    assert wanted[0] < 0.7
    assert wanted[1] > 0.85


@pytest.mark.parametrize("predicts", CASES)
def test_better_than_every_named_solver_at_few_calls(predicts):
    """On a mixture and a field of their own; named solvers on the designed ones' grid and on their own."""
    model = imperfect_model(random_means(6, modes=4, std=0.2, seed=5), CASES[predicts], predicts, delta=0.05, seed=3)
    x = torch.randn((64, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * model.path.prior_std()
    exact = ds.sample(model, noise=x, solver="unipc-3", grid=STEPS[predicts].arc, nfe=200)

    def error(**options):
        return float((ds.sample(model, noise=x, nfe=6, **options) - exact).norm(dim=1).mean())

    named = [
        error(solver=s, **g)
        for s in ("ddim", "dpmpp-2m", "unipc-3", "deis-2", "heun")
        for g in ({}, {"grid": STEPS[predicts].arc})
    ]
    assert error(solver="designed") < 1.15 * min(named)


def test_both_ways_and_from_anywhere():
    model = imperfect_model(random_means(4), "condot", "v", delta=0.0)
    x = ds.sample(model, (16, 4), solver="designed", nfe=20, seed=0, dtype=torch.float64)
    back = ds.encode(model, x, solver="designed", nfe=20)
    again = ds.sample(model, noise=back, solver="designed", nfe=20)
    assert (again - x).norm() < 0.02 * x.norm()
    half = ds.plan(model, "designed", steps=6, start=0.3, stop=0.8)
    assert half.times[0] == 0.3
    assert half.times[-1] == 0.8


def test_the_grid_goes_with_the_prediction():
    assert Designed().grid == ArcOf("v")
    assert Designed(predicts="noise").grid == ArcOf("noise")
    path = paths.named("ddpm")
    assert (ArcOf("noise")(path, 40) == STEPS["noise"].arc(path, 40)).all()
    assert (ArcOf("v")(path, 4) == STEPS["v"].arc(path, 4)).all()
    larger = ArcOf("edm", 100)(path, 40)
    assert (larger == replace(STEPS["edm"].arc, scale=0.45 * 4**0.4)(path, 40)).all()


@pytest.mark.parametrize(("predicts", "steps", "last"), [("noise", 5, 1.8), ("score", 8, 3.9), ("edm", 3, 0.2)])
@pytest.mark.parametrize("size", [None, 3000])
def test_few_steps_end_before_the_last_time_of_the_path(predicts, steps, last, size):
    path = paths.named("vp")
    times = ArcOf(predicts, size)(path, steps)
    assert len(times) == steps + 1
    assert times[-1] == path.t_data
    assert float(path.lam(times[-2])) == pytest.approx(last)
    part = ArcOf(predicts, size).nodes(path, steps, path.t_noise, float(path.time(3.0)))
    assert float(path.lam(part[-1])) == pytest.approx(3.0)
    assert float(path.lam(part[-2])) < 2.5
    near = ArcOf(predicts, size).nodes(path, steps, float(path.time(last - 0.5)), None)
    assert len(near) == steps + 1
    assert near[-2] == pytest.approx(path.t_last)
    assert (np.diff(path.nodes(near[:-1]).lam) > 0).all()
    assert (ArcOf(predicts, size)(path, 1) == [path.t_noise, path.t_data]).all()


def test_an_arc_is_between_theta_and_lambda():
    path = paths.named("condot")
    np.testing.assert_allclose(Arc(1.0, 1.0)(path, 9), ds.grids.named("uniform-theta")(path, 9), atol=1e-12)
    path = paths.named("edm")
    np.testing.assert_allclose(Arc(1.0, 1e-4)(path, 9), ds.grids.named("uniform-lambda")(path, 9), rtol=1e-5)
    np.testing.assert_allclose(Arc(0.5, 1.0, even=1e6)(path, 9), ds.grids.named("uniform-lambda")(path, 9), rtol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "condot", "edm"])
def test_the_steps_per_lambda_of_an_arc(name):
    """even + power / (2 cosh(power (lambda + log scale))), on average over each step."""
    from scipy.integrate import quad

    path, arc = paths.named(name), Arc(0.7, 0.9, even=0.3)
    lam = path.nodes(arc(path, 12)[1:-1]).lam
    steps = [quad(lambda x: 0.3 + 0.45 / np.cosh(0.9 * (x + np.log(0.7))), a, b)[0] for a, b in itertools.pairwise(lam)]
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predicts": "data"}, "predicts must be .*, got 'data'"),
        ({"delta": -1.0}, "delta must be .*, got -1.0"),
        ({"history": 0}, "history must be an integer >= 1, got 0"),
        ({"spread": ()}, "spread must be a tuple of numbers"),
        ({"spread": (0.0,)}, "spread must be numbers > 0"),
        ({"spread": (1.0,), "modes": (0.5,)}, "modes must be with 0 or some mode"),
        ({"guidance": float("nan")}, "guidance must be"),
    ],
)
def test_errors_name_what_is_wrong(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Designed(**options)
