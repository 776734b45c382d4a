"""Parallel in time: the limit, what is exact when, the stopping rule, and the accelerations."""

import math

import numpy as np
import pytest
import torch
from support.product import shares, shown
from support.solvers import KINDS

import diffsolve as ds
from diffsolve.noise import Key, Stream
from diffsolve.parallel.anderson import Mixer
from diffsolve.parallel.base import Calls
from diffsolve.parallel.picard import _Window
from diffsolve.parallel.rows import Rows, step_variance
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means

OWN = ["ddim(eta=1.0)", "ddim(eta=0.4)", "ab-3(corrector=3)"]
EVERY, KINDS = [*ds.solvers.names(), *OWN], [*KINDS, *OWN]
SOME = ["ddim(eta=1.0)", "unipc-3", "heun", "dpmpp-2m"]
DRIVERS = {
    "picard": ds.Picard(window=5, tol=0),
    "plain": ds.Picard(window=40, tol=0, accelerate=None, frame="denoised", warm="copy"),
    "anderson": ds.Picard(window=4, tol=0, accelerate=ds.Anderson(memory=2)),
    "workers": ds.Picard(window=7, tol=0, workers=3),
    "parareal": ds.Parareal(tol=0),
    "parareal, coarse": ds.Parareal(blocks=4, tol=0, coarse="midpoint"),
}


def elementwise(x, t, **cond):
    """A network whose result for a sample does not depend on the batch."""
    return torch.tanh(x) * 0.3 - 0.1 * x


class Counting:
    def __init__(self, net=elementwise):
        self.net, self.sizes = net, []

    def __call__(self, x, t, **cond):
        assert t.shape == (len(x),)
        self.sizes.append(len(x))
        return self.net(x, t, **cond)


def solve(model, solver, parallel, shape=(3, 2), steps=9, seed=0, dtype=torch.float64, **options):
    return ds.solve(model, shape, solver=solver, steps=steps, seed=seed, dtype=dtype, parallel=parallel, **options)


def window(model, solver, parallel, shape, steps):
    """The iteration inside Picard.run, at its start."""
    ex = ds.begin(model, shape, solver=solver, steps=steps, seed=0, dtype=torch.float64)
    return _Window(parallel, ex, Calls(model, ex.tableau, ex.y, ds.Guidance(1.0), {}, check=False))


# The limit -------------------------------------------------------------------------------------------------------


@pytest.mark.product({"driver": list(DRIVERS), "solvers": [EVERY]}, some={"solvers": shares(EVERY, len(DRIVERS))})
def test_the_limit_is_the_sequential_run(solvers, driver, mixture):
    model = mixture_model(mixture, "condot", "v")
    for solver in shown(solvers):
        run = solve(model, solver, DRIVERS[driver], steps=5)
        torch.testing.assert_close(run.x, solve(model, solver, None, steps=5).x, rtol=0, atol=1e-10)
        assert run.done
        assert run.parallel.rounds <= run.tableau.nfe
        assert run.parallel.wasted == run.parallel.calls - 3 * run.tableau.nfe >= 0


