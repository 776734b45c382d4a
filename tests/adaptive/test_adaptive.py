"""Adaptive solves: order conditions of what estimates the error, accuracy, samples that do not disturb each other."""

import math
import warnings
from fractions import Fraction as F
from functools import lru_cache

import numpy as np
import pytest
import torch
from torchdiffeq import odeint, odeint_adjoint

import diffsolve as ds
from diffsolve.adaptive import METHODS, Adaptive, Status, integrate
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring
from diffsolve.tableau.frames import FRAMES

PREDICTS = {"condot": "velocity", "edm": "denoised", "vp": "noise", "ddpm": "v"}


def trees(a, most):
    """(order, elementary weights, gamma) of the rooted trees up to an order, in exact fractions."""
    n = len(a)
    level = {1: [([F(1)] * n, F(1))]}
    yield 1, *level[1][0]
    apply = lambda phi: [sum(a[i][j] * phi[j] for j in range(n)) for i in range(n)]  # noqa: E731

    def forests(size, smallest):
        """Multisets of trees with `size` nodes in all: products of A phi, products of gamma, and each order used."""
        if size == 0:
            yield [F(1)] * n, F(1)
            return
        for order in range(smallest[0], size + 1):
            start = smallest[1] if order == smallest[0] else 0
            for i in range(start, len(level[order])):
                phi, gamma = level[order][i]
                pushed = apply(phi)
                for rest, other in forests(size - order, (order, i)):
                    yield [x * y for x, y in zip(pushed, rest, strict=True)], gamma * other

    for order in range(2, most + 1):
        level[order] = [(phi, order * gamma) for phi, gamma in forests(order - 1, (1, 0))]
        for phi, gamma in level[order]:
            yield order, phi, gamma


def extended(method, count):
    """The triangle a, square, with the next step's first stage as its last row where the weights have one more."""
    rows = [*method.a, method.b][:count]
    return [[*row, *[F(0)] * (count - len(row))] for row in rows]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_embedded_weights_have_their_order_and_no_more(method):
    exact = 1e-24 if method.name == "dopri8" else 0 if method.name != "tsit5" else 3e-15
    for order, weights in method.embedded.items():
        a = extended(method, len(weights))
        off = [
            (r, abs(sum(w * x for w, x in zip(weights, phi, strict=True)) - 1 / g)) for r, phi, g in trees(a, order + 1)
        ]
        assert max(e for r, e in off if r <= order) <= exact
        assert max(e for r, e in off if r == order + 1) > 1e-5


