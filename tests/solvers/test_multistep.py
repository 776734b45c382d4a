"""The multistep family: weights of every order, order step by step, starts, PECE, iPNDM and PNDM, and its peers."""

import math
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest
import torch
from support import peers
from support.orders import INTERIOR, TIMES, exact_run, measured_order
from support.product import shares, shown
from support.solvers import POINTS
from support.weights import added, agree, lagrange_integrals
from support.weights import unipc as published_unipc

import diffsolve as ds
from diffsolve import paths
from diffsolve.reference import mixture_model
from diffsolve.solvers import IPNDM, Multistep, UniPC

LONG = [64, 48, 40, 28, 20, 14, 8, 6, 3, 0.5]
ROW = 7  # a step with as many values behind it as any method here asks for


@pytest.mark.parametrize("points", range(1, 7))
@pytest.mark.parametrize("mode", ["pec", "pece"])
def test_adams_weights_are_exact_in_fractions(points, mode):
    """Bashforth of k values and Moulton of k + 1 integrate polynomials of degree k - 1 and k, on uneven steps."""
    v = [Fraction(x) for x in LONG]
    bashforth = lagrange_integrals(v[ROW::-1][:points], v[ROW], v[ROW + 1])
    moulton = lagrange_integrals(v[ROW::-1][: points + 1], v[ROW - 1], v[ROW])
    for power in range(points):
        exact = (v[ROW + 1] ** (power + 1) - v[ROW] ** (power + 1)) / (power + 1)
        assert sum(w * x**power for w, x in zip(bashforth, v[ROW::-1], strict=False)) == exact
    plain = ds.solvers.named(f"ab-{points}(frame='noise')")(paths.EDM(), LONG)
    agree(added(plain, ROW, 1), bashforth)
    table = ds.solvers.named(f"abm-{points}(frame='noise', mode={mode!r})")(paths.EDM(), LONG)
    if mode == "pec":
        agree(added(table, ROW, 1), bashforth)
        agree(table.weights[ROW, 0, 2:-1], moulton)
    else:  # two calls a step: the one at the predicted point stands between those at the corrected ones
        agree(table.weights[2 * ROW, 1, 2:-1:2], bashforth)
        corrects = table.weights[2 * ROW - 1, 1, 2:-1]
        agree(corrects[[0, *range(1, len(corrects), 2)]], moulton)


@pytest.mark.parametrize("frame", ["denoised", "noise"])
@pytest.mark.parametrize("p", [4, 5, 6])
def test_unipc_weights_of_high_order(p, frame):
    """Against the paper's R(h) rho = b, solved in 50 digits."""
    times = np.array([1.0, 0.9, 0.81, 0.7, 0.62, 0.5, 0.42, 0.3, 0.2, 0.1])
    path, data = paths.VP(), frame == "denoised"
    with_corrector = UniPC(p, frame, lower_final=False)(path, times)
    without = ds.solvers.named(f"unip-{p}(frame={frame!r}, lower_final=False)")(path, times)
    with mp.workdps(50):
        at = path.nodes(times)
        alpha, sigma, lam = ([mp.mpf(float(x)) for x in values] for values in (at.alpha, at.sigma, at.lam))
        lead, kept = (alpha, sigma) if data else (sigma, alpha)
        predictor = published_unipc(lam[ROW::-1][:p], lam[ROW + 1], lead[ROW + 1], data, "bh2", corrects=False)
        behind = lam[ROW - 1 :: -1][:p]
        *corrector, newest = published_unipc(behind, lam[ROW], lead[ROW], data, "bh2", corrects=True)
    for table in (with_corrector, without):
        agree(added(table, ROW, kept[ROW + 1] / kept[ROW]), predictor)
    agree(with_corrector.weights[ROW, 0, 2:-1], [newest, *corrector])


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_ipndm_weights(points):
    """On even steps they are Adams-Bashforth's; on any others they stay what they are."""
    even, uneven = [9.0 - i for i in range(9)], LONG[:9]
    edm = paths.EDM()
    np.testing.assert_allclose(
        IPNDM(points)(edm, even).weights, Multistep(points, "noise")(edm, even).weights, atol=1e-14
    )
    v = [Fraction(-j) for j in range(points)]
    weights = lagrange_integrals(v, Fraction(0), Fraction(1))
    agree(added(IPNDM(points)(edm, uneven), ROW, 1), [w * (uneven[ROW + 1] - uneven[ROW]) for w in weights])


