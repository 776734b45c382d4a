"""One-step methods: order conditions of both kinds on the weights used, stiff slopes, and the papers' peers."""

import math
from fractions import Fraction
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from support import peers
from support.peers import MIXTURE, distance, start, table
from support.product import shown
from support.weights import composition

import diffsolve as ds
from diffsolve import paths
from diffsolve.reference import mixture_model
from diffsolve.solvers import ExponentialRK, Scheme, butcher
from diffsolve.solvers.exponential import dpm2, dpm3, res2
from diffsolve.solvers.integrals import phi
from diffsolve.solvers.runge_kutta import RungeKutta, low_storage
from diffsolve.tableau.frames import FRAMES

EDM = paths.EDM()

# Rooted trees: the classical order -------------------------------------------------------------------------------

Tree = tuple  # of its root's subtrees, sorted


@lru_cache
def trees(order: int) -> list[Tree]:
    """All rooted trees with that many vertices."""

    def forests(total, largest):
        if total == 0:
            return [()]
        found = []
        for size in range(min(total, largest), 0, -1):
            for count in range(1, total // size + 1):
                for some in combinations_with_replacement(trees(size), count):
                    found += [(*some, *rest) for rest in forests(total - size * count, size - 1)]
        return found

    return forests(order - 1, order - 1)


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * math.prod(map(density, tree))


def stage_values(tree, A):
    """Phi_i(tree): at each stage, the product over subtrees of sum_j a_ij Phi_j."""
    values = [1] * len(A)
    for sub in tree:
        inner = stage_values(sub, A)
        values = [
            v * sum((w * y for w, y in zip(row, inner, strict=False)), 0) for v, row in zip(values, A, strict=True)
        ]
    return values


def defects(A, b, order):
    """sum_i b_i Phi_i(tree) - 1 / density(tree) for the trees of one order."""
    return [
        sum(w * v for w, v in zip(b, stage_values(tree, A), strict=True)) - Fraction(1, density(tree))
        for tree in trees(order)
    ]


METHODS = [butcher.HEUN, butcher.MIDPOINT, butcher.RALSTON, butcher.SSPRK3, butcher.BOSH3, butcher.RK4, butcher.KUTTA38,
           butcher.DOPRI5, butcher.TSIT5, butcher.DOPRI8]  # fmt: skip
DECIMALS = {"tsit5": 1e-14, "dopri8": 1e-25}
"""Methods of published decimals, and how exact those are: 16 digits, entries up to 13; 28 digits, up to 44."""


def test_rooted_trees():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]  # 200 in all
    assert all(size(tree) == n for n in range(1, 9) for tree in trees(n))
    assert sorted(map(density, trees(4))) == [4, 8, 12, 24]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_order_of_the_coefficients(method):
    """Every order condition, in rational arithmetic; and one of the next order fails."""
    assert sum(method.b) == 1
    for order in range(1, method.order + 1):
        for defect in defects(method.a, method.b, order):
            assert abs(defect) <= DECIMALS.get(method.name, 0)
    assert max(map(abs, defects(method.a, method.b, method.order + 1))) > 1e-6


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_order_of_the_weights_used(method):
    for frame in shown(FRAMES):
        A, b = composition(RungeKutta(method, frame)(paths.VP(), [0.7, 0.4]))
        for order in range(1, method.order + 1):
            assert np.abs(np.array(defects(A, b, order), dtype=float)).max() < 1e-12
        for row, wanted in zip(A, method.a, strict=True):
            np.testing.assert_allclose(row[: len(wanted)], [float(w) for w in wanted], atol=1e-11)
        np.testing.assert_allclose(b, [float(w) for w in method.b], atol=1e-11)


