"""Stochastic solvers: closed-form laws on Gaussian data, coupled paths, and agreement with peers fed the same noise."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import peers
from support.gaussian import errors, moments, propagate
from support.product import shown
from support.solvers import KINDS, POLICY, STUDENTS

import diffsolve as ds
from diffsolve import paths
from diffsolve.noise import Key, Stream
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.solvers import (
    DDIM,
    ERSDE,
    Ancestral,
    Churn,
    Diffusion,
    DPMpp,
    ExponentialRK,
    Interval,
    Maruyama,
    Multistep,
    Restart,
    RungeKutta,
)
from diffsolve.solvers.exponential import dpm2, res5
from diffsolve.solvers.runge_kutta import RK4

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")  # it uses NumPy as of 1.x

NAMES = [
    name for name in ds.solvers.names() if name not in STUDENTS | POLICY and ds.plan("vp", name, steps=12).stochastic
]
INEXACT = ["euler-maruyama", "stochastic-heun", "reverse-diffusion", "ddpm(variance='large')"]
EXACT = [
    *(name for name in NAMES if name not in INEXACT),
    "ddim(eta=0.4)",
    "ddim(eta=1.0)",
    "sa-3(tau=0.5)",
    "dpmpp-2m-sde(tau=1.5)",
]
INTERIOR = {"condot": (0.4, 0.85), "edm": (1.5, 0.2), "vp": (0.6, 0.12)}
TAUS = {
    "interval": Interval(1.0, 0.3, 0.9),
    "er": ERSDE(),
    "bounded": Diffusion(lambda t: 0.7 + 0.0 * t),
    "falling": Diffusion(lambda t: np.sqrt(np.abs(t) / 2)),
}


@pytest.mark.product(
    {
        "spec": [*EXACT, *TAUS],
        "path": ["edm", "vp", "condot", "ddpm", "rectified", "ddpm(zero_terminal_snr=True)"],
    }
)
def test_the_marginals_of_a_point_are_exact(spec, path):
    """Data at one point has a constant D: however few the steps, every network input is N(alpha x_0, sigma^2)."""
    solver = Multistep(2, "denoised", "lambda", 3, tau=TAUS[spec]) if spec in TAUS else spec
    for steps in (1, 2, 5, 11):
        y, levels = propagate(ds.plan(path, solver, steps=steps), mean=1.3, std=0.0)
        mean, variance = moments(y)
        np.testing.assert_allclose(mean, 1.3 * levels[:, 0], atol=1e-10)
        np.testing.assert_allclose(variance, levels[:, 1] ** 2, rtol=1e-9, atol=1e-10)


WEAK = [
    *(*NAMES, "ddim(eta=0.5)", "ddpm(variance='large')", "sa-3(corrector=0)", "sa-2(tau=0.5)", "sa-2(mode='pece')"),
    *("restart(inner='rk4', low=0.5, high=1.2)", "flow-sde", "dance-sde", "repaint(jump=3)", *TAUS),
    "designed-sde(tau=1.0)",
]


FEW = [spec for spec in WEAK if spec not in NAMES or spec in KINDS][::3] + WEAK[-1:]


@pytest.mark.product({"spec": WEAK, "path": list(INTERIOR)}, some={"spec": FEW})
def test_weak_order_on_gaussian_data(spec, path):
    """|variance - exact| falls with the declared order: no sampling, the linear recursion is followed exactly."""
    start, stop = INTERIOR[path]
    solver = Multistep(2, "denoised", "lambda", tau=TAUS[spec]) if spec in TAUS else ds.solvers.named(spec)
    found = []
    steps = (160, 320)
    for n in steps:
        plan = ds.plan(path, solver, steps=n, start=start, stop=stop, grid="uniform-theta")
        found.append(sum(sum(errors(plan, std=std)) for std in (0.2, 0.4, 1.0)))
    order = math.log2(found[0] / found[1])
    assert order > solver.order - 0.2, found
    assert found[1] < {1: 0.1, 2: 3e-3, 4: 1e-6}[solver.order]


def end_deviation(path, spec, steps, **where):
    """Of the result for data N(0, 0.5^2), from the noise to the data."""
    y, _ = propagate(ds.plan(path, spec, steps=steps, **where), mean=0.0, std=0.5)
    return math.sqrt(moments(y)[1][-1])


ENDS = ("condot", "ddpm", "edm")


@pytest.mark.parametrize("path", ENDS)
def test_no_name_ends_with_more_error_than_the_plain_first_order_step(path):
    """`ddpm` takes D as constant over a step and extrapolates nothing.

    Where a name of second order is farther from the exact deviation than that, at 30 steps on the path's own grid, its
    extrapolation does harm, as that of four values did. First-order methods differ from it by a constant, at most 1.4.
    """
    error = {name: abs(end_deviation(path, name, 30) - 0.5) for name in NAMES}
    for name in NAMES:
        factor = 1.0 if ds.solvers.named(name).order > 1 else 1.5
        assert error[name] <= factor * error["ddpm"] * (1 + 1e-12), (name, error[name], error["ddpm"])


@pytest.mark.parametrize("alias", ["sa_solver", "sa_solver_pece", "SASolverScheduler"])
@pytest.mark.parametrize("grid", ["linspace", "leading", "uniform-lambda"])
def test_no_alias_ends_wide_on_another_librarys_grid(alias, grid):
    """Their last step may be long; without a limit the spread is 0.88 to 2.5 there, where 0.5 is exact."""
    assert abs(end_deviation("ddpm", alias, 30, grid=grid) - 0.5) < 0.08


def test_the_table_of_end_deviations():
    """docs/stochastic.md, "How wide the samples end"."""
    text = (Path(__file__).parents[2] / "docs" / "stochastic.md").read_text()
    rows = text.split("| solver | condot 10 |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) >= 8
    for row in rows:
        name, *cells = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        found = [end_deviation(path, name, steps) for path in ENDS for steps in (10, 30, 120)]
        np.testing.assert_allclose(found, [float(cell) for cell in cells], atol=6e-4)


def test_the_weights_of_four_values_are_limited():
    """Each value has noise of its own: on CondOT's grid four published weights of the last steps add up to 30."""
    total = lambda plan: np.abs(plan.weights[:-1, 1, 2:-1]).sum(-1) / plan.weights[:-1, 1, 2:-1].sum(-1)  # noqa: E731
    table = lambda spec: ds.plan("condot", spec, steps=30)  # noqa: E731
    assert total(table("sa-4(corrector=0, limit=1e9)")).max() > 30
    for spec, most in (("sa-4(corrector=0)", 5.0), ("sa-3(corrector=0, limit=4)", 4.0), ("dpmpp-3m-sde(limit=3)", 3.0)):
        found = total(table(spec))
        assert most - 1 < found.max() <= most
    # It is four values where the steps shrink, two or three where they grow.
    used = [(np.abs(row) > 0).sum() for row in table("sa-4(corrector=0)").weights[:-1, 1, 2:-1]]
    assert max(used) == 4
    assert 1 < used[-1] < 4