def test_the_variable_step_form_on_uneven_steps():
    """Steps 0.5, 1, 2: two public code bases have (1.74, -.98, .24), with (1 - a b) / 2 for (1 - a) b / 2."""
    weights = ds.solvers.named("ipndm-v-3")(paths.EDM(), [10.0, 8.0, 7.0, 6.5]).weights[2, 1, 2:-1] / -0.5
    np.testing.assert_allclose(weights, [1.36, -0.42, 0.056], atol=0.005)


# Orders --------------------------------------------------------------------------------------------------------

STARTED = [
    "ab-3(start='heun')", "ab-4(start='rk4')", "ab-5(start='rk4')", "ab-4(start='heun')", "rhoab-2(start='heun')",
    "deis-3(start='heun', lower_final=False)", "abm-3(start='rk4')", "abm-2(start='heun', frame='trig')",
    "unipc-3(start='rk4', lower_final=False)", "unipc-4(start='rk4', lower_final=False)", "dpmpp-2m(start='heun')",
    "ab-4(start='heun', ramp=(2, 2, 3))", "abm-1(mode='pece')", "abm-2(mode='pece')", "abm-3(mode='pece')",
    "abm-3(mode='pece', start='rk4')", "abm-2(mode='pece', lower_final=True)", "abm-3(uncorrected=(0,))",
    "abm-2(uncorrected=(3, -1))", "abm-3(corrector=2)", "abm-4(corrector=3, lower_final=True)",
]  # fmt: skip


@pytest.mark.product({"solver": [*sorted(POINTS), *STARTED]}, some={"solver": [*sorted(POINTS)[::8], *STARTED[::4]]})
def test_order_as_declared(solver, mixture):
    start, stop, predicts = INTERIOR["vp"]
    declared = ds.solvers.named(solver).order
    steps = {1: (64, 128), 2: (160, 320), 3: (256, 512), 4: (128, 256), 5: (128, 256)}[declared]
    assert measured_order(mixture, "vp", predicts, solver, start, stop, steps) == pytest.approx(declared, abs=0.15)


def test_orders_that_are_declared():
    wanted = {
        1: ["ab-1(start='rk4')"],
        2: [
            *("ab-6", "ab-2(start='heun')", "ab-3(points=(1, 2, 3, 3, 2, 1))", "abm-1", "unipc-4", "pndm"),
            "abm-3(start='rk4', lower_final=True)",
        ],
        3: ["ab-6(start='heun')", "abm-2", "abm-6", "unipc-6(lower_final=False)"],
        4: ["abm-3(start='rk4')", "abm-3(start='rk4', lower_final=15)", "abm-3(start='rk4', uncorrected=(9,))"],
        5: ["ab-6(start='rk4')", "abm-6(start='rk4')"],
    }
    for order, specs in wanted.items():
        assert {spec: ds.solvers.named(spec).order for spec in specs} == dict.fromkeys(specs, order)


