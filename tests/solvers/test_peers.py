"""Where the method is the same, so is the result: against k-diffusion, diffusers, and the papers' formulas.

Each peer gets the same grid, network and start. Where it computes in float64, or can be made to (`peers.widen`),
agreement is to rounding, which proves that the method is the same. As shipped, diffusers keeps its noise levels in
float32; there agreement is to float32. Bounds are about ten times what was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from support import peers
from support.peers import KEY, MIXTURE, SHAPE, TABLES, distance, start, table
from support.product import shown
from support.weights import added, agree, lagrange_integrals, unipc

import diffsolve as ds
from diffsolve import grids, paths
from diffsolve.noise import Stream
from diffsolve.paths import Discrete
from diffsolve.reference import mixture_model
from diffsolve.solvers import DDIM, DPMpp, Multistep, Solver, UniPC

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),  # it uses NumPy as of 1.x
    pytest.mark.filterwarnings("ignore:.*algorithm_type.*:FutureWarning:diffusers"),  # of DPM-Solver without ++
]

ULP = 2.0**-24
"""Half the spacing of float32 at 1: its largest relative rounding."""

EDM = paths.EDM()


def noise(i, dtype=torch.float64):
    """The noise that our run draws in row i."""
    return KEY.normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=dtype)


def ours(model, x, solver, grid):
    return ds.sample(model, noise=x, solver=solver, grid=grid, seed=0)


# k-diffusion -------------------------------------------------------------------------------------------------


ODE = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
K_DIFFUSION = {
    "euler": ("euler", {}, "euler(frame='noise')"),
    # The first-order step is one and the same in all frames that are exact for constant D and eps.
    "euler-denoised": ("euler", {}, "euler(frame='denoised')"),
    "euler-straight": ("euler", {}, "euler(frame='straight')"),
    "euler-native": ("euler", {}, "euler(frame='native')"),
    "heun": ("heun", {}, "heun(frame='noise')"),
    "heun-native": ("heun", {}, "heun(frame='native')"),
    # Its midpoint in log sigma makes it the exponential method, not a Runge-Kutta one.
    "dpm_2": ("dpm_2", {}, "dpm-2s"),
    "dpmpp_2m": ("dpmpp_2m", {}, "dpmpp-2m"),
    "dpmpp_2m_sde-midpoint": ("dpmpp_2m_sde", ODE, "dpmpp-2m"),
    "dpmpp_2m_sde-heun": ("dpmpp_2m_sde", {**ODE, "solver_type": "heun"}, Multistep(2, "denoised", "lambda")),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", ODE, peers.HeunStart(3)),
    "ancestral-0": ("euler_ancestral", {"eta": 0.0}, DDIM(0.0)),
    "ancestral-0.5": ("euler_ancestral", {"eta": 0.5}, DDIM(0.5)),
    "ancestral-1": ("euler_ancestral", {"eta": 1.0}, DDIM(1.0)),
    **{f"lms-{k}": ("lms", {"order": k}, f"ab-{k}(frame='noise')") for k in (1, 2, 3, 4)},
}


def k_diffusion_pair(kd, case, grid, to_zero, dtype):
    """(ours, theirs)."""
    name, options, solver = K_DIFFUSION[case]
    sigmas = getattr(kd, f"get_sigmas_{grid}")(12, 0.002, 80.0).to(dtype)
    sigmas = sigmas if to_zero else sigmas[:-1]
    model = mixture_model(MIXTURE, EDM, "denoised")
    x = 80 * start(dtype)
    if name == "euler_ancestral":
        rows = iter(range(len(sigmas)))
        options = {**options, "noise_sampler": lambda *_: noise(next(rows), dtype)}
    theirs = getattr(kd, f"sample_{name}")(model.net, x, sigmas, disable=True, **options)
    return ours(model, x, solver, sigmas.double()), theirs


@pytest.mark.product({"case": list(K_DIFFUSION), "grid": ["karras", "exponential"], "to_zero": [True, False]})
def test_k_diffusion(kd, case, grid, to_zero):
    # Down to sigma = 0 LMS extrapolates at full order, where ours makes a first-order step by rule.
    to_zero = to_zero and case not in ("lms-2", "lms-3", "lms-4")
    mine, theirs = k_diffusion_pair(kd, case, grid, to_zero, torch.float64)
    assert distance(mine, theirs) < 1e-13  # 1e-14 is seen
    # In float32 each is off by its own rounding; ours by no more than theirs, but for luck.
    mine32, theirs32 = (x.double() for x in k_diffusion_pair(kd, case, grid, to_zero, torch.float32))
    assert distance(mine32, mine) < 2 * distance(theirs32, theirs) + 128 * ULP


def test_k_diffusion_grids(kd):
    n, vp = 12, paths.VP()

    def agree(theirs, mine, rtol):
        np.testing.assert_allclose(mine, theirs.double().numpy(), rtol=rtol, atol=0)

    # It computes them in float32, where a 7th power multiplies the rounding of its base.
    agree(kd.get_sigmas_karras(n, 0.002, 80.0), grids.named("karras")(EDM, n), 64 * ULP)
    agree(kd.get_sigmas_karras(n, 0.002, 80.0, rho=5.0), grids.named("karras(rho=5)")(EDM, n), 64 * ULP)
    agree(kd.get_sigmas_exponential(n, 0.002, 80.0), grids.named("exponential")(EDM, n), 16 * ULP)
    power = grids.named("polynomial(power=2, variable='lambda')")
    agree(kd.get_sigmas_polyexponential(n, 0.002, 80.0, rho=2.0), power(EDM, n), 16 * ULP)
    # Its last sigma is the root of e^b - 1, b = 1.1e-4, in float32.
    agree(kd.get_sigmas_vp(n), vp.rho(grids.named("uniform-t")(vp, n)), ULP / 1.1e-4)


def test_k_diffusion_between_the_rows_of_a_table(kd):
    """Its discrete denoisers interpolate log sigma between rows, as our table does."""
    external = peers.k_diffusion("external")
    path = Discrete.scaled_linear()
    theirs = external.DiscreteEpsDDPMDenoiser(None, path.alpha(np.arange(1000.0)) ** 2, quantize=False)
    t = torch.arange(0, 999, 0.375, dtype=torch.float64)  # exact in float32, to which it rounds t
    torch.testing.assert_close(path.rho(t), theirs.t_to_sigma(t), rtol=1e-11, atol=0)
    torch.testing.assert_close(path.time(path.lam(t)), theirs.sigma_to_t(path.rho(t)), rtol=0, atol=1e-8)


# diffusers: tables, spacings and grids -------------------------------------------------------------------------


PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "denoised"}


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", list(TABLES))
def test_diffusers_tables(df, name, zero_snr):
    path, options = table(name, zero_snr)
    theirs = df.DDIMScheduler(**options).alphas_cumprod.double().sqrt()
    # A product of 1000 factors in float32 is off by about sqrt(1000) roundings.
    torch.testing.assert_close(path.alpha(np.arange(1000.0)), theirs, rtol=0, atol=32 * ULP)
    if zero_snr:
        assert path.alpha(999.0) == theirs[-1] == 0


@pytest.mark.parametrize("spacing", ["leading", "leading(offset=1)", "trailing", "linspace"])
def test_diffusers_spacings(df, spacing):
    path = Discrete.linear()
    for n in [*range(2, 101), 125, 200, 250, 400, 500]:
        halves = any(2000 * i % n == 0 and 2000 * i // n % 2 for i in range(n))
        if spacing == "trailing" and halves and Fraction(1000 / n) != Fraction(1000, n):
            continue  # 62.5 comes out of its arange with an error, which decides how it is rounded
        scheduler = df.DDIMScheduler(timestep_spacing=spacing.partition("(")[0], steps_offset=int("1" in spacing))
        scheduler.set_timesteps(n)
        theirs = scheduler.timesteps.tolist()
        if len(theirs) == n:  # for the same reason its trailing has 62 timesteps at n = 61, the last -1
            assert grids.named(spacing)(path, n).tolist() == [*theirs, -1], n


@pytest.mark.parametrize("n", [5, 12])
def test_diffusers_grids(df, n):
    def agree(scheduler, path, grid, rtol, **options):
        scheduler.set_timesteps(**(options or {"num_inference_steps": n}))
        theirs, sigma = scheduler.sigmas.double().numpy(), grids.named(grid)(path, n)
        mine = path.rho(sigma).numpy() if isinstance(path, Discrete) else sigma
        np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=ULP)

    agree(df.EDMEulerScheduler(), EDM, "karras", 4 * ULP)
    agree(df.EDMEulerScheduler(sigma_schedule="exponential"), EDM, "exponential", 16 * ULP)
    ends = {"sigma_min": 0.002, "sigma_max": 80.0}
    agree(df.EulerDiscreteScheduler(**ends, use_beta_sigmas=True), EDM, "beta", 4 * ULP)
    for shift in (1.0, 3.0):
        path, sigmas = paths.Rectified(shift), np.linspace(1, 1 / n, n)  # as the pipelines of Flux and SD3 pass them
        agree(df.FlowMatchEulerDiscreteScheduler(shift=shift), path, path.grid, 4 * ULP, sigmas=sigmas)
    # The table's least sigma is sqrt(1 - alpha-bar), where 1 - alpha-bar = 8.5e-4 in float32.
    path, options = table("scaled_linear")
    agree(df.DPMSolverMultistepScheduler(**options, use_karras_sigmas=True), path, "karras", ULP / 8.5e-4)
    agree(df.DPMSolverMultistepScheduler(**options, use_exponential_sigmas=True), path, "exponential", ULP / 8.5e-4)


# diffusers: runs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    scheduler: str
    options: dict[str, Any]
    solver: str | Solver
    steps: int = 10
    loss: float = 8.0
    """What its float32 levels may cost, in roundings of x_0; two or three are seen."""

    def __str__(self):
        options = [f"{k}={v}" for k, v in self.options.items()]
        return "-".join([self.scheduler.removesuffix("Scheduler"), *options, str(self.steps)])


def vp_cases():
    for spacing in ("linspace", "leading", "trailing"):
        yield Case("EulerDiscreteScheduler", {"timestep_spacing": spacing}, "ddim")
    for grid in ("use_karras_sigmas", "use_exponential_sigmas"):
        yield Case("EulerDiscreteScheduler", {grid: True}, "euler(frame='noise')")
    for karras in (False, True):
        yield Case("HeunDiscreteScheduler", {"use_karras_sigmas": karras}, "heun(frame='noise')")

    dpm = "DPMSolverMultistepScheduler"
    for p, karras, n in product((1, 2, 3), (False, True), (10, 20)):
        # Below 15 steps lower_order_final (the default) works on the last but one step too.
        options = {"solver_order": p, "use_karras_sigmas": karras}
        yield Case(dpm, options, DPMpp(p, lower_final=n < 15), n)
    for p, lower in product((1, 2, 3), (False, True)):
        options = {"solver_order": p, "lower_order_final": lower, "final_sigmas_type": "sigma_min"}
        yield Case(dpm, options, DPMpp(p, lower_final=lower))
    for p in (1, 2, 3):  # DPM-Solver, with noise prediction
        options = {"solver_order": p, "algorithm_type": "dpmsolver", "lower_order_final": False}
        yield Case(dpm, {**options, "final_sigmas_type": "sigma_min"}, DPMpp(p, "noise"))
    yield Case(dpm, {"solver_order": 2, "solver_type": "heun"}, Multistep(2, "denoised", "lambda"))
    yield Case(dpm, {"solver_order": 3, "solver_type": "heun", "lower_order_final": False}, peers.HeunStart(3))

    unipc = "UniPCMultistepScheduler"
    for p, karras in product((1, 2, 3), (False, True)):  # its bh1 gives NaN at sigma = 0
        yield Case(unipc, {"solver_order": p, "use_karras_sigmas": karras}, UniPC(p))
    for p, bh, lower, x0 in product((1, 2, 3), ("bh1", "bh2"), (False, True), (False, True)):
        options = {"solver_order": p, "solver_type": bh, "lower_order_final": lower, "predict_x0": x0}
        solver = UniPC(p, "denoised" if x0 else "noise", bh=bh, lower_final=lower)
        yield Case(unipc, {**options, "final_sigmas_type": "sigma_min"}, solver)
    for p, lower in product((1, 2, 3), (False, True)):  # log-rho DEIS, the one that diffusers has
        options = {"solver_order": p, "lower_order_final": lower}
        # At order 3 its antiderivatives, t times squares of logs, cancel in float32: 17 roundings are seen.
        loss = 128.0 if p == 3 else 8.0
        yield Case("DEISMultistepScheduler", options, Multistep(p, "noise", "lambda", lower_final=lower), loss=loss)


def scheduler_pair(df, case, path, options, predicts, exact):
    """(ours, theirs, alpha at the start) on the scheduler's own grid."""
    scheduler = getattr(df, case.scheduler)(**options, **case.options)
    scheduler.set_timesteps(case.steps)
    at = peers.times(path, peers.nodes(scheduler))
    if exact:
        peers.widen(scheduler, path, at)
    model, x = mixture_model(MIXTURE, path, predicts), start()
    # Euler and Heun keep x / alpha in the place of x.
    unit = float(path.alpha(at[0])) if case.scheduler in ("EulerDiscreteScheduler", "HeunDiscreteScheduler") else 1.0
    theirs = peers.run_scheduler(scheduler, model.net, x / unit, at, unrounded=exact)
    return ours(model, x, case.solver, at), theirs, float(path.alpha(at[0]))