def test_published_decimals(mixture):
    """The first columns, which are not written down, are the published ones, and so is a run of DOP853."""
    scipy = pytest.importorskip("scipy.integrate._ivp.dop853_coefficients")
    for i, row in enumerate([*butcher.DOPRI8.a, butcher.DOPRI8.b]):
        np.testing.assert_allclose([float(w) for w in row], scipy.A[i, : len(row)], rtol=0, atol=1e-14)
    np.testing.assert_allclose([float(c) for c in butcher.DOPRI8.c], scipy.C[:12], rtol=1e-15)
    model = mixture_model(mixture, "condot", "velocity")
    x, times = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), [0.0, 0.3, 0.45, 0.9]
    mine = ds.sample(model, noise=x, solver="dopri8", grid=times)
    # Straight on CondOT is z = x by u = 1 - t.
    for t, end in zip(times, times[1:], strict=False):
        k = []
        for row, c in zip([*scipy.A[:12], scipy.B], [*scipy.C[:12], None], strict=True):
            y = x + (end - t) * sum((w * f for w, f in zip(row, k, strict=False)), torch.zeros_like(x))
            if c is not None:
                k.append(model.net(y, torch.full((6,), t + c * (end - t), dtype=torch.float64)))
        x = y
    torch.testing.assert_close(mine, x, rtol=1e-12, atol=1e-12)
    first = [0.161, -0.008480655492356989, 2.8971530571054935, 5.325864828439257, 5.86145544294642, 0.09646076681806523]
    for found, wanted in zip([*butcher.TSIT5.a[1:], butcher.TSIT5.b], first, strict=True):
        assert float(found[0]) == pytest.approx(wanted, abs=5e-15)


def test_ones_own_method(mixture):
    """A tableau of one's own, in a line: Kutta's third-order method."""
    F = Fraction
    mine = ds.solvers.Butcher("kutta3", a=[[], [F(1, 2)], [-1, 2]], b=[F(1, 6), F(2, 3), F(1, 6)], order=3)
    assert not any(d for k in (1, 2, 3) for d in defects(mine.a, mine.b, k))
    model = mixture_model(mixture, "condot", "velocity")
    assert ds.sample(model, (3, 2), solver=ds.solvers.RungeKutta(mine), steps=4, seed=0).isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_thrift_changes_nothing_and_amplifies_little(method):
    """The rows, followed in fractions of z, make the same stages; no state is multiplied by more than 5."""
    rows, b = low_storage([[Fraction(w) for w in row] for row in method.a], [Fraction(w) for w in method.b])
    s, y, count = np.zeros(len(b)), np.zeros(len(b)), len(b)
    for k, (on_s, on_y, on_k) in enumerate(rows):
        assert abs(on_s) <= 5
        assert abs(on_y) <= 4
        assert on_s + on_y == pytest.approx(1, abs=1e-15)
        y = on_s * s + on_y * y + sum(w * np.eye(count)[j] for j, w in on_k.items())
        s = s + b[k] * np.eye(count)[k]
        wanted = np.array([*method.a, method.b][k + 1], dtype=float)
        np.testing.assert_allclose(y[: len(wanted)], wanted, atol=1e-12)
        np.testing.assert_allclose(y[len(wanted) :], 0)


# Hochbruck and Ostermann: the stiff order ------------------------------------------------------------------------

EXPONENTIAL = ["dpm-2s", "dpm-2s(r1=0.3)", "dpm-3s", "dpm-3s(r1=0.2, r2=0.5)", "dpmpp-2s", "dpmpp-3s",
               *(f"{name}(frame={frame!r})" for name in ("res-2s", "res-3s", "etdrk-4s", "res-5s")
                 for frame in ("denoised", "noise")), "res-2s(c2=1.0)", "res-3s(c2=0.3, c3=0.75)"]  # fmt: skip
WEAK = {"res2": 2, "dpm2": 2, "res3": 3, "dpm3": 3, "etdrk4": 3, "res5": 4}
"""The stiff order in the weakened sense: at the top order the conditions hold with b(0) in the place of b(z)."""