def test_uniform_weights_are_of_first_order_where_steps_do_not_change_smoothly(mixture):
    model = mixture_model(mixture, "vp", "noise")
    start, stop, _ = INTERIOR["vp"]
    x, exact = exact_run(mixture, model.path, start, stop)

    def slope(spec):
        errors = []
        for n in (64, 128):
            steps = np.tile([1.0, 3.0], n // 2)
            times = start + (stop - start) * np.cumsum([0, *steps]) / steps.sum()
            errors.append(float((ds.sample(model, noise=x, solver=spec, grid=times) - exact).norm()))
        return math.log2(errors[0] / errors[1])

    assert slope("ipndm-2") == pytest.approx(1, abs=0.15)
    assert slope("ipndm-v-2") == pytest.approx(2, abs=0.15)


# Options -------------------------------------------------------------------------------------------------------


def used(tableau):
    """How many values of d each row's y uses."""
    return (tableau.weights[:, 1, 2:-1] != 0).sum(1).tolist()


def test_order_step_by_step():
    plan = lambda spec, steps=6: ds.plan("vp", spec, steps=steps, stop=0.1)  # noqa: E731
    assert used(plan("ab-3")) == [1, 2, 3, 3, 3, 3]
    assert used(plan("ab-3(lower_final=True)")) == [1, 2, 3, 3, 2, 1]
    assert used(plan("ab-3(lower_final=7)")) == [1, 2, 3, 3, 2, 1]
    assert used(plan("ab-3(lower_final=6)")) == [1, 2, 3, 3, 3, 3]
    assert used(plan("ab-3(ramp=(1, 1, 2))")) == [1, 1, 2, 3, 3, 3]
    assert used(plan("ab-3(ramp=(1, 1, 2))", 2)) == [1, 1]
    assert used(plan("ab-1(points=(1, 2, 1, 4, 2, 3))")) == [1, 2, 1, 4, 2, 3]
    assert plan("ab-3(points=[1, 2, 3, 3, 2, 1])") == plan("ab-3(points=(1, 2, 3, 3, 2, 1))")
    np.testing.assert_array_equal(
        plan("unipc-3(points=(1, 2, 3, 3, 2, 1))").weights, plan("unipc-3").weights
    )  # and the correctors with them
    # It is printed with the tableau.
    for spec, says in {
        "ab-1(points=(1, 2, 3, 3, 2, 1), uncorrected=(2,))": "(points=(1, 2, 3, 3, 2, 1), frame='straight', "
        "lower_final=False, uncorrected=(2,))",
        "ab-3": "Multistep(points=3, frame='straight', lower_final=False) on",
        "unipc-2": "UniPC(points=2, frame='denoised', corrector=3, lower_final=True) on",
        "plms": "IPNDM(points=4, frame='noise', lower_final=False, ramp=(2, 2, 3), start='heun') on",
    }.items():
        assert says in str(plan(spec))
    assert ds.plan("vp", "ab-3(points=(1, 2, 3))", nfe=3).nfe == 3


def test_the_corrector_switched_off_for_some_steps():
    off = ds.plan("vp", "unipc-2(uncorrected=(0, 3, -2))", steps=6)
    corrected = [int(i) - 1 for i in np.flatnonzero(off.weights[:, 1, 0])]  # row i + 1 corrects step i, from s
    assert corrected == [1, 2]
    assert ds.plan("vp", "unipc-2(uncorrected=(40, -40))", steps=6) != off
    never = ds.plan("vp", f"unipc-2(uncorrected={tuple(range(6))})", steps=6)
    plain = ds.plan("vp", "unip-2", steps=6)
    np.testing.assert_allclose(never.weights, plain.weights, rtol=1e-13)


def test_pece_calls_twice(mixture):
    for path, last in (("vp", 1), ("condot", 2), ("edm", 1)):
        for n in (1, 2, 5):
            assert ds.plan(path, "abm-2(mode='pece')", steps=n).nfe == 2 * n - 2 + last
    # The trapezium after Euler is Heun's method.
    for path in ("edm", "condot", "vp"):
        model = mixture_model(mixture, path, "velocity" if path == "condot" else "denoised")
        one, two = (
            ds.sample(model, (4, 2), solver=spec, steps=7, seed=0, dtype=torch.float64)
            for spec in ("abm-1(mode='pece')", "heun")
        )
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)


def test_starts_cost_their_calls():
    stop = {"steps": 8, "stop": 0.1}
    assert ds.plan("vp", "ab-4(start='rk4')", **stop).nfe == 3 * 4 + 5
    assert ds.plan("vp", "ab-3(start='heun')", **stop).nfe == 2 * 2 + 6
    assert ds.plan("vp", "pndm", **stop).nfe == 3 * 4 + 5
    assert ds.plan("vp", "plms", **stop).nfe == 2 + 7
    assert ds.plan("vp", "ab-3(start='rk4')", nfe=12).nfe == 12


DECLARED, ENDS = [*sorted(POINTS), *STARTED], ["edm", "condot", "ddpm(zero_terminal_snr=True)"]