@pytest.mark.product(
    {"case": list(vp_cases()), "name, prediction": list(zip(TABLES, PREDICTIONS, strict=True))},
    some={"case": list(vp_cases())[::2]},
)
def test_diffusers_methods(df, case, name, prediction):
    """With float64 noise levels in the place of its float32 ones, each scheduler is our tableau to rounding."""
    path, options = table(name)
    options = {**options, "prediction_type": prediction}
    mine, theirs, alpha = scheduler_pair(df, case, path, options, PREDICTIONS[prediction], exact=True)
    # x_0 = (x - sigma eps) / alpha multiplies the rounding of x; alpha starts at 0.07, 0.006 or 5e-5. 4e-15 is seen.
    assert distance(mine, theirs) < 4e-14 / alpha
    # With its own float32 levels: what a user of diffusers gets, to those levels' rounding.
    path, options = table("scaled_linear")
    options = {**options, "prediction_type": "v_prediction"}
    mine, theirs, alpha = scheduler_pair(df, case, path, options, "v", exact=False)
    assert distance(mine, theirs) < case.loss * ULP / alpha


def test_diffusers_pipeline(df):
    """DPM-Solver++(2M) Karras on Stable Diffusion's table, each side with its own table and grid."""
    path, options = table("scaled_linear")
    model, x = mixture_model(MIXTURE, path, "noise"), start(torch.float32)
    scheduler = df.DPMSolverMultistepScheduler(**options, use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    run = ds.solve(model, noise=x, solver="dpmpp-2m", steps=20, grid="karras", seed=0)
    theirs = peers.run_scheduler(scheduler, model.net, x, run.times)
    # The tables' ends differ by 1e-5 at most (see the grids above) and the states are float32: 37 roundings are seen.
    assert distance(run.x, theirs) < 256 * ULP


# DDIM on the spacings where its t - 1000 // n is the next timestep: leading, and trailing where n divides 1000.
@pytest.mark.product(
    {
        "name, zero_snr": [*((name, False) for name in TABLES), ("scaled_linear", True)],
        "eta": [0.0, 0.5, 1.0],
        "spacing": ["leading(offset=1)", "trailing"],
    },
    each=3,
)
def test_diffusers_ddim(df, name, zero_snr, spacing, eta):
    path, options = table(name, zero_snr)
    options |= {"timestep_spacing": spacing.partition("(")[0], "steps_offset": int("1" in spacing)}
    grid, x = grids.named(spacing)(path, 10), start()
    for prediction, predicts in PREDICTIONS.items():
        if zero_snr and prediction == "epsilon" and spacing == "trailing":
            continue  # at alpha = 0 noise says nothing of the data: theirs is NaN, ours an error
        model = mixture_model(MIXTURE, path, predicts)
        # Out of alpha = 0 at eta = 1 the weight of eps is 0; in float32 theirs is sqrt(+-1e-7), so far off or NaN.
        shipped = predicts == "v" and not (zero_snr and eta == 1)
        for exact in (True, False) if shipped else (True,):
            scheduler = df.DDIMScheduler(**options, prediction_type=prediction, clip_sample=False)
            if exact:
                scheduler.alphas_cumprod = path.alpha(np.arange(1000.0)) ** 2
            scheduler.set_timesteps(10)
            theirs = peers.run_scheduler(
                scheduler, model.net, x, grid, options=lambda i: {"eta": eta, "variance_noise": noise(i)}
            )
            # From eps, x_0 is a difference divided by alpha; 6e-14 and 62 roundings are seen.
            alpha = float(path.alpha(grid[0])) if predicts == "noise" else 1.0
            assert distance(ours(model, x, DDIM(eta), grid), theirs) < (5e-13 if exact else 512 * ULP) / alpha


def flow_cases():
    yield Case("FlowMatchEulerDiscreteScheduler", {}, "euler")
    yield Case("FlowMatchHeunDiscreteScheduler", {}, "heun")
    for p in (1, 2, 3):
        options = {"solver_order": p, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        yield Case("DPMSolverMultistepScheduler", options, DPMpp(p, lower_final=True))
        yield Case("UniPCMultistepScheduler", options, UniPC(p))


@pytest.mark.product({"case": list(flow_cases()), "shift": [1.0, 3.0]})
def test_diffusers_flow(df, case, shift):
    path = paths.Rectified(shift)
    velocity = mixture_model(MIXTURE, path, "velocity")
    # Its Heun ends with an Euler step. So does ours with a network that says nothing of eps at sigma = 0; from a
    # velocity it would make the second call there.
    mine = mixture_model(MIXTURE, path, "denoised") if "Heun" in case.scheduler else velocity
    x = start()
    for exact in (True, False):
        shift_option = "flow_shift" if "use_flow_sigmas" in case.options else "shift"
        scheduler = getattr(df, case.scheduler)(**case.options, **{shift_option: shift})
        scheduler.set_timesteps(case.steps)
        at = peers.nodes(scheduler)
        if exact:
            peers.widen(scheduler, path, at)
        theirs = peers.run_scheduler(scheduler, velocity.net, x, at, unrounded=exact)
        # 1e-14 and 7 roundings are seen.
        assert distance(ours(mine, x, case.solver, at), theirs) < (1e-13 if exact else 64 * ULP)


def edm_cases():
    for schedule, n in product(("karras", "exponential"), (10, 20)):
        options = {"sigma_schedule": schedule}
        yield Case("EDMEulerScheduler", options, "ddim", n)
        for p, lower in product((1, 2, 3), (False, True)):
            solver = DPMpp(p, lower_final=lower and n < 15)
            options = {"sigma_schedule": schedule, "solver_order": p, "lower_order_final": lower}
            yield Case("EDMDPMSolverMultistepScheduler", options, solver, n)


@pytest.mark.parametrize("case", list(edm_cases()), ids=str)
def test_diffusers_edm(df, case):
    """A raw EDM network F, preconditioned by each library."""

    def raw(x, c_noise, sigma_data=0.5):  # F of D = c_skip x + c_out F(c_in x, c_noise): 2206.00364, eq. 7, solved
        sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
        norm = (sigma**2 + sigma_data**2).sqrt()
        denoised, _ = MIXTURE.expectations(x * norm, 1.0, sigma.flatten())
        return (denoised - (sigma_data / norm) ** 2 * x * norm) / (sigma * sigma_data / norm)

    model, x = ds.adapt(raw, EDM, "edm"), 80 * start()
    for exact in (True, False):
        scheduler = getattr(df, case.scheduler)(**case.options)
        scheduler.set_timesteps(case.steps)
        at = peers.nodes(scheduler)
        if exact:
            peers.widen(scheduler, EDM, at)
        theirs = peers.run_scheduler(scheduler, lambda x, t: raw(x, model.network_time(t)), x, at, unrounded=exact)
        # 2e-14 and 11 roundings are seen.
        assert distance(ours(model, x, case.solver, at), theirs) < (2e-13 if exact else 64 * ULP)


# Weights against the papers' formulas ----------------------------------------------------------------------------

VP = paths.VP()
COARSE = np.array([1.0, 0.8, 0.7, 0.5, 0.42, 0.2, 0.01])
FINE = 0.5 - 4e-4 * np.array([0, 1, 1.5, 3, 4, 6, 7])  # steps of 1e-3 in lambda, where the published formulas cancel
ROW = 4  # a step with as many values behind it as any method here asks for


def levels(times):
    """alpha, sigma and lambda of the nodes, in 50 digits but from the float64 ones."""
    p = VP.nodes(times)
    return ([mp.mpf(float(value)) for value in values] for values in (p.alpha, p.sigma, p.lam))


@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("frame", ["denoised", "noise"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_weights(p, frame, bh):
    for times in shown((COARSE, FINE)):
        tableau = UniPC(p, frame, bh=bh, lower_final=False)(VP, times)
        data = frame == "denoised"
        with mp.workdps(50):
            alpha, sigma, lam = levels(times)
            lead, kept = (alpha, sigma) if data else (sigma, alpha)
            behind = lam[ROW::-1][:p]
            predictor = unipc(behind, lam[ROW + 1], lead[ROW + 1], data, bh, corrects=False)
            behind = lam[ROW - 1 :: -1][:p]
            *corrector, newest = unipc(behind, lam[ROW], lead[ROW], data, bh, corrects=True)
        agree(added(tableau, ROW, kept[ROW + 1] / kept[ROW]), predictor)
        state = tableau.weights[ROW, 0]
        agree(state[2:-1], [newest, *corrector])
        np.testing.assert_allclose(state[:2], [float(kept[ROW] / kept[ROW - 1]), 0], rtol=1e-14)


@pytest.mark.parametrize("times", [COARSE, FINE], ids=["coarse", "fine"])
@pytest.mark.parametrize("frame", ["denoised", "noise"])
def test_dpmpp_weights(frame, times):
    with mp.workdps(50):
        alpha, sigma, lam = levels(times)
        h = lam[ROW + 1] - lam[ROW]
        r0, r1 = (lam[ROW] - lam[ROW - 1]) / h, (lam[ROW - 1] - lam[ROW - 2]) / h
        # 2M, 2211.01095, algorithm 2: x_t = (sigma_t / sigma_s) x - alpha_t (e^z - 1) D, z = -h; the same with
        # alpha and sigma exchanged and z = h for eps
        lead, kept, z = (alpha, sigma, -h) if frame == "denoised" else (sigma, alpha, h)
        f1 = lead[ROW + 1] * mp.expm1(z)
        second = [-f1 * (1 + 1 / (2 * r0)), f1 / (2 * r0)]
        # 3M, as in its authors' code: .. - alpha_t ((e^z - 1) / z - 1) D1 - alpha_t ((e^z - 1 - z) / z^2 - 1/2) D2
        f2 = f1 / z - lead[ROW + 1]
        f3 = f2 / z - lead[ROW + 1] / 2
        D1_0, D1_1 = mp.matrix([1, -1, 0]) / r0, mp.matrix([0, 1, -1]) / r1
        D1 = D1_0 + (D1_0 - D1_1) * (r0 / (r0 + r1))
        D2 = (D1_0 - D1_1) / (r0 + r1)
        third = mp.matrix([-f1, 0, 0]) - f2 * D1 - f3 * D2
    for points, expected in ((2, second), (3, third)):
        found = added(DPMpp(points, frame)(VP, times), ROW, kept[ROW + 1] / kept[ROW])
        agree(found, expected)


@pytest.mark.parametrize("times", [COARSE, FINE], ids=["coarse", "fine"])
@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_deis_weights(points, times):
    """tAB-DEIS (2204.13902, eq. 15): C_j = int 1/2 Psi(t, tau) beta / sigma prod (tau - t_k) / (t_j - t_k) dtau."""
    tableau = Multistep(points, "noise", "t")(VP, times)
    with mp.workdps(30):
        low, high = mp.mpf(VP.beta_min), mp.mpf(VP.beta_max)
        beta = lambda t: low + t * (high - low)  # noqa: E731
        log_alpha = lambda t: -(t**2) * (high - low) / 4 - t * low / 2  # noqa: E731
        t = [mp.mpf(float(x)) for x in times]
        nodes, end = t[ROW::-1][:points], t[ROW + 1]

        def integrand(tau, j):
            basis = mp.fprod((tau - x) / (nodes[j] - x) for x in nodes if x != nodes[j])
            psi = mp.exp(log_alpha(end) - log_alpha(tau))
            return psi * beta(tau) / (2 * mp.sqrt(-mp.expm1(2 * log_alpha(tau)))) * basis

        expected = [mp.quad(lambda tau, j=j: integrand(tau, j), [t[ROW], end]) for j in range(points)]
        ratio = mp.exp(log_alpha(end) - log_alpha(t[ROW]))
    agree(added(tableau, ROW, ratio), expected)


# Where the frame's c is 1 and its v is exact in binary: sigma on both.
@pytest.mark.parametrize(
    ("path", "frame", "times"),
    [
        (paths.CondOT(), "straight", [0, 1 / 16, 3 / 16, 0.25, 0.5, 0.875, 1]),
        (EDM, "noise", [64, 24, 20, 8, 3, 0.5, 0.25]),
    ],
    ids=["straight", "noise"],
)
@pytest.mark.parametrize("points", [2, 3, 4])
def test_adams_weights(points, path, frame, times):
    """Adams-Bashforth and Adams-Moulton (one value more) on uneven steps, in fractions."""
    v = [Fraction(float(x)) for x in path.sigma(times)]
    bashforth = lagrange_integrals(v[ROW::-1][:points], v[ROW], v[ROW + 1])
    moulton = lagrange_integrals(v[ROW::-1][: points + 1], v[ROW - 1], v[ROW])
    agree(added(Multistep(points, frame)(path, times), ROW, 1), bashforth)
    corrected = Multistep(points, frame, corrector=points + 1)(path, times)
    agree(added(corrected, ROW, 1), bashforth)
    agree(corrected.weights[ROW, 0, 2:-1], moulton)