def test_the_limit_leaves_the_published_methods_alone():
    """Up to three values, values given for each step, and whatever stays below it."""

    def same(one, two, **where):
        one, two = (ds.plan("condot", solver, **where) for solver in (one, two))
        np.testing.assert_array_equal(one.weights, two.weights)

    adams = {"frame": "denoised", "variable": "lambda", "tau": 1.0}
    for points in (1, 2, 3):
        same(Multistep(points, **adams), Multistep(points, **adams, limit=math.inf), steps=30)
    same(Multistep((1, 1, 2, 3, 4, 4, 4, 4), **adams), Multistep(4, **adams, limit=math.inf), steps=8)
    same("sa-3", "sa-3(limit=20)", steps=30)
    same("sa-4(tau=0)", Multistep(4, "denoised", "lambda", 5), steps=30)


def test_three_values_can_be_limited_on_grids_of_other_libraries():
    for path in ("condot", "ddpm"):
        for grid in ("linspace", "leading(offset=1)"):
            assert end_deviation(path, "sa-3", 30, grid=grid) > 1.5
            for spec in ("sa-3(limit=5)", "sa-4"):
                assert abs(end_deviation(path, spec, 30, grid=grid) - 0.5) < 0.05


AMOUNTS = [
    *(lambda eta=eta: DDIM(eta) for eta in (0.2, 0.6, 1.0)),
    *(lambda tau=tau: Multistep(2, "denoised", "lambda", 3, tau=tau) for tau in (0.3, 0.8, 1.0, 1.6)),
    *(lambda tau=tau: ExponentialRK(dpm2(), tau=tau) for tau in (0.3, 1.0, 1.6)),
    *(lambda tau=tau: Maruyama(2, tau) for tau in (0.3, 1.0)),
    *(lambda churn=churn: Churn(s_churn=churn) for churn in (5.0, 20.0)),
    *(lambda eta=eta: Ancestral(eta=eta) for eta in (0.3, 0.8)),
    *(lambda times=times: Restart(low=0.5, high=1.0, times=times) for times in (1, 4)),
]