@pytest.mark.product(
    {
        "path": ["edm", "ddpm", "condot", "rectified(shift=3.0)", "ddpm(zero_terminal_snr=True)"],
        "predicts": ["noise", "denoised", "velocity", "v", "edm"],
        "frame": ["straight", "noise", "trig", "native"],
    },
    each=4,
)
def test_the_limit_on_every_path_for_every_prediction(path, predicts, frame, mixture):
    model = mixture_model(mixture, path, predicts)
    try:
        alone = solve(model, "dpmpp-2m", None)
    except ValueError:  # noise says nothing of the data at alpha = 0
        assert predicts == "noise"
        return
    scale = float(alone.x.abs().max())
    for parallel in (ds.Picard(window=4, tol=0, frame=frame), ds.Parareal(tol=0, frame=frame)):
        torch.testing.assert_close(solve(model, "dpmpp-2m", parallel).x, alone.x, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", SOME)
def test_the_limit_in_other_precisions(solver, dtype):
    model = ds.adapt(elementwise, "condot", "velocity")
    alone = solve(model, solver, None, dtype=dtype).x
    for parallel in DRIVERS.values():
        x = solve(model, solver, parallel, dtype=dtype).x
        assert x.dtype == dtype
        torch.testing.assert_close(x, alone, rtol=0, atol=20 * torch.finfo(dtype).eps * float(alone.abs().max()))


@pytest.mark.product({"solvers": shares(EVERY, 5)}, some={"solvers": shares(KINDS, 5)})
def test_a_window_of_one_call_is_the_sequential_run_bit_for_bit(solvers):
    for solver in shown(solvers):
        model = ds.load("digits")
        options = {"shape": (2, 1, 8, 8), "steps": 2, "dtype": None, "cond": {"label": torch.tensor([3, 7])}}
        alone, run = (solve(model, solver, p, **options) for p in (None, ds.Picard(window=1)))
        assert torch.equal(run.x, alone.x)
        assert run.parallel.rounds == run.parallel.depth == run.nfe == alone.nfe
        assert run.parallel.wasted == 0


def test_encoding(mixture):
    model = mixture_model(mixture, "condot", "velocity")
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone, side = (ds.encode(model, x, solver="rk4", steps=12, parallel=p) for p in (None, ds.Picard(window=9, tol=0)))
    torch.testing.assert_close(side, alone, rtol=0, atol=1e-10)


# What is exact when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parallel",
    [
        ds.Picard(window=6, tol=0),
        ds.Picard(window=6, tol=0, accelerate=None),
        ds.Picard(window=6, tol=0, accelerate=ds.Anderson(memory=3)),
        ds.Picard(window=6, tol=0, workers=2),
    ],
)
@pytest.mark.parametrize("solver", SOME)
def test_after_k_sweeps_the_first_k_points_are_exact(solver, parallel, mixture):
    model = mixture_model(mixture, "edm", "denoised")
    ex, points = ds.begin(model, (3, 2), solver=solver, steps=8, seed=0, dtype=torch.float64), []
    while not ex.done:
        points.append(ex.y.clone())
        ex.advance(model.net(*ex.query()))
    points = torch.stack([*points, ex.y])
    it = window(model, solver, parallel, (3, 2), 8)
    for k in range(1, ex.tableau.nfe + 1):
        s, y, d, stride = it.round()
        known, before = it.at[0] + stride.min(), it.at[0]
        torch.testing.assert_close(y[: known - before + 1, 0], points[before : known + 1, it.who[0]], rtol=0, atol=1e-9)
        it.slide(s, y, d, stride, k)
        if not len(it.who):
            break
        assert it.at.min() >= k
        for column, (at, who) in enumerate(zip(it.at, it.who, strict=True)):
            torch.testing.assert_close(it.y[column], points[at, who], rtol=0, atol=1e-9)
    torch.testing.assert_close(it.end_y, ex.y, rtol=0, atol=1e-9)


@pytest.mark.parametrize("driver", DRIVERS)
def test_it_ends_whatever_the_network_does(driver):
    """An expanding, oscillating network, and one that is not finite."""
    wild = ds.adapt(lambda x, t: 6 * torch.sin(9 * x + 3 * t[:, None]), "condot", "velocity")
    run = solve(wild, "ddim(eta=1.0)", DRIVERS[driver], steps=12)
    torch.testing.assert_close(run.x, solve(wild, "ddim(eta=1.0)", None, steps=12).x, rtol=0, atol=1e-6)
    assert run.parallel.rounds <= 12
    broken = ds.adapt(lambda x, t: x / torch.where(x > 0, 0.0, 1.0), "condot", "velocity")
    assert solve(broken, "heun", DRIVERS[driver]).parallel.rounds <= 18
    with pytest.raises(FloatingPointError, match=r"net returned \d+ non-finite values .* first in call 0 of (2|18)"):
        solve(broken, "heun", DRIVERS[driver], check=True)


@pytest.mark.product({"driver": list(DRIVERS), "solver": SOME}, each=2)
def test_a_sample_does_not_depend_on_its_batch_mates(solver, driver):
    """Neither its values, nor the rounds it takes; a mate that is not finite changes nothing."""
    from dataclasses import replace

    model, parallel = ds.adapt(elementwise, "edm", "v"), replace(DRIVERS[driver], tol=0.05)
    run = solve(model, solver, parallel, (6, 3), 14)
    for i in range(6):
        alone = solve(model, solver, parallel, (1, 3), 14, index=i)
        assert torch.equal(alone.x[0], run.x[i])
        assert alone.parallel.each[0] == run.parallel.each[i]
    x = 80 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    good = ds.solve(model, noise=x, solver=solver, steps=14, seed=0, parallel=parallel)
    x[1, 0] = math.nan
    bad = ds.solve(model, noise=x, solver=solver, steps=14, seed=0, parallel=parallel)
    assert torch.equal(bad.x[[0, 2]], good.x[[0, 2]])
    assert torch.equal(bad.parallel.each[[0, 2]], good.parallel.each[[0, 2]])


