"""Solvers: order by proof and by measurement, agreement with plain loops, finiteness, and that mutants die."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import PATHS
from support.loops import LOOPS, Schedule
from support.orders import INTERIOR, TIMES, measured_order
from support.product import shares, shown
from support.solvers import KINDS, NAMES
from support.weights import composition

import diffsolve as ds
from diffsolve import paths
from diffsolve.noise import Key, Stream
from diffsolve.reference import mixture_model
from diffsolve.solvers import Multistep, UniPC
from diffsolve.solvers.integrals import phi
from diffsolve.solvers.runge_kutta import RK4, Butcher, RungeKutta
from diffsolve.tableau.frames import FRAMES, VARIABLES

RK = ["euler", "heun", "midpoint", "ralston", "rk4"]
ONE_STEP = [f"{name}(frame={frame!r})" for name in RK for frame in FRAMES]
STOCHASTIC = [name for name in NAMES if ds.plan("vp", name, steps=12).stochastic]
SPECS = [
    *(*NAMES, *ONE_STEP, "ddim(eta=1.0)", "unipc-3(frame='noise')", "unipc-3(lower_final=False)"),
    *("dopri5(frame='noise')", "tsit5(frame='native')", "dopri8(frame='denoised')"),
    *(f"{name}(frame='noise')" for name in ("res-2s", "res-3s", "etdrk-4s", "res-5s")),
]
KEY = Key(5)


def loop_result(spec, path, times, mixture, x):
    """The answer of the plain loop of that solver."""
    path = paths.named(path)
    sched = Schedule(path)

    def D(x, t):
        a, s = sched(t)
        return mixture.expectations(x, a, s)[0]

    def at_data(x, t, v):  # sigma = 0: only a velocity network gets here
        data, eps = mixture.expectations(x, *sched(t))
        return {True: eps - data, False: math.cos(v) * eps - math.sin(v) * data}["straight" in spec]

    loop = LOOPS[spec]
    loop.at_data = at_data
    noise = lambda i: KEY.normal(x.shape, row=i + 1, stream=Stream.ROW, dtype=x.dtype)  # noqa: E731
    return loop(sched, D, x, times, noise)


@pytest.mark.product({"path": list(TIMES), "specs": [list(LOOPS)]}, some={"specs": shares(list(LOOPS), len(TIMES))})
def test_agrees_with_the_loop_of_its_paper(specs, path, mixture):
    predicts = {"edm": "denoised", "ddpm": "noise", "vp": "v", "condot": "velocity"}[path]
    model = mixture_model(mixture, path, predicts)
    x = 2 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * model.path.prior_std()
    for spec in shown(specs):
        ours = ds.sample(model, noise=x, solver=spec, grid=TIMES[path], seed=5)
        expected = loop_result(spec, path, TIMES[path], mixture, x)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.product({"spec": list(LOOPS)}, some={"spec": list(LOOPS)[::3]})
def test_mutants_die(spec, mixture):
    """A relative change of 1e-4 in any one weight is caught, by the tableau's own check or by the plain loop.

    So is any pair of weights of a row changed so that constants stay exact, which only the loop can catch.
    """
    path = "vp"
    tableau = ds.plan(path, spec, grid=TIMES[path])
    model = mixture_model(mixture, path, "v")
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = loop_result(spec, path, TIMES[path], mixture, x)

    def caught(weights):
        try:
            mutant = replace(tableau, weights=weights)
        except ValueError:
            return True
        result = ds.sample(model, noise=x, solver=mutant, seed=5)
        return bool(((result - expected).abs() > 1e-10).any())

    assert not caught(tableau.weights)
    places = np.argwhere(tableau.weights)
    for i, side, column in places:
        if side == 0 and i + 1 == tableau.nfe:
            continue  # the state after the last call is not read
        weights = tableau.weights.copy()
        weights[i, side, column] *= 1 + 1e-4
        if np.array_equal(tableau.weights[i, 0], tableau.weights[i, 1]):
            weights[i] = weights[i, 1] if side else weights[i, 0]
        assert caught(weights), f"weights[{i}, {side}, {column}]"
    for i in range(tableau.nfe):
        d = [c for c in range(2, 2 + tableau.history) if tableau.weights[i, :, c].any()]
        for one, two in zip(d, d[1:], strict=False):
            weights = tableau.weights.copy()
            weights[i, :, one] += 1e-3
            weights[i, :, two] -= 1e-3
            assert caught(weights), f"weights[{i}, :, {one} and {two}]"


@pytest.mark.product({"name": RK[1:], "frame": list(FRAMES)}, each=2)
def test_runge_kutta_order_conditions_on_the_weights_used(name, frame):
    tableau = ds.plan("vp", f"{name}(frame={frame!r})", grid=[0.7, 0.4])
    A, b = composition(tableau)
    c = A.sum(1)
    conditions = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 1 / 2)],
        3: [(b @ c**2, 1 / 3), (b @ A @ c, 1 / 6)],
        4: [(b @ c**3, 1 / 4), (b * c @ A @ c, 1 / 8), (b @ A @ c**2, 1 / 12), (b @ A @ A @ c, 1 / 24)],
    }
    order = ds.solvers.named(name).order
    for k in range(1, order + 1):
        for found, wanted in conditions[k]:
            assert found == pytest.approx(wanted, abs=1e-12)
    if order < 4:
        assert any(abs(found - wanted) > 1e-3 for found, wanted in conditions[order + 1])
    # And each stage is called where its row sum says.
    f = FRAMES[frame]
    v = [f.v(paths.Position(*row, math.nan, math.nan)) for row in (*tableau.calls, tableau.grid[-1])]
    np.testing.assert_allclose((np.array(v[:-1]) - v[0]) / (v[-1] - v[0]), c, atol=1e-12)


@pytest.mark.product(
    {
        "variable": [None, *VARIABLES],
        "frame": ["denoised", "noise", "straight", "trig", "lambda", "native"],
        "points, corrector": [(1, 0), (2, 0), (3, 0), (4, 0), (6, 0), (2, 3), (3, 4)],
    },
    each=4,
)
def test_multistep_weights_are_exact_for_polynomials(frame, variable, points, corrector):
    """With d any polynomial of degree < p in the variable, each step past the start gives the exact integral."""
    mpmath = pytest.importorskip("mpmath")
    path = paths.VP()
    grid = path.nodes(np.array([0.8, 0.7, 0.62, 0.5, 0.42, 0.35, 0.25, 0.2, 0.1]))
    tableau = Multistep(points, frame, variable, corrector)(path, grid.t)
    f = FRAMES[frame]
    w = f.v if variable is None else VARIABLES[variable]
    degree = max(points, corrector) - 1 if corrector else points - 1
    values = (w(grid) - w(grid).min()) / np.ptp(w(grid))

    def exact(i, power):
        """The integral of w^power dv over step i, to many digits, by Gauss-Legendre in pieces of t."""
        x, mass = np.polynomial.legendre.leggauss(40)
        t = grid.t[i] + (grid.t[i + 1] - grid.t[i]) * (x + 1) / 2
        p = path.nodes(t)
        dv = f.slope(p) * (p.alpha * p.dsigma - p.sigma * p.dalpha) / (p.alpha**2 + p.sigma**2)
        inner = (w(p) - w(grid).min()) / np.ptp(w(grid))
        return (inner**power * dv * mass).sum() * (grid.t[i + 1] - grid.t[i]) / 2

    del mpmath
    for power in range(points):
        s = y = 1.0 * f.c(grid[0])  # z = 1
        z, d = 1.0, np.zeros(tableau.history)
        for i in range(tableau.nfe):
            d = np.append(values[i] ** power, d[:-1])
            before = s if corrector else y
            s, y = tableau.weights[i] @ np.array([s, y, *d, 0.0])
            z_before = before / f.c(grid[max(i - bool(corrector), 0)])
            # The state that the step starts from is on the exact solution once enough values are known.
            if i + 1 >= points:
                start = s / f.c(grid[i]) if corrector and i + 1 < tableau.nfe else None
                if start is None and not corrector:
                    start = z_before
                if start is not None:
                    assert y / f.c(grid[i + 1]) - start == pytest.approx(exact(i, power), rel=1e-9, abs=1e-11)
            if corrector and power <= degree and i >= corrector - 1 and i + 1 < tableau.nfe:
                assert s / f.c(grid[i]) - z_before == pytest.approx(exact(i - 1, power), rel=1e-9, abs=1e-11)
        del z


DECLARED = [
    *(*(name for name in NAMES if name not in STOCHASTIC), *ONE_STEP),
    *("ab-2(frame='trig')", "ab-3(frame='noise', variable='t')", "ab-3(frame='denoised', variable='lambda')"),
    *("ab-2(corrector=2)", "ab-2(corrector=3)", "ab-3(corrector=4)"),
    *(f"unipc-{p}(lower_final=False)" for p in (1, 2, 3)),
    "unipc-3(bh='bh1', lower_final=False)",
]


FEW = [solver for solver in DECLARED if solver in KINDS or "(" in solver][::4]  # the order conditions are held for all


@pytest.mark.product({"solver": DECLARED, "path": list(INTERIOR)}, some={"solver": FEW})
def test_order_between_interior_times(solver, path, mixture):
    start, stop, predicts = INTERIOR[path]
    declared = ds.solvers.named(solver).order
    steps = {1: (128, 256), 2: (256, 512), 3: (384, 768), 4: (48, 96), 5: (48, 72), 8: (8, 12)}[declared]
    measured = measured_order(mixture, path, predicts, solver, start, stop, steps)
    assert measured > declared - 0.15
    # Orders above 4 meet the rounding of float64 before their slope settles from above; test_exponential proves them.
    assert measured < declared + 0.15 or declared > 4


TO_THE_DATA = {  # (path, network, solver): the order down to sigma = 0
    ("condot", "velocity", "rk4"): 4,
    ("condot", "velocity", "rk4(frame='trig')"): 4,
    ("condot", "velocity", "rk4(frame='native')"): 4,
    ("condot", "velocity", "rk4(frame='noise')"): 2,
    ("condot", "velocity", "heun"): 2,
    ("condot", "velocity", "ab-2"): 2,
    ("condot", "velocity", "euler"): 1,
    ("condot", "denoised", "rk4"): 2,
    ("edm", "denoised", "ab-2"): 2,
    ("edm", "denoised", "rk4"): 0,
}


@pytest.mark.parametrize(("path", "predicts", "solver"), list(TO_THE_DATA))
def test_order_down_to_the_data(path, predicts, solver, mixture):
    """A regular frame keeps its order at sigma = 0; a first-order last step there has error h^2.

    On EDM the last step, from sigma_min, does not shrink with the number of steps: order 0, at a tiny error.
    """
    start, _, _ = INTERIOR[path]
    steps = (24, 48) if "rk4" in solver else (128, 256)
    grid = "uniform-u" if path == "condot" else "uniform-theta"
    order = measured_order(mixture, path, predicts, solver, start, paths.named(path).t_data, steps, grid)
    assert order == pytest.approx(TO_THE_DATA[path, predicts, solver], abs=0.2)


def test_phi():
    mpmath = pytest.importorskip("mpmath")
    for z in (-20.0, -3.0, -1e-3, -1e-9, 0.5):
        for k in (1, 2, 3):
            with mpmath.workdps(60):
                exact = (mpmath.e**z - sum(mpmath.mpf(z) ** j / mpmath.factorial(j) for j in range(k))) / mpmath.mpf(
                    z
                ) ** k
            assert phi(k, z) == pytest.approx(float(exact), rel=1e-12)


def test_equivalences(mixture):
    """What the docstrings call the same is the same."""
    times = TIMES["vp"]
    table = lambda spec: ds.plan("vp", spec, grid=times)  # noqa: E731
    model, x = mixture_model(mixture, "vp", "v"), torch.randn(4, 2, dtype=torch.float64)
    run = lambda spec: ds.sample(model, noise=x, solver=spec, grid=times)  # noqa: E731
    for spec in ("euler", "euler(frame='noise')", "euler(frame='denoised')", "dpmpp-2m(lower_final=True)"):
        if "dpm" not in spec:
            torch.testing.assert_close(run(spec), run("ddim"), rtol=1e-12, atol=1e-12)
    two_m, unip = table("dpmpp-2m"), UniPC(2, corrector=0, lower_final=False)(paths.VP(), times)
    np.testing.assert_allclose(unip.weights, two_m.weights, rtol=1e-12, atol=1e-14)
    exact = table("ab-3(frame='denoised', variable='lambda')")
    np.testing.assert_allclose(
        UniPC(3, corrector=0, lower_final=False)(paths.VP(), times).weights[3:], exact.weights[3:], rtol=1e-12
    )
    assert not np.allclose(table("dpmpp-3m").weights, exact.weights, rtol=1e-3)
    own = RungeKutta(Butcher("mine", RK4.a, RK4.b, 4), "trig")
    torch.testing.assert_close(run(own), run("rk4(frame='trig')"), rtol=0, atol=0)


def test_histories_are_as_small_as_the_methods_allow():
    wanted = {
        **dict.fromkeys(["euler", "heun", "midpoint", "ralston", "ddim"], 1),
        **{"rk4": 2, "ab-3": 3, "dpmpp-2m": 2, "dpmpp-3m": 3, "unipc-1": 2, "unipc-3": 4},
    }
    for name, history in wanted.items():
        assert ds.plan("condot", name, steps=8).history == history, name


@pytest.mark.product({"path": PATHS, "specs": [SPECS]}, some={"specs": shares(SPECS, len(PATHS))})
def test_finite_for_any_number_of_steps_in_both_directions(specs, path):
    """The rule for the ends: sigma = 0 and alpha = 0 make no NaN, and every row passes its own check."""
    path = paths.named(path)
    for spec in shown(specs):
        solver = ds.solvers.named(spec)
        stochastic = spec in (*STOCHASTIC, "ddim(eta=1.0)")
        for steps in (1, 2, 3, 4, 5, 8, 17):
            tableau = ds.plan(path, solver, steps=steps)
            tables = [tableau]
            if not stochastic and steps in (1, 2, 3, 8):
                tables.append(solver(path, tableau.times[::-1]))
            for table in tables:
                for array in (table.weights, table.d):
                    assert np.isfinite(array).all()
                assert table.steps == steps
                nodes = list(range(1, steps + 1))
                assert table.node[table.node >= 0].tolist() == (nodes[-1:] if spec.startswith("edm-") else nodes)
            called = tableau.calls[:, 0]
            assert path.t_last == path.t_data or path.t_data not in called


NETWORKS = [
    *(("condot", predicts) for predicts in ("velocity", "denoised")),
    *(("edm", "denoised"), ("cosine", "v"), ("ddpm(zero_terminal_snr=True)", "v"), ("ddpm", "noise"), ("ve", "score")),
]


@pytest.mark.product({"path, predicts": NETWORKS, "specs": [SPECS]}, some={"specs": shares(SPECS, len(NETWORKS))})
def test_samples_are_finite_down_to_the_data(specs, path, predicts, mixture):
    model = mixture_model(mixture, path, predicts)
    for spec in shown(specs):
        for steps in (1, 2, 5):
            x = ds.sample(model, (7, 2), solver=spec, steps=steps, seed=0)
            assert x.isfinite().all()


@pytest.mark.product({"eta": [0.0, 0.3, 0.7, 1.0], "path": ["edm", "ddpm", "condot", "vp"]}, each=2)
def test_ddim_keeps_the_marginals_of_a_point(eta, path):
    """For data at a point D is constant, and each step must carry N(alpha x_0, sigma^2) into the next one exactly."""
    path = paths.named(path)
    tableau = ds.plan(path, f"ddim(eta={eta})", steps=9)
    for i, (s, t) in enumerate(zip(tableau.grid, tableau.grid[1:], strict=False)):
        on_s, on_y, on_d, on_z = tableau.weights[i, 1]
        on_x = on_s + on_y
        if tableau.frame[i] == "denoised":
            assert on_x * s[1] + on_d == pytest.approx(t[1], abs=1e-12)
            assert (on_x * s[2]) ** 2 + on_z**2 == pytest.approx(t[2] ** 2, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.solvers.named("uni-pc-3"), "solver must be one of .*, got 'uni-pc-3'; did you mean 'unipc-3'"),
        (lambda: ds.solvers.named("ddim(etta=1)"), "has no option 'etta'"),
        (lambda: ds.solvers.named("ddim(eta=1.5)"), "eta must be a finite number >= 0 and <= 1, got 1.5"),
        (lambda: ds.solvers.named("heun(frame='sigma')"), "frame must be 'denoised', 'noise', .* got 'sigma'"),
        (lambda: Multistep(0), "points must be an integer from 1 to 8, got 0"),
        (lambda: Multistep(2, variable="tau"), "variable must be .* or None, got 'tau'"),
        (lambda: UniPC(2, frame="straight"), "frame must be 'denoised' or 'noise', got 'straight'"),
        (lambda: UniPC(2, bh="bh3"), "bh must be 'bh1' or 'bh2', got 'bh3'"),
        (lambda: Butcher("bad", ((), (1,)), (1, 1), 2), "b must be weights of sum 1"),
        (lambda: Butcher("bad", ((), (1, 2)), (0, 1), 2), "rows of 0, 1"),
        (lambda: Butcher("bad", ((), (2,)), (0, 1), 2), "no stage leaves the step"),
        (lambda: ds.plan("edm", "heun", nfe=0), "nfe must be an integer >= 1, got 0"),
        (lambda: ds.plan("condot", "rk4", nfe=3), "nfe must be at least 4 for .* here, got 3"),
        (
            lambda: ds.plan("edm", "euler", steps=3, nfe=3),
            "exactly one of steps and nfe must be given, got steps=3, nfe=3",
        ),
        (lambda: ds.plan("edm", "euler"), "exactly one of steps and nfe must be given, got none"),
        (lambda: ds.solvers.named("ddim(eta=1.0)")(paths.EDM(), [0.002, 80.0]), "only eta=0 runs from the data"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


BUDGETS = ["edm", "condot", "ddpm"]


@pytest.mark.product(
    {"path": BUDGETS, "solvers": [ds.solvers.names()]}, some={"solvers": shares(ds.solvers.names(), len(BUDGETS))}
)
def test_the_budget_of_calls_is_kept_and_used(solvers, path):
    for solver in shown(solvers):
        step = ds.solvers.named(solver).calls
        for nfe in (*range(max(4, step), 9), 17):
            made = ds.plan(path, solver, nfe=nfe).nfe
            assert nfe - step < made <= nfe or (solver in ("repaint", "restart") and made <= nfe)