@pytest.mark.product({"make": AMOUNTS, "path": list(INTERIOR)})
def test_every_amount_of_noise_keeps_the_marginals(make, path):
    start, stop = INTERIOR[path]
    plan = ds.plan(path, make(), steps=400, start=start, stop=stop, grid="uniform-theta")
    assert sum(errors(plan)) < 2e-3
    assert plan.stochastic


def test_tau_of_zero_is_the_probability_flow():
    times = [0.8, 0.6, 0.3, 0.1]
    for noisy, still in {
        "dpmpp-2m-sde(tau=0)": "dpmpp-2m",
        "seeds-3(tau=0.0)": "dpmpp-3s",
        "sa-2(tau=0)": Multistep(2, "denoised", "lambda", 3),
        "edm-heun(s_churn=0)": "heun(frame='noise')",
        "restart(times=0)": "heun(frame='noise')",
        "dpm-2-ancestral(eta=0)": "dpm-2s",
    }.items():
        a, b = (ds.plan("vp", spec, grid=times) for spec in (noisy, still))
        np.testing.assert_array_equal(a.weights, b.weights)


def test_named_methods_that_are_the_same():
    times = [80.0, 20.0, 6.0, 2.0, 0.9, 0.3, 0.0]
    table = lambda spec: ds.plan("edm", spec, grid=times)  # noqa: E731
    for one, two in (("ddpm", "ddim(eta=1.0)"), ("seeds-1", "ddim(eta=1.0)"), ("dpmpp-sde", "seeds-2")):
        np.testing.assert_allclose(table(one).weights, table(two).weights, rtol=1e-12, atol=1e-15)
    euler = table("edm-euler(s_churn=0)")
    np.testing.assert_array_equal(euler.weights, table("euler").weights)
    # An ancestral Euler step, down and up again, is DDIM's.
    y, _ = propagate(ds.plan("edm", Ancestral(Multistep(1), 0.7), grid=times))
    np.testing.assert_allclose(y, propagate(ds.plan("edm", DDIM(0.7), grid=times))[0], atol=1e-12)


@pytest.mark.parametrize(
    "spec",
    ["sa-3", "seeds-3", "edm-heun(s_churn=5, s_max=60)", "restart(low=0.5, high=1.5)", "stochastic-heun", "ddpm"],
)
def test_what_runs_is_what_was_followed(spec):
    """The executor, its noise and its entry, against the closed form for the same normals."""
    mixture = GaussianMixture.isotropic(
        torch.full((1, 3), 0.7, dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    )
    model = mixture_model(mixture, "edm", "denoised")
    key = Key(3)
    x = key.normal((4, 3), dtype=torch.float64)
    plan = ds.plan(model, spec, steps=7)
    scale = float(np.hypot(plan.grid[0, 1] * 0.4, plan.grid[0, 2]))
    start = plan.grid[0, 1] * 0.7 + scale * x
    made = ds.sample(model, noise=start, solver=plan, seed=3)
    rows = [key.normal(x.shape, row=i, stream=Stream.ROW, dtype=torch.float64) for i in range(plan.nfe + 1)]
    followed, _ = propagate(plan)
    expected = sum(
        (float(w) * z for w, z in zip(followed[-1][1:], [x, *rows], strict=True)), torch.full_like(x, followed[-1][0])
    )
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-11)