# The stopping rule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["edm", "ddpm", "condot"])
def test_the_scale_of_a_step_is_that_of_ancestral_noise(path):
    table = ds.plan(path, "ddim(eta=1.0)", steps=12)
    noise = table.weights[:, 1, -1] ** 2
    assert noise[-1] == 0
    np.testing.assert_allclose(step_variance(table), [*noise[:-1], noise[-2]], rtol=1e-9)
    # Deterministic solvers are measured by the same; calls that do not move, by the call before.
    np.testing.assert_allclose(step_variance(ds.plan(path, "ddim", steps=12)), step_variance(table), rtol=1e-9)
    four = step_variance(ds.plan(path, "rk4", steps=3))
    assert (four > 0).all()
    assert four[1] == four[0]  # its second and third stage are at one time


def plain_picard(model, steps, size, parallel, seed):
    """DDIM (eta = 1) of one sample by ParaDiGMS's rule, written without tableaux: the noise prediction held fixed."""
    grid = ds.plan(model, "ddim(eta=1.0)", steps=steps).grid
    alpha, sigma = grid[:, 1], grid[:, 2]
    x = Key(seed).normal((1, size), stream=Stream.PRIOR, dtype=torch.float64) * sigma[0]
    z = [Key(seed).normal((1, size), row=i + 1, stream=Stream.ROW, dtype=torch.float64) for i in range(steps)]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    std = [s * math.sqrt(-math.expm1(2 * (lam[i] - lam[i + 1]))) for i, s in enumerate(sigma[1:])]
    scale = [v**2 for v in std[:-1]] + [std[-2] ** 2]
    guess, at, rounds, calls = {i: x for i in range(steps + 1)}, 0, 0, 0
    past = {}  # mean squares of the last changes
    while at < steps:
        end, rounds, y = min(at + parallel.window, steps), rounds + 1, {at: guess[at]}
        calls += end - at
        for i in range(at, end):
            eps = model.noise(guess[i], float(grid[i, 0]))
            data = (y[i] - sigma[i] * eps) / alpha[i]
            y[i + 1] = alpha[i + 1] * data + math.sqrt(sigma[i + 1] ** 2 - std[i] ** 2) * eps + std[i] * z[i]
        change = {i: float((y[i] - guess[i]).square().mean()) for i in range(at + 1, end + 1)}
        bound = {i: parallel.tol**2 * scale[i - 1] + parallel.atol**2 for i in change}
        wrong = [i for i in change if change[i] > bound[i]]
        sure = all(i in past and change[i] ** 2 / past[i] <= parallel.finish**2 * bound[i] for i in wrong)
        past, last = change, y[end]
        guess.update(y)
        guess.update({i: last for i in range(end + 1, steps + 1)})  # "copy"
        at = steps if end == steps and sure else wrong[0] if wrong else end
    return guess[steps], rounds, calls


@pytest.mark.parametrize(
    "options",
    [
        {"tol": 0.1, "finish": 0},
        {"tol": 0.1},
        {"tol": 0.3, "finish": 2},
        {"tol": 0.0, "atol": 0.02, "finish": 0},
        {"tol": 0.05, "atol": 0.01},
    ],
)
@pytest.mark.parametrize("width", [4, 50])
def test_rounds_and_values_are_those_of_a_plain_loop(options, width):
    model = mixture_model(random_means(dim=6, modes=3), "edm", "noise")
    parallel = ds.Picard(window=width, accelerate=None, frame="noise", warm="copy", **options)
    for seed in range(2):
        x, rounds, calls = plain_picard(model, 30, 6, parallel, seed)
        run = solve(model, "ddim(eta=1.0)", parallel, (1, 6), 30, seed)
        torch.testing.assert_close(run.x, x, rtol=0, atol=1e-9)
        assert (run.parallel.rounds, run.parallel.calls) == (rounds, calls)


def test_a_tolerance_that_allows_everything_moves_by_whole_windows():
    net = Counting()
    run = solve(ds.adapt(net, "condot", "velocity"), "ddim", ds.Picard(window=8, tol=0, atol=1e6), (4, 2), 20)
    assert net.sizes == [32, 32, 16]
    assert run.parallel.rounds == run.parallel.depth == 3
    assert run.parallel.calls == 80
    assert run.parallel.wasted == 0
    assert run.parallel.each.tolist() == [3] * 4
    assert run.nfe == 20