def exponential_weights(solver, h):
    """(c, a, b) of one run-time step of length h in lambda, in the units of the module's formulas: sum b = phi_1."""
    times = np.exp([0.0, -h])  # EDM: sigma = e^-lambda
    tableau = solver(EDM, times)
    A, b = composition(tableau)
    lam = np.array([-math.log(t) for t in (*tableau.calls[:, 0], times[1])])
    c = (lam[:-1] - lam[0]) / (lam[-1] - lam[0])
    z = -h if solver.frame == "denoised" else h
    # In v, a row sums to (v_i - v_s) / (v_t - v_s) = expm1(-c z) / expm1(-z); in lambda to c phi_1(c z).
    unit = lambda x: x * phi(1, x * z) * np.expm1(-z) / np.expm1(-x * z) if x else 1.0  # noqa: E731
    return c, np.array([unit(x) * row for x, row in zip(c, A, strict=True)]), b * phi(1, z), z


def stiff_conditions(c, a, b, z):
    """Defects of the order conditions, order by order: (of quadrature, of the others).

    With psi_k,i = sum_j a_ij c_j^{k-1} / (k-1)! - c_i^k phi_k(c_i z), the conditions of table 2 for scalar J and K.
    """
    fact = math.factorial
    quadrature = {k: b @ c ** (k - 1) / fact(k - 1) - phi(k, z) for k in (1, 2, 3, 4)}
    psi = {
        k: np.array([a[i] @ c ** (k - 1) / fact(k - 1) - c[i] ** k * phi(k, c[i] * z) for i in range(len(c))])
        for k in (1, 2, 3)
    }
    others = {1: [], 2: list(psi[1]), 3: [b @ psi[2]], 4: [b @ psi[3], b @ a @ psi[2], (b * c) @ psi[2]]}
    return quadrature, others


@pytest.mark.parametrize("spec", EXPONENTIAL)
def test_stiff_order_conditions_on_the_weights_used(spec):
    solver = ds.solvers.named(spec)
    for h in shown([1e-3, 0.4, 5.0, -0.7]):
        c, a, b, z = exponential_weights(solver, h)
        np.testing.assert_allclose(c, solver.c, atol=1e-12 / abs(h))
        quadrature, others = stiff_conditions(c, a, b, z)
        size = np.abs(b).sum() * (1 + np.abs(a).max())
        for k in range(1, solver.scheme.stiff_order + 1):
            assert max(map(abs, [quadrature[k], *others[k]])) < 1e-12 * size / min(1, abs(h))
        weak = min(WEAK[solver.scheme.name], solver.order)
        b_0 = exponential_weights(solver, 1e-4)[2]
        for k in range(solver.scheme.stiff_order + 1, weak + 1):
            assert max(map(abs, stiff_conditions(c, a, b_0, z)[1][k])) < 1e-4 * size
            assert b_0 @ c ** (k - 1) == pytest.approx(1 / k, abs=1e-3)
        # What is declared is not too little: at a step of 5 some condition of the next order fails.
        if h == 5.0 and solver.scheme.stiff_order < 4:
            k = solver.scheme.stiff_order + 1
            assert max(map(abs, [quadrature[k], *others[k]])) > 1e-3 * phi(k, z)


@pytest.mark.parametrize("spec", EXPONENTIAL)
def test_classical_order_as_the_step_vanishes(spec):
    """At z -> 0 the methods are Butcher's, of the declared order and no more."""
    solver = ds.solvers.named(spec)
    a, b = solver.scheme.butcher(1e-7)
    for order in range(1, solver.order + 1):
        assert max(abs(float(d)) for d in defects(a, b, order)) < 1e-6
    assert max(abs(float(d)) for d in defects(a, b, solver.order + 1)) > 1e-3