@pytest.mark.product({"path": ENDS, "specs": [DECLARED]}, some={"specs": shares(DECLARED, len(ENDS))})
def test_finite_in_both_directions(specs, path):
    path = paths.named(path)
    for spec in shown(specs):
        solver = ds.solvers.named(spec)
        for steps in (1, 2, 3, 5, 8, 20):
            tableau = ds.plan(path, solver, steps=steps)
            for table in (tableau, solver(path, tableau.times[::-1])):
                assert np.isfinite(table.weights).all()
                assert table.node[table.node >= 0].tolist() == list(range(1, steps + 1))
            assert path.t_last == path.t_data or path.t_data not in tableau.calls[:, 0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Multistep(()), r"points must be an integer, or one for each step of the run, got \(\)"),
        (lambda: Multistep((1, 2), ramp=(1,)), r"ramp must be empty where points are given for each step, got \(1,\)"),
        (lambda: Multistep((1, 9)), "points must be an integer from 1 to 8, got 9"),
        (lambda: Multistep(2.0), "points must be an integer from 1 to 8, got 2.0"),
        (lambda: Multistep(2, ramp=3), "ramp must be a tuple of integers, got 3"),
        (
            lambda: Multistep(2, lower_final=1),
            "lower_final, where not True or False, must be an integer from 2 to 1000, got 1",
        ),
        (lambda: Multistep(2, start="rk3"), "start must be 'heun', 'rk4' or None, got 'rk3'"),
        (lambda: Multistep(2, mode="pece"), "mode must be 'pec', got 'pece'"),
        (lambda: Multistep(2, corrector=3, mode="ec"), "mode must be 'pec' or 'pece', got 'ec'"),
        (lambda: Multistep(2, corrector=3, uncorrected=(True,)), "uncorrected must be an integer .*, got True"),
        (lambda: IPNDM(5), "IPNDM has 1 to 4 points"),
        (lambda: IPNDM(3, corrector=2), "and no corrector"),
        (
            lambda: ds.plan("vp", "ab-2(points=(1, 2))", steps=3),
            r"points must be 3 numbers for a run of 3 steps, or one number, got \(1, 2\)",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


# diffusers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_prk", [False, True])
def test_diffusers_pndm(skip_prk, mixture):
    """Its float32 table replaced by ours; it steps by 1000 // n, so a leading grid, and ends on row 0.

    Only for noise-predicting networks: of v it combines the values at several times as if they were at one.
    """
    df = pytest.importorskip("diffusers")
    path = paths.Discrete.scaled_linear()
    scheduler = df.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=skip_prk, steps_offset=1,
        timestep_spacing="leading", set_alpha_to_one=False,
    )  # fmt: skip
    scheduler.alphas_cumprod = path.alpha(np.arange(1000.0)) ** 2
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(10)
    model = mixture_model(mixture, path, "noise")
    x = start = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(model.net(x, t.double().expand(len(x))), t, x).prev_sample
    grid = [*range(901, 0, -100), 0]
    tableau = ds.plan(model, "plms" if skip_prk else "pndm", grid=grid)
    assert tableau.nfe == len(scheduler.timesteps)
    assert [int(t) for t in tableau.calls[:, 0]] == scheduler.timesteps.tolist()
    torch.testing.assert_close(ds.sample(model, noise=start, solver=tableau), x, rtol=1e-11, atol=1e-12)


def test_diffusers_ipndm(mixture):
    df = pytest.importorskip("diffusers")
    sigma = np.sin(np.linspace(0.97, 0.05, 13) * math.pi / 2)
    scheduler = df.IPNDMScheduler(trained_betas=sigma.tolist())
    scheduler.set_timesteps(12)
    scheduler.betas = torch.tensor(sigma)
    scheduler.alphas = (1 - scheduler.betas**2).sqrt()
    path = paths.VP()
    grid = path.time(np.log(scheduler.alphas.numpy() / sigma)).numpy()
    model = mixture_model(mixture, path, "v")
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = peers.run_scheduler(scheduler, model.net, x, grid)
    torch.testing.assert_close(ds.sample(model, noise=x, solver="ipndm-4", grid=grid), theirs, rtol=1e-11, atol=1e-12)


def test_diffusers_disable_corrector(mixture):
    df = pytest.importorskip("diffusers")
    path = paths.Discrete.scaled_linear()
    scheduler = df.UniPCMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, solver_order=3, disable_corrector=[0, 1, 4]
    )
    scheduler.set_timesteps(10)
    at = peers.times(path, peers.nodes(scheduler))
    peers.widen(scheduler, path, at)
    model = mixture_model(mixture, path, "noise")
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = peers.run_scheduler(scheduler, model.net, x, at, unrounded=True)
    mine = ds.sample(model, noise=x, solver="unipc-3(uncorrected=(0, 1, 4))", grid=at)
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_the_order_of_options_of_a_point_does_not_change_its_number():
    """A point is its class with other defaults: whatever else is set, its number stays."""
    for name, points in (
        ("ab-3", 3),
        ("unipc-4", 4),
        ("tab-3", 4),
        ("rhoab-1", 2),
        ("deis-2", 2),
        ("ipndm-3", 3),
        ("pndm", 4),
    ):
        assert ds.solvers.named(name).points == points
        assert ds.solvers.named(f"{name}(ramp=(1,))").points == points
    assert (
        ds.plan("vp", "euler", grid=TIMES["vp"]).weights.tolist()
        == ds.plan("vp", "ab-1", grid=TIMES["vp"]).weights.tolist()
    )