def test_what_is_left_is_done_when_its_next_change_would_be_small():
    """After 2 and 1.4 comes 0.98, which 1 allows; after 1.5 comes more. A point without a past is not sure."""
    it = window(gaussian("edm", "denoised"), "ddim", ds.Picard(window=8, finish=1, atol=1, tol=0), (1, 2), 6)
    limit = it.limit[it.row]
    for changes, past, stride in (
        ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], 6),
        ([1, 1, 1, 1, 1, 1.4], [0, 0, 0, 0, 0, 2], 6),
        ([1, 1, 1, 1.4, 1, 1.4], [0, 0, 0, 2, 0, 2], 6),
        ([1, 1, 1, 1.4, 1, 1.4], [0, 0, 0, 0, 0, 2], 4),
        ([1, 1, 1, 1.4, 1, 1.5], [0, 0, 0, 2, 0, 2], 4),
        ([9, 1, 1, 1, 1, 1], [8, 0, 0, 0, 0, 0], 1),
        ([1, 1, math.nan, 1, 1, 1], [0, 0, 1, 0, 0, 0], 3),
    ):
        it.past = torch.tensor(past, dtype=torch.float64)[:, None] ** 2
        change = torch.tensor(changes, dtype=torch.float64)[:, None] ** 2
        assert it.stride(change, limit).tolist() == [stride], (changes, past)
        assert it.past is change


def test_a_bound_on_the_rounds(mixture):
    """It is the sequential run where enough; where not, what is there is run on to its end, and said to be so."""
    model = mixture_model(mixture, "edm", "denoised")
    for solver in SOME:
        alone = solve(model, solver, None, (6, 2), 20).x
        for width in (50, 8, 1):
            free = solve(model, solver, ds.Picard(window=width, tol=1e-3), (6, 2), 20)
            assert free.parallel.converged.tolist() == [True] * 6
            same = solve(model, solver, ds.Picard(window=width, tol=1e-3, max_rounds=free.parallel.rounds), (6, 2), 20)
            assert torch.equal(same.x, free.x)
            assert same.parallel.converged.all()
            error = []
            for rounds in (1, free.parallel.rounds - 1):
                cut = solve(model, solver, ds.Picard(window=width, tol=1e-3, max_rounds=rounds), (6, 2), 20)
                assert cut.done
                assert cut.parallel.rounds == rounds
                early = free.parallel.each <= rounds
                assert torch.equal(cut.parallel.converged, early)
                assert torch.equal(cut.parallel.each, free.parallel.each.clamp(max=rounds))
                assert torch.equal(cut.x[early], free.x[early])
                error.append((cut.x - alone).abs().max())
            assert error[1] < error[0]


def test_one_round_is_the_recurrence_with_what_the_first_guesses_say():
    """Unit normal data: the guesses are the run itself, so one round is right, whatever the window."""
    model = gaussian("vp", "noise")
    alone = solve(model, "ddim", None, steps=400).x
    run = solve(model, "ddim", ds.Picard(window=400, max_rounds=1), steps=400)
    torch.testing.assert_close(run.x, alone, rtol=0, atol=1e-2)
    assert run.parallel.calls == 3 * 400


@pytest.mark.product({"solvers": shares(EVERY, 5)}, some={"solvers": shares(KINDS[::2], 5)})
def test_the_trajectory_is_that_of_the_sequential_run(solvers, mixture):
    for solver in shown(solvers):
        model, drivers = mixture_model(mixture, "condot", "v"), {**DRIVERS, "one": ds.Picard(window=1)}
        for which in (True, "calls"):
            alone = solve(model, solver, None, steps=4, trajectory=which)
            for name in drivers if solver in SOME else ("picard", "parareal"):
                run = solve(model, solver, drivers[name], steps=4, trajectory=which)
                torch.testing.assert_close(run.trajectory, alone.trajectory, rtol=0, atol=1e-10)
                assert torch.equal(run.trajectory[-1], run.x)


def test_a_trajectory_within_the_tolerance(mixture):
    model = mixture_model(mixture, "edm", "denoised")
    alone = solve(model, "heun", None, (5, 2), 20, trajectory="calls").trajectory
    scale = torch.from_numpy(step_variance(ds.plan("edm", "heun", steps=20))).sqrt()[:, None]
    for parallel in (ds.Picard(window=12, tol=1e-3), ds.Parareal(tol=1e-3), ds.Picard(window=12, tol=1e-3, workers=5)):
        run = solve(model, "heun", parallel, (5, 2), 20, trajectory="calls")
        assert torch.equal(run.trajectory[0], alone[0])
        assert torch.equal(run.trajectory[-1], run.x)
        off = (run.trajectory - alone).square().mean(-1).sqrt()[1:] / scale
        assert 0 < off.max() < 0.1
    cut = solve(model, "heun", ds.Picard(window=12, tol=0.01, max_rounds=2), (5, 2), 20, trajectory="calls")
    assert torch.equal(cut.trajectory[-1], cut.x)
    assert cut.trajectory.isfinite().all()
    empty = solve(model, "heun", ds.Picard(), (0, 2), trajectory=True)
    assert empty.trajectory.shape == (10, 0, 2)