def coupled(coarse, fine):
    """The coarse run's coefficients on the fine run's normals, both along one Brownian path in the tableau's clock."""
    matrix = np.zeros((coarse.nfe, fine.nfe))
    for i, (a, b) in enumerate(coarse.clock):
        for j, (c, d) in enumerate(fine.clock):
            if b > a and d > c and c >= a * (1 - 1e-9) and d <= b * (1 + 1e-9):
                matrix[i, j] = math.sqrt((d - c) / (b - a))
    has = coarse.weights[:, 1, -1] != 0
    np.testing.assert_allclose((matrix[has] ** 2).sum(1), 1, rtol=1e-6)
    y = propagate(coarse)[0][-1]
    return np.concatenate([y[:3], y[3:] @ matrix])


STRONG = ["seeds-1", "ddim(eta=1.0)", "sa-1(corrector=0)", "seeds-2", "sa-2", "euler-maruyama", "dpmpp-2m-sde"]


@pytest.mark.product({"spec": STRONG, "path": ["edm", "vp"]})
def test_strong_order_with_one_brownian_path(spec, path):
    """E |x_n - x|^2 for Gaussian data, in closed form, on grids of n and 512 steps along one path."""
    start, stop = INTERIOR[path]
    plan = lambda spec, n: ds.plan(path, spec, steps=n, start=start, stop=stop, grid="uniform-lambda")  # noqa: E731
    fine = plan("sa-2", 512)
    exact = propagate(fine)[0][-1]
    off = [np.linalg.norm((coupled(plan(spec, n), fine) - exact)[1:]) for n in (16, 32, 64)]
    slopes = -np.diff(np.log2(off))
    assert slopes.min() > 1 - 0.15, off
    assert off[-1] < 0.05


def test_a_step_of_the_exact_sde_can_be_cut_in_two():
    """For constant D the noise of one step is that of its two halves along the clock."""
    one, two = (ds.plan("vp", "seeds-1", grid=grid) for grid in ([0.7, 0.3], [0.7, 0.5, 0.3]))
    a = one.weights[0, 1, -1]
    first, second = two.weights[0, 1, -1] * two.weights[1, 1, 1], two.weights[1, 1, -1]
    q = [*one.clock[0], two.clock[0, 1]]
    assert two.clock[0, 0] == q[0]
    assert two.clock[1, 1] == q[1]
    share = math.sqrt((q[2] - q[0]) / (q[1] - q[0]))
    np.testing.assert_allclose([first, second], [a * share, a * math.sqrt(1 - share**2)], rtol=1e-12)


# Reproducible noise ----------------------------------------------------------------------------------------------


def elementwise(x, t):
    return torch.tanh(x) * 0.9