@pytest.mark.parametrize("spec", EXPONENTIAL)
def test_stiff_slope(spec):
    """One step of fixed length while D varies slower and slower: the error is kappa^p, p the strict stiff order.

    The exact solution is x = U(kappa lambda) (in the frame noise, x / sigma), with a coupling of strength kappa to
    x. Classical tests cannot tell phi_2 from phi_1 / 2; here the slopes are 2 and 1.
    """
    solver = ds.solvers.named(spec)
    data, h = solver.frame == "denoised", 2.0
    sign = 1 if data else -1
    phase = torch.linspace(-1, 1, 6, dtype=torch.float64)[:, None]
    U = lambda tau: torch.cos(tau + phase)  # noqa: E731
    kappas, errors = (1 / 64, 1 / 128), []
    for kappa in kappas:

        def net(x, t, kappa=kappa):
            tau = -kappa * t.double().log()[:, None]
            u = x if data else x / t[:, None]
            return U(tau) - sign * kappa * torch.sin(tau + phase) + kappa * (torch.sin(2 * u) - torch.sin(2 * U(tau)))

        model = ds.adapt(net, EDM, "denoised" if data else "noise")
        sigmas = [math.exp(h / 2), math.exp(-h / 2)]
        scale = lambda sigma: 1.0 if data else sigma  # noqa: E731
        x, exact = (scale(s) * U(torch.tensor(-kappa * math.log(s), dtype=torch.float64)) for s in sigmas)
        found = ds.sample(model, noise=x, solver=solver, grid=sigmas)
        errors.append(float((found - exact).norm()))
    slope = math.log(errors[0] / errors[1]) / math.log(kappas[0] / kappas[1])
    assert slope == pytest.approx(solver.scheme.stiff_order, abs=0.15)


# The same by other names -----------------------------------------------------------------------------------------


def test_equivalences():
    """What the docstrings call the same is the same."""
    times = [0.9, 0.7, 0.4, 0.2]
    table = lambda solver: ds.solvers.named(solver)(paths.VP(), times)  # noqa: E731
    close = lambda a, b: np.testing.assert_allclose(a.weights, b.weights, rtol=1e-12, atol=1e-13)  # noqa: E731
    close(table("dpmpp-3s"), table("res-3s(c2=0.3333333333333333, c3=0.6666666666666666)"))
    close(table("dpmpp-2s"), table(ExponentialRK(dpm2(), "denoised")))
    assert not np.allclose(table("dpmpp-2s").weights, table("res-2s").weights, rtol=1e-3)
    assert ds.solvers.named("res-2s(c2=0.3)") == ExponentialRK(res2(0.3), "denoised")
    assert hash(ds.solvers.named("dpm-3s")) == hash(ExponentialRK(dpm3(), "noise"))
    assert dpm3(1 / 3, 0.5).order == 2


def test_one_stage_is_ddim():
    one = ExponentialRK(Scheme("one", (0,), lambda z, c: [[]], 1, 1), "noise")
    times = [0.9, 0.7, 0.4, 0.2]
    expected = ds.plan("vp", "euler(frame='noise')", grid=times)
    np.testing.assert_allclose(one(paths.VP(), times).weights.sum(2), expected.weights.sum(2), rtol=1e-13)


def test_histories():
    wanted = {
        **dict.fromkeys(["dpm-2s", "dpm-3s", "dpmpp-2s", "dpmpp-3s", "res-2s", "bosh3", "ssprk3"], 1),
        **{"res-3s": 2, "etdrk-4s": 2, "res-5s": 3, "rk4-38": 2, "dopri5": 4, "tsit5": 4, "dopri8": 8},
    }
    for name, history in wanted.items():
        assert ds.plan("condot", name, steps=8).history == history, name


@pytest.mark.parametrize("spec", ["dpm-2s", "dpmpp-3s", "res-5s", "dopri8"])
def test_grid_nodes_are_called_bit_for_bit(spec):
    times = [0.9, 0.7, 0.4, 0.2]
    tableau = ds.plan("vp", spec, grid=times)
    c, called = ds.solvers.named(spec).c, tableau.calls[:, 0].reshape(3, -1)
    for k, x in enumerate(c):
        if x in (0, 1):
            assert called[:, k].tolist() == times[int(x) :][:3]