@pytest.mark.parametrize("name", ["dopri5", "tsit5"])
def test_the_middle_has_order_four(name):
    method = METHODS[name]
    for r, phi, gamma in trees(extended(method, len(method.middle)), 4):
        error = sum(w * x for w, x in zip(method.middle, phi, strict=True)) - F(1, 2) ** r / gamma
        assert abs(error) <= (0 if name == "dopri5" else 1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_equation(name):
    """y' = rate y with a rate per sample; dense output beside it. The error follows the tolerance."""
    rates = torch.tensor([-0.5, -3.0, -30.0], dtype=torch.float64)
    outputs = [0.1, 0.11, 0.12, 0.7, 1.9, 2.0]

    def field(parts, v, rows):
        return (parts[0] * rates[torch.from_numpy(rows), None],)

    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        options = Adaptive(name, rtol=tol, atol=tol)
        found = integrate(field, (torch.ones(3, 2, dtype=torch.float64),), 0.0, 2.0, options, outputs=outputs)
        exact = (rates * torch.tensor(outputs, dtype=torch.float64)[:, None]).exp()[..., None]
        assert (found.status == Status.DONE).all()
        assert (found.parts[0] - exact[-1]).abs().max() < 20 * tol
        assert (found.dense - exact).abs().max() < 100 * tol
        errors.append((found.parts[0] - exact[-1]).abs().max())
        if name != "dopri8":  # which lands on the outputs
            without = integrate(field, (torch.ones(3, 2, dtype=torch.float64),), 0.0, 2.0, options)
            assert torch.equal(without.parts[0], found.parts[0])
            np.testing.assert_array_equal(without.nfe, found.nfe)
    assert errors[2] < errors[0]


@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5"])
def test_dense_output_converges_with_its_order(name):
    """Steps of fixed length on y' = cos(v) y: the slope between the nodes."""
    order = {"bosh3": 3, "dopri5": 5, "tsit5": 5}[name]  # of the nodes; between them the local error is of that order
    outputs = np.linspace(0.03, 0.97, 9)

    def field(parts, v, rows):
        return (parts[0] * torch.from_numpy(np.cos(3 * v))[:, None],)

    errors = []
    for h in (0.1, 0.05):
        options = Adaptive(name, rtol=0.99, atol=0.99, first_step=h, max_step=h)
        found = integrate(field, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 1.0, options, outputs=outputs.tolist())
        errors.append(np.abs(found.dense[:, 0, 0].numpy() - np.exp(np.sin(3 * outputs) / 3)).max())
    assert math.log2(errors[0] / errors[1]) > order - 0.3


@lru_cache
def exact_pair(mixture, p):
    """(noise, its exact image at the last time)."""
    levels = [(float(p.alpha(t)), float(p.sigma(t))) for t in (p.t_noise, p.t_last)]
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * p.prior_std()
    return z, mixture.flow(z, *levels)


@pytest.mark.product({"frame": list(FRAMES), "path": list(PREDICTS)}, some={"frame": list(FRAMES)[::2]})
def test_agrees_with_the_exact_flow_in_both_directions(path, frame, mixture):
    if (path, frame) == ("ddpm", "native"):
        pytest.skip("a table is linear between its rows: its clock has 1000 kinks")
    model = mixture_model(mixture, path, PREDICTS[path])
    p = model.path
    z, expected = exact_pair(mixture, p)
    stop = None if p.t_last == p.t_data else p.t_last
    solver = Adaptive("dopri8", rtol=1e-8, atol=1e-8, frame=frame)
    run = ds.solve(model, noise=z, solver=solver, stop=stop)
    assert run.done
    # Where a frame is singular at an end of CondOT, one first-order step is made from lambda = -log 1000, or log 1000.
    rough = path == "condot" and frame in ("noise", "lambda", "denoised")
    assert (run.x - expected).abs().max() < (2e-5 if rough else 1e-6)
    back = ds.solve(model, noise=expected, solver=solver, start=p.t_last, stop=p.t_noise)
    assert (back.x - z).abs().max() / p.prior_std() < (2e-4 if rough else 1e-6)


def test_the_data_end_is_the_denoised_estimate(mixture):
    model = mixture_model(mixture, "edm", "denoised")
    solver = Adaptive(rtol=1e-7, atol=1e-7)
    short = ds.solve(model, (5, 2), solver=solver, stop=model.path.t_last, seed=3, dtype=torch.float64)
    full = ds.solve(model, (5, 2), solver=solver, seed=3, dtype=torch.float64)
    torch.testing.assert_close(full.x, model.denoised(short.x, model.path.t_last), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(full.nfe, short.nfe + 1)
    z = ds.encode(model, full.x, solver=solver)
    again = ds.sample(model, noise=z, solver=solver)
    assert (again - full.x).abs().max() < 1e-4


class Watched:
    """y' by a function of x and t, counting what every sample was asked, and where."""

    def __init__(self, function):
        self.function, self.times, self.calls = function, [], []

    def __call__(self, x, t, row=None):
        self.times.append((float(t.min()), float(t.max())))
        if row is not None:
            self.calls.extend(row.tolist())
        return self.function(x, t)


def test_a_hard_sample_costs_the_others_nothing():
    """Elementwise network, so that alone means bit for bit: 63 slow clocks and one of 80 oscillations."""
    speed = torch.ones(64, dtype=torch.float64)
    speed[17] = 500.0

    def run(rows):
        net = Watched(lambda x, t: x)
        slope = lambda x, t, speed, row: net(x, t, row) * 0 + torch.cos(speed[:, None] * t[:, None]).to(x)  # noqa: E731
        model = ds.adapt(slope, "condot", "velocity")
        x = torch.linspace(-1, 1, 128, dtype=torch.float64).view(64, 2)[rows]
        cond = {"speed": speed[rows], "row": torch.tensor(rows)}
        return ds.solve(model, noise=x, solver=Adaptive(frame="native", rtol=1e-6, atol=1e-6), cond=cond), net

    together, net = run(list(range(64)))
    assert together.done
    counts = np.bincount(net.calls, minlength=64)
    np.testing.assert_array_equal(counts, together.nfe)  # a sample that is done is no longer in the batch
    assert together.nfe[17] > 20 * together.nfe[0]
    for i in (0, 16, 17, 18, 63):
        alone, _ = run([i])
        assert alone.nfe[0] == together.nfe[i]
        assert torch.equal(alone.x[0], together.x[i])


@pytest.mark.product({"path": ["condot", "edm", "vp"], "frame": list(FRAMES), "name": list(METHODS)}, each=2)
def test_the_network_is_never_called_beyond_the_ends(path, frame, name):
    inner = mixture_model(ring(), path, PREDICTS[path])
    net = Watched(inner.net)
    model = ds.adapt(net, path, PREDICTS[path])
    p = model.path
    low, high = sorted((p.t_noise, p.t_last))
    ds.solve(model, (4, 2), solver=Adaptive(name, frame=frame, rtol=1e-2, atol=1e-2), seed=0)
    assert min(a for a, _ in net.times) >= low
    assert max(b for _, b in net.times) <= high


@pytest.mark.product({"frame": ["native", "trig", "lambda"]}, some={"frame": ["native", "trig"]})
def test_the_unit_of_time_does_not_matter(frame, mixture):
    """A clock in units of 1e-9 to 1e9: the same network calls and the same answer."""
    runs = []
    for unit in (1.0, 1e-9, 1e9):
        path = ds.paths.Custom(lambda t, u=unit: 1 - t / u, lambda t, u=unit: t / u, t_noise=unit, regular=True)
        net = lambda x, t, u=unit: (  # noqa: E731
            sum(w * e for w, e in zip((-1, 1), mixture.expectations(x, (1 - t / u).to(x), (t / u).to(x)), strict=True))
            / u
        )
        model = ds.adapt(net, path, "velocity")
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        runs.append(ds.solve(model, noise=x, solver=Adaptive(frame=frame)))
    for run in runs[1:]:
        np.testing.assert_array_equal(run.nfe, runs[0].nfe)
        torch.testing.assert_close(run.x, runs[0].x, rtol=1e-6, atol=1e-6)


def test_times_far_from_zero_do_not_stall_in_float32():
    path = ds.paths.Custom(
        lambda t: (1 - (t - 600)).clamp(min=0), lambda t: t - 600, t_noise=601.0, t_data=600.0, regular=True
    )
    run = ds.solve(ds.adapt(lambda x, t: -x, path, "velocity"), (3, 2), solver=Adaptive(frame="native"), seed=0)
    assert run.done
    torch.testing.assert_close(run.x, math.e * Key_noise(3, 2), rtol=1e-4, atol=1e-4)


def Key_noise(*shape):
    return ds.Key(0).normal(shape)


def test_every_way_to_end_is_told_apart():
    def net(x, t, kind):
        kind = kind[:, None]
        wild = torch.cos(1e4 * t)[:, None] * 1e3
        rough = 1e20 * torch.cos(1e20 * t)[:, None]
        value = torch.where(kind == 1, torch.where(t[:, None] > 0.3, torch.nan, -x), -x)
        value = torch.where(kind == 2, torch.nan, value)
        value = torch.where(kind == 3, wild.expand_as(x), value)
        return torch.where(kind == 4, rough.expand_as(x), value)

    model = ds.adapt(net, "condot", "velocity")
    kinds = torch.tensor([0, 1, 2, 3, 4])
    solver = Adaptive(frame="native", rtol=1e-6, atol=1e-6, max_nfe=700)
    with pytest.warns(RuntimeWarning, match="stopped early") as caught:
        run = ds.solve(model, noise=torch.ones(5, 2, dtype=torch.float64), solver=solver, cond={"kind": kinds})
    S = Status
    assert run.status == (S.DONE, S.NON_FINITE, S.NON_FINITE, S.BUDGET_SPENT, S.STEP_TOO_SMALL)
    assert len(caught) == 3
    assert any("non finite" in str(w.message) and "sample 1" in str(w.message) for w in caught)
    assert run.t[0] == 1
    assert 0.2 < run.t[1] <= 0.3
    assert run.t[2] == 0
    assert run.nfe[2] <= 2
    assert run.nfe.max() <= 700
    assert run.t[4] < 1e-10
    assert (run.h[1:] > 0).all()
    torch.testing.assert_close(run.x[0], torch.full((2,), math.exp(-1), dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        run.x[1], torch.full((2,), math.exp(-run.t[1]), dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    assert not run.done


def test_a_zero_field_costs_few_calls():
    model = ds.adapt(lambda x, t: torch.zeros_like(x), "condot", "velocity")
    run = ds.solve(model, (2, 3), solver=Adaptive(frame="native"), seed=0)
    assert run.nfe.max() <= 40
    torch.testing.assert_close(run.x, Key_noise(2, 3))
    assert ds.solve(model, (0, 3), solver=Adaptive()).x.shape == (0, 3)


@pytest.mark.product({"path": ["condot", "edm"], "name": list(METHODS)})
def test_trajectory(path, name, mixture):
    """Dense output at the times asked for is as good as the solve; the ends are the start and the result."""
    model = mixture_model(mixture, path, PREDICTS[path])
    p = model.path
    grid = (
        np.array([0.0, 0.2, 0.21, 0.5, 0.9, 1.0]) if path == "condot" else np.array([80.0, 3.0, 1.0, 0.3, 0.002, 0.0])
    )
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * p.prior_std()
    run = ds.solve(model, noise=x, solver=Adaptive(name, rtol=1e-7, atol=1e-7), grid=grid, trajectory=True)
    assert run.trajectory.shape == (6, 6, 2)
    np.testing.assert_array_equal(run.times, grid)
    assert torch.equal(run.trajectory[0], x)
    assert torch.equal(run.trajectory[-1], run.x)
    for t, state in zip(grid[1:-1], run.trajectory[1:-1], strict=True):
        levels = [(float(p.alpha(s)), float(p.sigma(s))) for s in (p.t_noise, t)]
        assert (state - mixture.flow(x, *levels)).abs().max() < 1e-5


def test_conditions_and_guidance_follow_their_samples():
    """Guidance and per-sample conditions in a batch that shrinks, against each sample alone."""

    def net(x, t, label=None):
        return -x if label is None else label[:, None] * torch.sin(label[:, None] * 9 * t[:, None]) - x

    model = ds.adapt(net, "vp", "v")
    labels = torch.tensor([0.0, 5.0, 1.0, 30.0], dtype=torch.float64)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    guided = ds.Guidance(2.0, interval=(0.1, 5.0))
    solve = lambda x, label: ds.solve(  # noqa: E731
        model, noise=x, solver=Adaptive(rtol=1e-3, atol=1e-3), cond={"label": label}, guidance=guided
    )
    together = solve(x, labels)
    assert len(set(together.nfe.tolist())) > 1
    for i in range(4):
        alone = solve(x[i : i + 1], labels[i : i + 1])
        assert alone.nfe[0] == together.nfe[i]
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 2, 2), (2, 1, 8, 8)])
def test_any_rank_and_dtype(shape, dtype):
    model = ds.adapt(lambda x, t: torch.tanh(x), "edm", "edm")
    run = ds.solve(model, shape, solver=Adaptive(), seed=0, dtype=dtype)
    assert run.done
    assert run.x.shape == shape
    assert run.x.dtype == dtype


def test_half_precision_networks_end():
    """Their rounding is noise to the controller: it ends all the same, and near the answer of the same in float32."""
    model = ds.adapt(lambda x, t: torch.tanh(x), "vp", "v", dtype=torch.bfloat16)
    exact = ds.adapt(lambda x, t: torch.tanh(x), "vp", "v")
    solver = Adaptive(rtol=1e-2, atol=1e-2, max_nfe=2000)
    run = ds.solve(model, (4, 3), solver=solver, seed=0)
    assert run.done
    assert (run.x - ds.sample(exact, (4, 3), solver=solver, seed=0)).abs().max() < 0.1


def test_agrees_with_torchdiffeq(mixture):
    """The same method at the same tolerance: both near the truth, and ours with no more calls."""
    for path in ("condot", "vp"):
        model = mixture_model(mixture, path, "v")
        p = model.path
        x = torch.randn(1, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        t = torch.tensor([p.t_noise, p.t_last], dtype=torch.float64)
        net = Watched(model.net)
        ode = ds.adapt(net, path, "v").as_ode()
        theirs = odeint(ode, x, t, rtol=1e-6, atol=1e-6, method="dopri5", options={"step_t": t[1:]})[-1]
        ours = ds.solve(
            model, noise=x, solver=Adaptive("dopri5", rtol=1e-6, atol=1e-6, frame="native"), stop=float(t[1])
        )
        assert (ours.x - theirs).abs().max() < 2e-5
        assert ours.nfe[0] <= 1.15 * len(net.times)  # whose estimate of the error is another, smaller one


@pytest.mark.parametrize("predicts", ["velocity", "v"])
def test_as_ode_has_gradients_in_both_directions(predicts):
    torch.manual_seed(0)
    net = torch.nn.Linear(2, 2).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t, shift=0.0):
            return torch.tanh(self.net(x)) * t[:, None] + shift

    model = ds.adapt(Net(), "condot", predicts)
    ode = model.as_ode(shift=0.5)
    assert {id(p) for p in ode.parameters()} == {id(p) for p in net.parameters()}
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for times in ([0.0, 1.0], [1.0, 0.0]):
        found, t = [], torch.tensor(times, dtype=torch.float64)
        for solve, more in ((odeint, {}), (odeint_adjoint, {"adjoint_options": {"step_t": t[:1]}})):
            y = solve(ode, x, t, rtol=1e-9, atol=1e-9, options={"step_t": t[1:]}, **more)[-1]
            found.append(torch.autograd.grad(y.square().sum(), [x, *net.parameters()]))
        for one, two in zip(*found, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    assert torch.equal(ode(torch.tensor(1.5), x), ode(torch.tensor(1.0), x))
    with pytest.raises(ValueError, match="t must be a time at which dx/dt is finite on Custom"):
        ds.adapt(Net(), ds.paths.Custom(lambda t: (1 - t * t).sqrt(), lambda t: t), "v").as_ode()(torch.tensor(1.0), x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m: Adaptive("rk4"), "method must be 'bosh3', 'dopri5', 'dopri8' or 'tsit5', got 'rk4'"),
        (
            lambda m: Adaptive(ds.solvers.RungeKutta().method),
            r"method must be one with one or two embedded methods.*, got Butcher\('heun'",
        ),
        (lambda m: Adaptive(rtol=-1.0), "rtol must be a finite number >= 0 and < 1, got -1.0"),
        (lambda m: Adaptive(rtol=0, atol=0), "rtol or atol must be positive"),
        (lambda m: Adaptive(frame="polar"), "frame must be .* got 'polar'"),
        (lambda m: Adaptive(max_nfe=0), "max_nfe must be an integer >= 1, got 0"),
        (lambda m: Adaptive(first_step=0.0), "first_step must be a finite number > 0, got 0.0"),
        (lambda m: Adaptive(pid=(1.0,)), r"pid must be three numbers, got \(1.0,\)"),
        (lambda m: ds.solve(m, (1, 2), solver=Adaptive(), steps=3), "steps=3 cannot be given with an adaptive solver"),
        (lambda m: ds.solve(m, (1, 2), solver=Adaptive(), trajectory=True), "trajectory=True, grid=None"),
        (lambda m: ds.solve(m, (1, 2), solver=Adaptive(), grid=[0.0, 0.5], trajectory=False), "trajectory=False"),
        (
            lambda m: ds.solve(m, (1, 2), solver=Adaptive(), stop=2.0),
            r"stop must be between 0.0 and 1.0, the ends of CondOT\(\), got 2.0",
        ),
        (lambda m: ds.solve(m, (1, 2), solver=Adaptive(), start=0.5), "noise must be given with start=0.5"),
        (lambda m: ds.solve(ds.adapt(m.net, "condot", "noise"), (1, 2), solver=Adaptive()), "does not determine"),
        (lambda m: ds.solve(3, (1, 2), solver=Adaptive()), "model must be .* got one of type int"),
    ],
)
def test_errors_name_what_is_wrong(make, says, mixture):
    with pytest.raises((ValueError, TypeError), match=says):
        make(mixture_model(mixture))


def test_no_graph_is_kept_and_no_warning_given(mixture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = ds.solve(mixture_model(mixture), (4, 2), solver=Adaptive(), seed=0)
    assert not run.x.requires_grad
    assert run.seed == 0