@pytest.mark.parametrize("spec", NAMES)
def test_a_sample_depends_on_its_seed_alone(spec):
    """Whatever the batch, the shard and the order; and PyTorch's global random state is neither read nor written."""
    model = ds.adapt(elementwise, "edm", "denoised")
    run = lambda *shape, **options: ds.sample(model, shape, solver=spec, steps=12, grid="angle", **options)  # noqa: E731
    before = torch.get_rng_state()
    whole = run(64, 3, 5, seed=9)
    torch.manual_seed(1)
    assert torch.equal(run(1, 3, 5, seed=9), whole[:1])
    assert torch.equal(run(7, 3, 5, seed=9), whole[:7])
    assert torch.equal(run(7, 3, 5, seed=9, index=20), whole[20:27])
    listed = run(4, 3, 5, seed=[3, 4, 5, 6])
    assert torch.equal(run(4, 3, 5, seed=[6, 3, 5, 4]), listed[[3, 0, 2, 1]])
    torch.set_rng_state(before)
    run(2, 3, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_split_over_two_processes(tmp_path):
    program = """
import sys, torch, diffsolve as ds
torch.manual_seed(int(sys.argv[1]))
model = ds.adapt(lambda x, t: torch.tanh(x) * 0.9, "edm", "denoised")
options = {"steps": 9, "seed": 2, "index": int(sys.argv[1])}
torch.save([ds.sample(model, (5, 3, 4), solver=s, **options) for s in ("sa-3", "edm-heun", "seeds-3")], sys.argv[2])
"""
    shards = [(0, tmp_path / "a"), (5, tmp_path / "b")]
    running = [subprocess.Popen([sys.executable, "-c", program, str(index), str(file)]) for index, file in shards]
    assert [process.wait(120) for process in running] == [0, 0]
    parts = [torch.load(file, weights_only=True) for _, file in shards]
    model = ds.adapt(elementwise, "edm", "denoised")
    for i, spec in enumerate(("sa-3", "edm-heun", "seeds-3")):
        whole = ds.sample(model, (10, 3, 4), solver=spec, steps=9, seed=2)
        assert torch.equal(torch.cat([part[i] for part in parts]), whole)


# Peers ---------------------------------------------------------------------------------------------------------

EDM = paths.EDM()
MIXTURE = GaussianMixture.isotropic(
    torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.full((5,), 0.3, dtype=torch.float64),
)
KEY = Key(0)


def z(i):
    return KEY.normal((4, 6), row=i + 1, stream=Stream.ROW, dtype=torch.float64)


def rows_of(plan):
    """The calls whose row adds noise."""
    return [i for i in range(plan.nfe) if plan.weights[i, 1, -1]]


@pytest.mark.parametrize(("name", "options", "solver"), [
    ("euler_ancestral", {}, "ddim(eta=1.0)"),
    ("euler_ancestral", {"eta": 0.6}, "ddim(eta=0.6)"),
    ("dpmpp_2m_sde", {}, "dpmpp-2m-sde"),
    ("dpmpp_2m_sde", {"eta": 0.25}, "dpmpp-2m-sde(tau=0.5)"),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, Multistep(2, "denoised", "lambda", tau=1.0)),
    ("dpmpp_3m_sde", {}, peers.HeunStart(3, tau=1.0)),
    ("dpm_2_ancestral", {}, "dpm-2-ancestral"),
    ("dpmpp_2s_ancestral", {}, "dpmpp-2s-ancestral"),
    ("dpmpp_2s_ancestral", {"eta": 0.5}, "dpmpp-2s-ancestral(eta=0.5)"),
])  # fmt: skip
def test_k_diffusion(kd, name, options, solver):
    sigmas = kd.get_sigmas_karras(9, 0.01, 60.0).double()
    model, x = mixture_model(MIXTURE, EDM, "denoised"), 60 * KEY.normal((4, 6), dtype=torch.float64)
    plan = ds.plan(model, solver, grid=sigmas)
    rows = iter(rows_of(plan))
    theirs = getattr(kd, f"sample_{name}")(
        model.net, x, sigmas, disable=True, noise_sampler=lambda *_: z(next(rows)), **options
    )
    torch.testing.assert_close(ds.sample(model, noise=x, solver=plan, seed=0), theirs, rtol=1e-11, atol=1e-12)