def test_what_is_counted():
    net = Counting()
    model = ds.adapt(net, "edm", "v")
    for parallel in (*DRIVERS.values(), ds.Picard(window=9, warm=ds.plan(model, "heun", steps=3))):
        net.sizes.clear()
        run = solve(model, "dpmpp-2m", parallel, (5, 2), 12)
        assert run.parallel.calls == sum(net.sizes)
        assert run.parallel.depth == len(net.sizes)
        assert run.parallel.wasted == run.parallel.calls - 5 * 12
        assert run.parallel.rounds == int(run.parallel.each.max())
        assert run.nfe == -(-run.parallel.calls // 5)


def test_a_bound_on_the_batch():
    net = Counting()
    model = ds.adapt(net, "edm", "v")
    for parallel in (ds.Picard(window=8), ds.Picard(window=8, max_batch=7)), (ds.Parareal(), ds.Parareal(max_batch=7)):
        whole, bounded = (solve(model, "ddim(eta=1.0)", p, (4, 2), 12) for p in parallel)
        assert torch.equal(whole.x, bounded.x)
        assert bounded.parallel.depth > whole.parallel.depth
    net.sizes.clear()
    solve(model, "ddim", ds.Picard(window=8, max_batch=7), (4, 2), 12)
    assert max(net.sizes) == 7


# Guesses and accelerations ---------------------------------------------------------------------------------------


def gaussian(path, predicts):
    return mixture_model(GaussianMixture.isotropic([[0.0, 0.0]], 1.0), path, predicts)


def test_a_frame_whose_derivative_does_not_change_needs_one_round():
    """Of unit Gaussian data the velocity of the trigonometric frame is 0: held fixed, it gives the run at once."""
    model = gaussian("vp", "noise")
    rounds = {
        frame: solve(
            model, "heun", ds.Picard(window=99, tol=1e-6, finish=0, frame=frame, accelerate=None), steps=30
        ).parallel.rounds
        for frame in ("trig", "straight", "noise")
    }
    assert rounds["trig"] == 1
    assert rounds["straight"] > 4
    assert rounds["noise"] > rounds["straight"]


def test_the_secant_is_newton_where_the_network_is_linear():
    """Outputs proportional to x, a slope per time: two sweeps find the slopes, the third is exact."""
    model = gaussian("edm", "denoised")
    plain, secant = (
        solve(model, "ddim(eta=1.0)", ds.Picard(window=60, tol=1e-7, frame="noise", accelerate=a), steps=60)
        for a in (None, "secant")
    )
    assert secant.parallel.rounds <= 4
    assert plain.parallel.rounds > 12


def test_a_warm_start_saves_rounds():
    model = mixture_model(random_means(dim=8), "edm", "denoised")
    copy, onward, coarse = (
        solve(model, "ddim", ds.Picard(window=60, warm=warm, accelerate=None), (16, 8), 60)
        .parallel.each.double()
        .mean()
        for warm in ("copy", "extrapolate", ds.plan(model, "dpmpp-2m", steps=12))
    )
    assert coarse < onward < copy


@pytest.mark.parametrize("warm", ["copy", "extrapolate", "one", "few", "more"])
def test_the_limit_does_not_depend_on_the_guesses(warm, mixture):
    model = mixture_model(mixture, "ddpm", "noise")
    coarse = {"one": ("ddim", 1), "few": ("heun", 4), "more": ("unipc-3", 40)}
    if warm in coarse:
        warm = ds.plan(model, coarse[warm][0], steps=coarse[warm][1])
    for solver in SOME:
        run = solve(model, solver, ds.Picard(window=5, tol=0, warm=warm))
        torch.testing.assert_close(run.x, solve(model, solver, None).x, rtol=0, atol=1e-10)


def test_guesses_from_a_coarse_run_join_what_was_found(mixture):
    model = mixture_model(mixture, "edm", "denoised")
    it = window(model, "ddim", ds.Picard(window=5, warm=ds.plan(model, "heun", steps=3)), (3, 2), 8)
    found, last = torch.randn(3, 2, dtype=torch.float64), it.row[-1]
    torch.testing.assert_close(it.warm.next(last[None], last, found, it.who)[0], found)


def test_anderson_solves_the_least_squares_of_each_point():
    """Against the normal equations written out for one point, and blind to what comes later."""
    g = torch.Generator().manual_seed(0)
    r, x = (torch.randn(4, 6, 2, 5, generator=g, dtype=torch.float64) for _ in range(2))  # sweeps, slots, samples
    variance = torch.rand(6, 2, generator=g, dtype=torch.float64) + 0.5

    def run(r, x):
        mixer = Mixer(ds.Anderson(memory=2, ridge=1e-3))
        return [mixer(r[k], x[k], variance) for k in range(4)]

    mixed = run(r, x)
    assert torch.equal(mixed[0], x[0])
    for slot in range(6):
        for b in range(2):
            weight = variance[: slot + 1, b, None].expand(-1, 5).flatten().rsqrt()
            dr = torch.stack([(r[k + 1] - r[k])[: slot + 1, b].flatten() * weight for k in (2, 1)], 1)
            dg = torch.stack([(x[k + 1] - x[k])[slot, b] for k in (2, 1)], 1)
            gram = dr.T @ dr
            gram += 1e-3 * gram.trace() / 2 * torch.eye(2, dtype=torch.float64)
            gamma = torch.linalg.solve(gram, dr.T @ (r[3][: slot + 1, b].flatten() * weight))
            torch.testing.assert_close(mixed[3][slot, b], x[3][slot, b] - dg @ gamma, rtol=1e-9, atol=1e-9)
    r[:, 4:] += 7.0
    assert torch.equal(run(r, x)[3][:4], mixed[3][:4])


def test_anderson_saves_rounds_on_a_linear_network():
    model = gaussian("edm", "denoised")
    plain, mixed = (
        solve(model, "ddim", ds.Picard(window=60, tol=1e-4, frame="noise", accelerate=a), steps=60).parallel.rounds
        for a in (None, ds.Anderson(memory=3))
    )
    assert mixed < plain


def test_gauss_seidel_needs_fewer_rounds_and_more_batches():
    model = mixture_model(random_means(dim=8), "edm", "denoised")
    jacobi, seidel = (
        solve(model, "ddim", ds.Picard(window=40, tol=0.01, workers=w), (8, 8), 80).parallel for w in (None, 10)
    )
    assert seidel.rounds < jacobi.rounds
    assert seidel.depth > jacobi.depth


# Parareal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_parareal_is_a_plain_loop_of_the_formula(rounds, monkeypatch):
    """F over the steps of a block, G one step, both DDIM in denoised form, with the bracket."""
    model = mixture_model(random_means(dim=4, modes=3), "edm", "denoised")
    grid = ds.plan(model, "ddim", steps=12).grid

    def step(x, i, j):
        ratio = grid[j, 2] / grid[i, 2]
        return ratio * x + (grid[j, 1] - grid[i, 1] * ratio) * model.denoised(x, float(grid[i, 0]))

    def fine(x, b):
        for i in range(3 * b, 3 * b + 3):
            x = step(x, i, i + 1)
        return x

    start = Key(0).normal((2, 4), dtype=torch.float64) * 80.0
    u = [start]
    for b in range(4):
        u.append(step(u[b], 3 * b, 3 * b + 3))
    for _ in range(rounds):
        new = [start]
        for b in range(4):
            new.append(fine(u[b], b) + (step(new[b], 3 * b, 3 * b + 3) - step(u[b], 3 * b, 3 * b + 3)))
        u = new

    from diffsolve.parallel.parareal import _Blocks

    ex = ds.begin(model, (2, 4), solver="ddim", steps=12, seed=0, dtype=torch.float64)
    it = _Blocks(
        ds.Parareal(blocks=4, coarse="ddim", tol=0),
        ex,
        Calls(model, ex.tableau, ex.y, ds.Guidance(1.0), {}, check=False),
    )
    assert it.bounds == [0, 3, 6, 9, 12]
    for k in range(rounds):
        it.round(k)
        assert it.at.tolist() == [k + 1] * 2
    for mine, wanted in zip(it.ends, u, strict=True):
        torch.testing.assert_close(mine.y, wanted, rtol=0, atol=1e-10)


def test_parareal_holds_the_last_derivative_with_the_runs_own_noise():
    """With the tableau itself as G, a network whose straight velocity does not depend on x needs one round."""
    model = ds.adapt(lambda x, t: torch.ones_like(x), "condot", "velocity")
    run = solve(model, "ddim(eta=1.0)", ds.Parareal(blocks=4, tol=1e-9, frame="straight"), steps=16)
    torch.testing.assert_close(run.x, solve(model, "ddim(eta=1.0)", None, steps=16).x, rtol=0, atol=1e-10)
    assert run.parallel.rounds == 1
    assert run.parallel.depth == 4 + 4 + 3  # G of each block, F, and G again where a block's start was not yet sure


# Arguments -------------------------------------------------------------------------------------------------------


def test_conditioning_is_repeated_for_the_calls_of_each_sample():
    def net(x, t, scale=None, inner=None, shared=None, word=None):
        assert word in (None, "w")
        out = torch.tanh(x)
        if scale is not None:
            out = out * scale[:, None] + inner["a"][0] * shared
        return out

    model = ds.adapt(net, "edm", "v")
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    cond = {"scale": scale, "inner": {"a": [scale[:, None]]}, "shared": torch.tensor([0.1, 0.2]).double(), "word": "w"}
    bare = {"scale": scale.flip(0), "inner": {"a": (scale[:, None],)}, "shared": torch.ones(2).double(), "word": None}
    for guidance in (None, 2.0, ds.Guidance(1.5, bare), ds.Guidance(2.0, bare, interval=(0.3, 5.0))):
        alone = solve(model, "dpmpp-2m", None, cond=cond, guidance=guidance).x
        for parallel in DRIVERS.values():
            x = solve(model, "dpmpp-2m", parallel, cond=cond, guidance=guidance).x
            torch.testing.assert_close(x, alone, rtol=0, atol=1e-10)
    flat = {"scale": scale, "inner": None, "shared": None}
    model = ds.adapt(lambda x, t, scale: torch.tanh(x) * scale[:, None], "edm", "v")
    guided = ds.Guidance(2.0, {"scale": flat["scale"].flip(0)}, batched=True)
    alone, side = (solve(model, "ddim", p, cond={"scale": scale}, guidance=guided).x for p in (None, ds.Picard()))
    torch.testing.assert_close(side, alone, rtol=0, atol=0.2)


def test_what_cannot_go_together_is_refused_by_name():
    model = ds.adapt(elementwise, "edm", "v")
    state = solve(model, "ddim", None, max_calls=2).state
    table = ds.plan(model, "ddim", steps=9)
    for options in ({"hook": print}, {"callback": print}, {"max_calls": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* cannot be given with parallel"):
            solve(model, "ddim", ds.Picard(), **options)
    with pytest.raises(ValueError, match="(?s)state=.* cannot be given with parallel"):
        ds.solve(model, solver=table, state=state, parallel=ds.Picard())
    with pytest.raises(TypeError, match="parallel must be a ds.Picard, a ds.Parareal or a ds.Independent, got 4"):
        solve(model, "ddim", 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ds.Picard(window=0), "window must be an integer >= 1, got 0"),
        (lambda: ds.Picard(window=None), "window must be an integer >= 1, got None"),
        (lambda: ds.Picard(window=2.0), "window must be an integer >= 1, got 2.0"),
        (lambda: ds.Picard(workers=0), "workers must be an integer >= 1, got 0"),
        (lambda: ds.Picard(max_batch=True), "max_batch must be an integer >= 1, got True"),
        (lambda: ds.Picard(tol=-1), "tol must be a finite number >= 0, got -1"),
        (lambda: ds.Picard(atol=math.nan), "atol must be a finite number >= 0, got nan"),
        (lambda: ds.Picard(finish=-1), "finish must be a finite number >= 0, got -1"),
        (lambda: ds.Picard(max_rounds=0), "max_rounds must be an integer >= 1, got 0"),
        (lambda: ds.Picard(frame="x"), "frame.*'x'"),
        (lambda: ds.Picard(warm="hot"), "warm must be 'extrapolate', 'copy' or a Tableau, got 'hot'"),
        (
            lambda: ds.Picard(warm=ds.plan("edm", "ddim(eta=1)", steps=3)),
            "warm must be the tableau of a deterministic solver",
        ),
        (lambda: ds.Picard(accelerate="newton"), "accelerate must be 'secant', a ds.Anderson or None, got 'newton'"),
        (lambda: ds.Parareal(blocks=0), "blocks must be an integer >= 1, got 0"),
        (lambda: ds.Parareal(coarse="dim"), "got 'dim'; did you mean 'ddim'"),
        (lambda: ds.Parareal(tol="a"), "tol must be a finite number >= 0, got 'a'"),
        (lambda: ds.Anderson(memory=0), "memory must be an integer >= 1, got 0"),
        (lambda: ds.Anderson(ridge=0), "ridge must be a finite number > 0, got 0"),
        (lambda: ds.Ranks(), "ds.Ranks must be made after torch.distributed.init_process_group"),
        (lambda: ds.Ranks(timeout=0), "timeout must be a finite number > 0, got 0"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_options_that_only_a_run_can_see():
    with pytest.raises(ValueError, match="coarse must be a deterministic solver, got 'ddim.eta=1.'"):
        solve(ds.adapt(elementwise, "edm", "v"), "heun", ds.Parareal(coarse="ddim(eta=1)"))
    with pytest.raises(ValueError, match="was written for EDM"):
        solve(ds.adapt(elementwise, "condot", "v"), "heun", ds.Picard(warm=ds.plan("edm", "heun", steps=3)))
    with pytest.raises(TypeError, match="ranks must be a ds.Ranks, got 2"):
        ds.Picard(ranks=2)


@pytest.mark.parametrize("parallel", [ds.Picard(window=3), ds.Parareal()])
def test_end_cases(parallel):
    model = ds.adapt(elementwise, "edm", "v")
    before = torch.get_rng_state()
    assert solve(model, "ddim(eta=1.0)", parallel, (0, 2)).x.shape == (0, 2)
    assert solve(model, "ddim(eta=1.0)", parallel, (2,), dtype=None).x.shape == (2,)
    one, alone = (solve(model, "heun", p, (2, 3), 1) for p in (parallel, None))
    torch.testing.assert_close(one.x, alone.x)
    run = solve(model, "unipc-2", parallel, seed=[4, 5, 6], progress=True)
    assert run.seed == [4, 5, 6]
    assert run.state.call == run.tableau.nfe
    assert torch.equal(run.state.y, run.x)
    assert torch.equal(torch.get_rng_state(), before)


def test_where_the_frame_is_not_determined_the_output_is_held():
    model = ds.adapt(elementwise, "ddpm(zero_terminal_snr=True)", "v")
    like = torch.zeros(1, 2, dtype=torch.float64)
    rows = Rows(ds.plan(model, "ddim", steps=5), model, "lambda", like)  # -rho eps: infinite at alpha = 0
    assert rows.lost.tolist() == [True, False, False, False, False]
    assert rows.fix[0].tolist() == [0.0, 1.0]
    assert rows.weights.isfinite().all()
    assert rows.keep.isfinite().all()


# At full size ----------------------------------------------------------------------------------------------------


def frechet(x, mean, covariance):
    x = x.double().flatten(1)
    mine = torch.cov(x.T)
    root = torch.linalg.eigvals(mine @ covariance).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - mean).square().sum() + mine.trace() + covariance.trace() - 2 * root)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "most", "usual", "bound"), [("ddim(eta=1.0)", 1000, 25, 12, 18), ("ddim", 100, 9, 4, 8)]
)
def test_rounds_and_distance_at_full_size(solver, steps, most, usual, bound):
    """The distance to the data's moments moves by less than between sequential runs of other seeds."""
    mixture = random_means()
    model = mixture_model(mixture, "ddpm", "noise")
    means = mixture.means
    data = means.mean(0), torch.cov(means.T, correction=0) + 0.09 * torch.eye(64, dtype=torch.float64)
    found = {None: [], most: [], bound: []}
    for seed in range(4):
        for rounds in found:
            parallel = None if rounds is None else ds.Picard(window=200, max_rounds=None if rounds == most else rounds)
            run = solve(model, solver, parallel, (256, 64), steps, seed, torch.float32)
            found[rounds].append(frechet(run.x, *data))
            if parallel is not None:
                assert run.parallel.rounds <= rounds
                assert run.parallel.each.double().mean() <= usual
                assert (~run.parallel.converged).sum() <= 8 * (rounds == bound)
    alone = np.array(found.pop(None))
    for distances in found.values():
        assert abs(np.mean(distances) - alone.mean()) < alone.std(ddof=1)


@pytest.mark.slow
def test_rounds_on_the_digits_network():
    """On its own path, whose last steps are smaller than those of a table of betas."""
    run, cut, alone = (
        ds.solve(ds.load("digits"), (64, 1, 8, 8), solver="ddim", steps=100, seed=0, parallel=parallel)
        for parallel in (ds.Picard(window=100), ds.Picard(window=100, max_rounds=8), None)
    )
    assert run.parallel.rounds <= 11
    assert run.parallel.each.double().mean() < 8.2
    assert cut.parallel.converged.sum() >= 54
    for x in (run.x, cut.x):
        far = (x - alone.x).flatten(1).square().mean(1).sqrt()
        assert far.median() < 0.015
        assert far.max() < 0.2