@pytest.mark.parametrize("h", [40.0, 1e-6])
def test_weights_of_huge_and_tiny_steps(h):
    """Far from z = 1 nothing cancels or overflows; the tableau's own check passes."""
    for spec in shown(EXPONENTIAL):
        tableau = ds.solvers.named(spec)(EDM, [min(80.0, math.exp(h / 2)), math.exp(-h / 2)])
        assert np.isfinite(tableau.weights).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.solvers.named("res-3s(c2=0.6666666666666666)"), "no such method"),
        (lambda: ds.solvers.named("dpm-2s(r1=0)"), "0, then numbers > 0"),
        (lambda: ds.solvers.named("dpmpp-2s(r1=1.5)"), "<= 1, got"),
        (lambda: ds.solvers.named("res-2s(frame='straight')"), "frame must be 'denoised' or 'noise', got 'straight'"),
        (lambda: ds.solvers.named("dpm-2s(frame='noise')"), "has no option 'frame'"),
        (lambda: Scheme("bad", (0.5,), lambda z, c: [[]], 1, 1), "c of bad must be 0, then"),
        (lambda: Scheme("bad", (0, 0.5), lambda z, c: [[]], 1, 1), "rows of 0, 1, .., 1 entries"),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises(ValueError, match=says):
        make()


# diffusers: its singlestep scheduler makes a call per level. With our stages' times for levels it is DPM-Solver-2,
# but at order 3 `midpoint`, the default, makes the third stage by DPM-Solver-2, a_32 = c_3^2 phi_1(c_3 z) / (2 c_2)
# where the paper has phi_2.


def _diffusers3(z, c):
    return [[], [c[2] ** 2 / (2 * c[1]) * phi(1, c[2] * z)], [0.0, phi(2, z) / c[2]]]


def singlestep_cases():
    for plus, predicts in ((False, "noise"), (True, "denoised")):
        frame, name = predicts, f"dpmsolver{'++' * plus}"
        yield name, "midpoint", ExponentialRK(dpm2(), frame)
        yield name, "heun", ExponentialRK(res2(), frame)
        yield name, "midpoint", ExponentialRK(Scheme("diffusers3", (0, 1 / 3, 2 / 3), _diffusers3, 3, 2), frame)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers", "ignore::FutureWarning:diffusers")
@pytest.mark.parametrize("predicts", ["noise", "v"])
@pytest.mark.parametrize(("algorithm", "kind", "solver"), list(singlestep_cases()), ids=str)
def test_diffusers_singlestep(algorithm, kind, solver, predicts):
    df = pytest.importorskip("diffusers")
    path, options = table("scaled_linear")
    times = np.array([999.0, 700.0, 420.0, 150.0, 10.0])
    tableau = solver(path, times)
    at = np.append(tableau.calls[:, 0], times[-1])
    scheduler = df.DPMSolverSinglestepScheduler(
        **options,
        algorithm_type=algorithm,
        solver_type=kind,
        solver_order=solver.calls,
        final_sigmas_type="sigma_min",
        lower_order_final=False,
        prediction_type={"noise": "epsilon", "v": "v_prediction"}[predicts],
    )
    scheduler.set_timesteps(tableau.nfe)
    scheduler.order_list = [*range(1, solver.calls + 1)] * tableau.steps
    scheduler.timesteps = torch.as_tensor(at[:-1])
    peers.widen(scheduler, path, at)
    model, x = mixture_model(MIXTURE, path, predicts), start()
    theirs = peers.run_scheduler(scheduler, model.net, x, at, unrounded=True)
    mine = ds.sample(model, noise=x, solver=tableau)
    # From eps, x_0 is a difference divided by alpha.
    assert distance(mine, theirs) < 4e-14 / float(path.alpha(times[0]))