def test_k_diffusion_dpmpp_sde(kd):
    """Its two noises of a step are increments of one path in its clock; here they get ours, of a path in lambda."""
    sigmas = kd.get_sigmas_karras(9, 0.01, 60.0).double()
    model, x = mixture_model(MIXTURE, EDM, "denoised"), 60 * KEY.normal((4, 6), dtype=torch.float64)
    plan = ds.plan(model, "dpmpp-sde", grid=sigmas)

    def drawn():
        for i in range(0, plan.nfe - 1, 2):
            yield z(i)
            q = [*plan.clock[i], plan.clock[i + 1, 1]]
            share = (q[1] - q[0]) / (q[2] - q[0])
            yield math.sqrt(share) * z(i) + math.sqrt(1 - share) * z(i + 1)

    noises = drawn()
    theirs = kd.sample_dpmpp_sde(model.net, x, sigmas, disable=True, noise_sampler=lambda *_: next(noises))
    torch.testing.assert_close(ds.sample(model, noise=x, solver=plan, seed=0), theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", ["euler", "heun", "dpm_2"])
def test_k_diffusion_churn(kd, kind, monkeypatch):
    sigmas = kd.get_sigmas_karras(9, 0.01, 60.0).double()
    model, x = mixture_model(MIXTURE, EDM, "denoised"), 60 * KEY.normal((4, 6), dtype=torch.float64)
    inner = {"euler": "euler(frame='noise')", "heun": "heun(frame='noise')", "dpm_2": "dpm-2s"}[kind]
    plan = ds.plan(model, f'edm-heun(inner="{inner}", s_churn=3, s_min=0.05, s_max=50.0, s_noise=1.003)', grid=sigmas)
    rows = rows_of(plan)
    levels = [float(s) for s in sigmas[:-1]]
    drawn = iter(levels)

    def like(x):  # it draws at every step, also where it adds nothing
        level = next(drawn)
        churned = [v for v in levels if 0.05 <= v <= 50]
        return z(rows[churned.index(level)]) if level in churned else torch.zeros_like(x)

    monkeypatch.setattr(torch, "randn_like", like)
    theirs = getattr(kd, f"sample_{kind}")(
        model.net, x, sigmas, disable=True, s_churn=3, s_tmin=0.05, s_tmax=50.0, s_noise=1.003
    )
    torch.testing.assert_close(ds.sample(model, noise=x, solver=plan, seed=0), theirs, rtol=1e-11, atol=1e-12)


def edm_sampler(net, latents, rows, num_steps, sigma_min, sigma_max, rho, S_churn, S_min, S_max, S_noise):
    """Algorithm 2 of 2206.00364 with its time steps, in its order of operations."""
    i = torch.arange(num_steps, dtype=torch.float64)
    t = (sigma_max ** (1 / rho) + i / (num_steps - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    x_next = latents * t[0]
    for k, (t_cur, t_next) in enumerate(zip(t[:-1], t[1:], strict=True)):
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= t_cur <= S_max else 0
        t_hat = t_cur + gamma * t_cur
        x_hat = x_next + (t_hat**2 - t_cur**2).sqrt() * S_noise * (rows(k) if gamma else 0)
        d = (x_hat - net(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d
        if k < num_steps - 1:
            d = 0.5 * d + 0.5 * (x_next - net(x_next, t_next)) / t_next
            x_next = x_hat + (t_next - t_hat) * d
    return x_next, t


def test_edm_sampler():
    model, x = mixture_model(MIXTURE, EDM, "denoised"), KEY.normal((4, 6), dtype=torch.float64)
    churn = {"S_churn": 40, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}
    _, t = edm_sampler(lambda x, t: x, x, lambda k: 0, 12, 0.002, 80.0, 7, **churn)
    plan = ds.plan(model, "edm-heun(s_churn=40, s_min=0.05, s_max=50.0, s_noise=1.003)", grid=t)
    added = iter(rows_of(plan))
    theirs, _ = edm_sampler(
        lambda x, t: model.net(x, t.expand(4)), x, lambda k: z(next(added)), 12, 0.002, 80.0, 7, **churn
    )
    torch.testing.assert_close(ds.sample(model, noise=80 * x, solver=plan, seed=0), theirs, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(ds.plan(model, "edm-heun", steps=12).times, t, rtol=1e-12)


@pytest.mark.parametrize("case", ["small", "large", "sde2", "sde1"])
def test_diffusers(df, case, monkeypatch):
    path = paths.Discrete.linear()
    model, x = mixture_model(MIXTURE, path, "noise"), KEY.normal((4, 6), dtype=torch.float64)
    if case in ("small", "large"):
        scheduler = df.DDPMScheduler(variance_type=f"fixed_{case}", clip_sample=False, timestep_spacing="leading")
        scheduler.alphas_cumprod = torch.from_numpy(np.asarray(path.alpha(np.arange(1000.0))) ** 2)
        scheduler.one = torch.tensor(1.0, dtype=torch.float64)
        scheduler.set_timesteps(10)
        grid, solver = [*scheduler.timesteps.tolist(), -1], f"ddpm(variance={case!r})"
    else:
        order = int(case[-1])
        scheduler = df.DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++", solver_order=order, lower_order_final=False, final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(10)
        grid = peers.times(path, peers.nodes(scheduler))
        peers.widen(scheduler, path, grid)
        solver = DPMpp(order, tau=1.0)
    plan = ds.plan(model, solver, grid=grid)
    if case in ("small", "large"):
        drawn = iter(range(plan.nfe))
        module = __import__("sys").modules[type(scheduler).__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: z(next(drawn)))
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(model.net(y, t.double().expand(4)), t, y).prev_sample
    else:
        y = peers.run_scheduler(
            scheduler,
            model.net,
            x,
            grid,
            unrounded=True,
            options=lambda i: {"variance_noise": z(i).as_subclass(peers.Unrounded)},
        )
    torch.testing.assert_close(ds.sample(model, noise=x, solver=plan, seed=0), y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("tau", [0.6, 1.0])
def test_diffusers_sa_solver_weights(df, order, tau):
    """x_t = .. + (1 + tau^2) sigma_t e^{-tau^2 lambda_t} sum_j b_j D_j, on steps that grow as CondOT's last ones do."""
    plan = ds.plan(
        "condot", Multistep(order, "denoised", "lambda", tau=tau, limit=math.inf), grid=[0.8, 0.85, 0.9, 0.94, 0.97]
    )
    lam = torch.log(torch.as_tensor(plan.grid[:, 1] / plan.grid[:, 2]))
    nodes = [lam[3 - j] for j in range(order)]
    b = df.SASolverScheduler().get_coefficients_fn(order, lam[3], lam[4], nodes, torch.tensor(tau, dtype=torch.float64))
    theirs = (1 + tau**2) * plan.grid[4, 2] * math.exp(-(tau**2) * lam[4]) * np.array([float(w) for w in b])
    np.testing.assert_allclose(plan.weights[3, 1, 2 : 2 + order], theirs, rtol=1e-9)


# Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "says"), [
    (lambda: Multistep(2, "straight", tau=1.0), "tau=1.0 with frame='straight'"),
    (lambda: Multistep(2, "denoised", tau=-1.0), "tau must be a finite number >= 0, got -1.0"),
    (lambda: ds.solvers.named("unipc-3(tau=1.0)"), "tau of UniPC must be 0, got 1.0"),
    (lambda: ds.solvers.named("sa-4(limit=2)"), "limit must be a number >= 3, or None, got 2"),
    (lambda: ds.solvers.named("sa-4(limit='no')"), "limit must be a number >= 3, or None, got 'no'"),
    (lambda: ds.solvers.named("sa-4(tau=0, limit=5)"), "limit must be None where tau is 0, got 5"),
    (lambda: ExponentialRK(res5(), tau=1.0), "stages that do not fall back"),
    (lambda: ExponentialRK(dpm2(), "noise", tau=1.0), "in the frame 'denoised'"),
    (lambda: Interval(1.0, 2.0, 1.0), "must be positive and rising"),
    (lambda: Diffusion(1.0), "a function of the path's clock"),
    (lambda: ds.plan("vp", Multistep(1, "denoised", tau=Diffusion(lambda t: -t)), steps=3), "must be numbers >= 0"),
    (lambda: Churn(inner="heun"), "inner must be a solver, got 'heun'"),
    (lambda: Churn(DDIM(1.0)), "inner must be a deterministic solver"),
    (lambda: Churn(s_churn=-1.0), "s_churn must be a number >= 0, got -1.0"),
    (lambda: Churn(s_min=3.0, s_max=1.0), "s_min must be at most s_max=1.0, got 3.0"),
    (lambda: Ancestral(eta=1.5), "eta must be .*, got 1.5"),
    (lambda: Restart(low=0.0), "must be positive and rising"),
    (lambda: Restart(times=-1), "times must be an integer >= 0, got -1"),
    (lambda: Maruyama(3), "stages must be an integer from 1 to 2, got 3"),
    (lambda: ds.solvers.named("ddpm(variance='fixed')"), "variance must be 'small' or 'large', got 'fixed'"),
    *((lambda name=name: ds.solvers.named(name)(EDM, [0.002, 80.0]), "from the (data to|noise)") for name in NAMES),
])  # fmt: skip
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_noise_is_added_on_the_way_to_the_data_only():
    for name in shown(NAMES):
        with pytest.raises(ValueError, match="from the (data to the|noise to the data)"):
            ds.solvers.named(name)(EDM, [0.002, 80.0])


def test_any_inner_solver_restarts():
    """Also in frames that are not exact for a point: there the tableau's own check begins anew after the noise."""
    for inner in (RungeKutta(RK4, "trig"), RungeKutta(RK4, "native"), Multistep(3, "trig", None, 4), Multistep(2)):
        plan = ds.plan("condot", Restart(inner, 0.3, 1.0), steps=12)
        assert plan.stochastic
        assert sum(errors(ds.plan("condot", Restart(inner, 0.3, 1.0), steps=300, start=0.3, stop=0.9))) < 1e-3


WIDE = GaussianMixture.isotropic(MIXTURE.means, 1.0)
"""No particle falls into another mode."""


# One Brownian path for any number of steps ---------------------------------------------------------------------------


@pytest.mark.product(
    {
        "spec": ["sa-3", "seeds-2", "er-sde-2", "ddim(eta=1.0)", "euler-maruyama", "sa-2(tau=0.5)"],
        "path": ["edm", "vp"],
    },
    some={"spec": ["sa-3", "seeds-2", "er-sde-2"]},
)
def test_runs_along_one_brownian_path_converge_to_each_other(spec, path):
    """Strong convergence along the library's own path; with row-keyed noise the runs differ by their noise."""
    start, stop = INTERIOR[path]
    model = mixture_model(WIDE, path, "denoised")
    level = float(model.path.sigma(start))
    x = level * KEY.normal((16, 6), dtype=torch.float64)
    w = ds.Brownian((16, 6), seed=1, dtype=torch.float64)

    def run(n, **noise):
        where = {"start": start, "stop": stop, "grid": "uniform-lambda"}
        return ds.sample(model, noise=x, solver=spec, steps=n, **where, **noise)

    exact = run(256, brownian=w)
    off = [float((run(n, brownian=w) - exact).norm() / exact.norm()) for n in (8, 64)]
    assert off[1] < off[0] / 3
    assert off[1] < 0.1
    assert float((run(64, seed=0) - exact).norm() / exact.norm()) > 3 * off[1]


def test_a_path_is_the_same_for_every_batch_and_resumes():
    model = ds.adapt(elementwise, "edm", "denoised")
    w = lambda n, **at: ds.Brownian((n, 3), seed=5, **at)  # noqa: E731
    whole = ds.sample(model, (6, 3), solver="sa-2", steps=7, seed=2, brownian=w(6))
    assert torch.equal(
        ds.sample(model, (2, 3), solver="sa-2", steps=7, seed=2, index=4, brownian=w(2, index=4)), whole[4:]
    )
    part = ds.solve(model, (6, 3), solver="sa-2", steps=7, seed=2, brownian=w(6), max_calls=3)
    assert torch.equal(ds.sample(model, solver=part.tableau, state=part.state, brownian=w(6)), whole)
    assert not torch.equal(ds.sample(model, (6, 3), solver="sa-2", steps=7, seed=2), whole)


def test_torchsde_has_a_path_too():
    torchsde = pytest.importorskip("torchsde")
    model = ds.adapt(elementwise, "edm", "denoised")
    w = torchsde.BrownianInterval(0.0, 1e6, size=(6, 3), entropy=1, dtype=torch.float64)
    x = 80 * torch.randn(6, 3, dtype=torch.float64)
    once, again = (ds.sample(model, noise=x, solver="sa-2", steps=7, brownian=w) for _ in range(2))
    assert torch.equal(once, again)


@pytest.mark.parametrize(("options", "says"), [
    ({"solver": "edm-heun", "brownian": ds.Brownian((2, 3), seed=0)}, "solver must be one whose noise is"),
    (
        {"solver": "restart(low=0.5, high=1.5)", "brownian": ds.Brownian((2, 3), seed=0)},
        "solver must be one whose noise is that of one SDE",
    ),
    ({"solver": "sa-2", "brownian": ds.Brownian((3, 3), seed=0)}, "brownian.shape must be .*got \\(3, 3\\)"),
])  # fmt: skip
def test_errors_of_paths(options, says):
    with pytest.raises(ValueError, match=says):
        ds.sample(ds.adapt(elementwise, "edm", "denoised"), (2, 3), steps=12, grid="angle", **options)
