"""Gradients through adaptive solves: against plain loops and finite differences, and what they keep."""

import warnings

import numpy as np
import pytest
import torch
from support.live import live_numbers
from support.nets import Net, noise

import diffsolve as ds
from diffsolve.adaptive import METHODS, Adaptive, Status, integrate, retrace
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring

GRADIENTS = ("direct", "checkpoint", "adjoint")
PATHS = [("condot", "velocity"), ("vp", "v"), ("edm", "edm"), ("vp", "noise")]


def gradients(model, gradient, solver, shape=(3, 3), dtype=torch.float64, **options):
    """(run, gradients in the noise, a condition per sample, and the network's weights)."""
    x = noise(shape[0]).to(dtype).requires_grad_()
    shift = torch.linspace(-0.5, 0.7, shape[0], dtype=dtype)[:, None].requires_grad_()
    run = ds.solve(model, noise=x, solver=solver, cond={"shift": shift}, gradient=gradient, **options)
    loss = run.x.square().sum() if run.trajectory is None else run.trajectory[1:-1].square().sum()
    return run, torch.autograd.grad(loss, [x, shift, model.net.weight])


def plain(model, solver, **options):
    shift = torch.linspace(-0.5, 0.7, 3, dtype=torch.float64)[:, None]
    return ds.solve(model, noise=noise(3), solver=solver, cond={"shift": shift}, **options)


@pytest.mark.parametrize(("path", "predicts"), PATHS)
def test_every_gradient_agrees_and_no_value_changes(path, predicts):
    model, solver = ds.adapt(Net(), path, predicts), Adaptive(rtol=1e-4, atol=1e-4)
    expected = plain(model, solver)
    runs = {gradient: gradients(model, gradient, solver) for gradient in GRADIENTS}
    for run, _ in runs.values():
        assert torch.equal(run.x.detach(), expected.x)
        np.testing.assert_array_equal(run.nfe, expected.nfe)
    exact = runs["direct"][1]
    for a, b in zip(exact, runs["checkpoint"][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(exact, runs["adjoint"][1], strict=True):
        assert (a - b).abs().max() < 5e-3 * a.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_made_again_is_the_run_and_the_plain_loops(method, monkeypatch):
    """Elementwise field with a rate per sample: bit for bit, whatever the batches; the gradient is that of a loop."""
    rate = torch.tensor([-1.0, -30.0, -4.0, 2.0], dtype=torch.float64, requires_grad=True)
    x = torch.linspace(0.5, 2, 8, dtype=torch.float64).view(4, 2).requires_grad_()

    def field(parts, v, rows):
        return (parts[0] * torch.sin(parts[0]) * rate[torch.from_numpy(rows), None] * torch.from_numpy(1 + v)[:, None],)

    monkeypatch.setattr(retrace, "_valued", lambda graph, value: graph)
    options, outputs = Adaptive(method, rtol=1e-5, atol=1e-5), [0.02, 0.3, 0.31, 0.9]
    with torch.no_grad():
        expected = integrate(field, (x,), 0.0, 1.0, options, outputs=outputs)
    assert len({len([s for s in expected.steps if i in s.rows]) for i in range(4)}) > 1
    table = METHODS[method]
    ends = []
    for i in range(4):
        y = x[i]
        for made in expected.steps:
            for v, h in zip(made.v[made.rows == i], made.h[made.rows == i], strict=True):
                k = []
                for row, c in zip(table.a, table.c, strict=True):
                    at = y + h * sum((float(w) * slope for w, slope in zip(row, k, strict=True)), 0 * y)
                    k.append(at * torch.sin(at) * rate[i] * (1 + v + float(c) * h))
                y = y + h * sum(float(w) * slope for w, slope in zip(table.b, k, strict=True))
        ends.append(y)
    wanted = torch.autograd.grad(torch.stack(ends).square().sum(), [x, rate])
    for checkpointed in (False, True):
        found = integrate(field, (x,), 0.0, 1.0, options, outputs=outputs, checkpointed=checkpointed)
        assert torch.equal(found.parts[0], expected.parts[0])
        assert torch.equal(found.dense, expected.dense)
        got = torch.autograd.grad(found.parts[0].square().sum(), [x, rate], retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert all(g.isfinite().all() and g.any() for g in torch.autograd.grad(found.dense.sum(), [x, rate]))


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_gradcheck(gradient):
    """Steps of fixed length, which no difference quotient moves: the derivative of what was computed, exactly."""
    solver = Adaptive("bosh3", rtol=0.99, atol=0.99, first_step=0.5, max_step=0.5)

    def result(x, weight, shift):
        model = ds.adapt(lambda x, t, shift: torch.tanh(x @ weight + shift), "vp", "v")
        run = ds.solve(model, noise=x, solver=solver, cond={"shift": shift}, gradient=gradient)
        return run.x

    x, shift = noise(1)[:, :2].requires_grad_(), torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    weight = Net(2).weight
    assert torch.autograd.gradcheck(result, (x, weight, shift))


@pytest.mark.parametrize(("path", "predicts"), PATHS[:3])
def test_the_adjoint_converges_with_the_tolerance(path, predicts):
    model, errors = ds.adapt(Net(), path, predicts), []
    for tol in (1e-4, 1e-6):
        solver = Adaptive(rtol=tol, atol=tol)
        (_, exact), (_, found) = (gradients(model, g, solver) for g in ("direct", "adjoint"))
        errors.append(max((a - b).abs().max() / a.abs().max() for a, b in zip(exact, found, strict=True)))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 20


def test_the_unit_of_the_loss_does_not_matter_to_the_adjoint():
    model, solver = ds.adapt(Net(), "condot", "velocity"), Adaptive(rtol=1e-4, atol=1e-4)
    found = []
    for unit in (1.0, 1e-20):
        x = noise(3).requires_grad_()
        run = ds.solve(model, noise=x, solver=solver, gradient="adjoint")
        found.append([g / unit for g in torch.autograd.grad(unit * run.x.sum(), [x, model.net.weight])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_a_trajectory(method):
    """At a time inside it the gradient is that of a run that stops there."""
    model, solver = ds.adapt(Net(), "condot", "velocity"), Adaptive(method, rtol=1e-5, atol=1e-5)
    _, exact = gradients(model, "direct", solver, stop=0.6)
    for gradient in ("direct", "checkpoint"):
        run, found = gradients(model, gradient, solver, grid=[0.0, 0.6, 1.0], trajectory=True)
        for a, b in zip(exact, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert torch.equal(
            run.trajectory.detach(), plain(model, solver, grid=[0.0, 0.6, 1.0], trajectory=True).trajectory
        )


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_rejected_step_leaves_no_nan(gradient):
    """Where a first step that is far too long makes the network return NaN."""

    class Gompertz(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x, t):
            return -1.5 * self.weight * x * torch.log(x)

    model, found = ds.adapt(Gompertz(), "condot", "velocity"), []
    for first in (1.0, 1e-3):
        x = torch.tensor([[2.0], [9.0]], dtype=torch.float64, requires_grad=True)
        solver = Adaptive(rtol=1e-6, atol=1e-6, frame="native", first_step=first)
        run = ds.solve(model, noise=x, solver=solver, gradient=gradient)
        assert run.done
        found.append(torch.autograd.grad(run.x.sum(), [x, model.net.weight]))
    start, rate = torch.tensor([[2.0], [9.0]], dtype=torch.float64), np.exp(-1.5)
    end = torch.exp(start.log() * rate)
    for on_x, on_weight in found:
        torch.testing.assert_close(on_x, end * rate / start, rtol=1e-4, atol=0)
        torch.testing.assert_close(on_weight, (end * start.log() * rate * -1.5).sum(), rtol=1e-4, atol=0)


def test_samples_that_stop_early():
    """Their gradient is that of the state where they stopped, and the others' is their own."""

    def run(gradient, solver, kinds):
        x = noise(len(kinds)).requires_grad_()
        weight = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        cond = {"kind": torch.tensor(kinds), "weight": weight}

        def net(x, t, kind, weight):
            wild = 50 * torch.cos(300 * t)[:, None].expand_as(x)
            bad = torch.where(t[:, None] > 0.5, torch.nan, -x)
            kind = kind[:, None]
            return torch.where(kind == 1, wild - x, torch.where(kind == 2, bad, -x * weight))

        model = ds.adapt(net, "condot", "velocity")
        found = ds.solve(model, noise=x, solver=solver, cond=cond, gradient=gradient)
        return found, torch.autograd.grad(found.x.sum(), [x, weight])

    solver = Adaptive(rtol=1e-6, atol=1e-6, frame="native", max_nfe=200)
    with pytest.warns(RuntimeWarning, match="stopped early"):
        direct, exact = run("direct", solver, [0, 1])
    assert direct.status == (Status.DONE, Status.BUDGET_SPENT)
    with pytest.warns(RuntimeWarning, match="stopped early"):
        _, checkpointed = run("checkpoint", solver, [0, 1])
    with pytest.warns(RuntimeWarning, match="stopped early"):
        _, adjoint = run("adjoint", solver, [0, 1])
    for a, b, c in zip(exact, checkpointed, adjoint, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exact[0][0], torch.full((3,), np.exp(-1), dtype=torch.float64), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        exact[0][1], torch.full((3,), np.exp(-direct.t[1]), dtype=torch.float64), rtol=1e-4, atol=0
    )
    # A network that is NaN from some time on: where.backward would make NaN of it, if those calls were in the graph.
    with pytest.warns(RuntimeWarning, match="non finite"):
        broken, (on_x, on_weight) = run("direct", solver, [0, 2])
    assert broken.status[1] == Status.NON_FINITE
    assert on_x[0].isfinite().all()
    assert not on_weight.isnan()


def test_the_adjoint_says_so_where_it_does_not_get_back():
    model = ds.adapt(lambda x, t: -50 * x, "condot", "velocity")
    x = noise(2).requires_grad_()
    run = ds.solve(model, noise=x, solver=Adaptive(rtol=1e-6, atol=1e-6, frame="native"), gradient="adjoint")
    with pytest.warns(RuntimeWarning, match="2 of 2 adjoints stopped early: "):
        (on_x,) = torch.autograd.grad(run.x.sum() / 0.0, x)  # a cotangent that is not finite
    assert on_x.isnan().all()


def test_finished_samples_leave_the_replayed_batch():
    """A hard sample costs the others nothing here either: the calls made for each are its own."""
    calls = []

    def net(x, t, speed, row):
        calls.extend(row.tolist())
        return torch.cos(speed[:, None] * t[:, None]).to(x) + 0 * x

    model = ds.adapt(net, "condot", "velocity")
    speed = torch.tensor([1.0, 100.0, 1.0], dtype=torch.float64)
    cond = {"speed": speed, "row": torch.arange(3)}
    solver = Adaptive(frame="native", rtol=1e-6, atol=1e-6)
    once = ds.solve(model, noise=noise(3), solver=solver, cond=cond)
    calls.clear()
    ds.solve(model, noise=noise(3).requires_grad_(), solver=solver, cond=cond, gradient="direct")
    counts = np.bincount(calls, minlength=3) - once.nfe  # the calls that were made again: six for each step accepted
    assert (counts % 6 == 0).all()
    assert (counts <= once.nfe).all()
    assert counts[1] > 5 * counts[0]


def fixed_steps(h):
    return Adaptive("bosh3", rtol=0.99, atol=0.99, first_step=h, max_step=h, frame="native")


@pytest.mark.slow
def test_memory_is_as_promised():
    """The most numbers alive at once, in units of the state: N, sqrt N and 1."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Elementwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(weight)

        def forward(self, x, t):
            return torch.tanh(x * self.weight)

    model = ds.adapt(Elementwise(), "condot", "velocity")
    x = torch.linspace(-1, 1, 100, dtype=torch.float64).view(1, -1).requires_grad_()

    def peak(gradient, steps):
        with live_numbers(100) as live:
            run = ds.solve(model, noise=x, solver=fixed_steps(1 / steps), gradient=gradient)
            torch.autograd.grad(run.x.sum(), [x, model.net.weight])
        return live.peak / 100

    for gradient in GRADIENTS:
        peak(gradient, 4)
    few, many = ({g: peak(g, steps) for g in GRADIENTS} for steps in (9, 36))
    assert many["direct"] - few["direct"] > 27 * 3
    assert many["direct"] / few["direct"] > 3.3
    assert 1.5 < many["checkpoint"] / few["checkpoint"] < 2.2
    assert many["checkpoint"] < many["direct"] / 4
    assert many["adjoint"] == few["adjoint"] < many["direct"] / 4


def test_memory_of_samples_with_different_numbers_of_steps():
    """One sample of 100 steps beside 7 of 20: the stretches are cut by what they hold."""
    x = torch.linspace(-1, 1, 8 * 100, dtype=torch.float64).view(8, -1).requires_grad_()
    start = np.where(np.arange(8) == 3, 0.0, 0.8)
    peaks, found = [], []
    for checkpointed in (False, True):
        with live_numbers(100) as live:
            run = integrate(
                lambda parts, v, rows: (torch.tanh(parts[0]),),
                (x,),
                start,
                1.0,
                fixed_steps(0.01),
                checkpointed=checkpointed,
            )
            found.append(torch.autograd.grad(run.parts[0].sum(), x)[0])
        peaks.append(live.peak / 100)
    assert [len(made.rows) for made in run.steps] == [8] * 20 + [1] * 80
    torch.testing.assert_close(*found, rtol=1e-13, atol=0)
    # d/dx of asinh(e^v sinh x), the flow of tanh.
    grown = (torch.from_numpy(1 - start).exp()[:, None] * x.detach().sinh()).square()
    exact = torch.from_numpy(1 - start).exp()[:, None] * x.detach().cosh() / (1 + grown).sqrt()
    torch.testing.assert_close(found[0], exact, rtol=1e-5, atol=0)
    assert peaks[1] < 0.35 * peaks[0]


@pytest.mark.product(
    {
        "gradient": GRADIENTS,
        "shape": [(3,), (3, 2, 2), (2, 1, 3, 2)],
        "dtype": [torch.float32, torch.float64],
    },
    each=3,
)
def test_any_rank_and_dtype(shape, dtype, gradient):
    """dx/dt = -x for a velocity on the native clock: the gradient is 1 / e."""
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    run = ds.solve(model, noise=x, solver=Adaptive(rtol=1e-6, atol=1e-6), gradient=gradient)
    (on_x,) = torch.autograd.grad(run.x.sum(), x)
    assert on_x.dtype == dtype
    torch.testing.assert_close(on_x, torch.full_like(on_x, np.exp(-1)), rtol=2e-5, atol=2e-5)
    empty = torch.empty(0, *shape[1:], dtype=dtype, requires_grad=True)
    run = ds.solve(model, noise=empty, solver=Adaptive(), gradient=gradient)
    assert torch.autograd.grad(run.x.sum(), empty)[0].shape == empty.shape


def test_guidance_and_nested_conditions():
    """Gradients in what the guided and the unguided call are given, at any depth."""

    class Guided(torch.nn.Module):
        def forward(self, x, t, given=None):
            return -x if given is None else torch.tanh(x + given["shift"][0]) - x

    model, solver, found = ds.adapt(Guided(), "vp", "v"), Adaptive(rtol=1e-6, atol=1e-6), []
    one, two = (torch.full((1, 3), value, dtype=torch.float64, requires_grad=True) for value in (0.5, -0.3))
    for gradient in GRADIENTS:
        x = noise(3).requires_grad_()
        guidance = ds.Guidance(2.0, uncond={"given": {"shift": [two]}})
        run = ds.solve(
            model,
            noise=x,
            solver=solver,
            cond={"given": {"shift": [one]}},
            guidance=guidance,
            gradient=gradient,
            stop=0.01,
        )
        found.append(torch.autograd.grad(run.x.square().sum(), [x, one, two]))
    for a, b, c in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-3, atol=1e-4)
        assert a.any()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_noise_from_a_seed_and_one_tensor_in_two_places(gradient):
    model, solver = ds.adapt(Net(), "condot", "velocity"), Adaptive(rtol=1e-7, atol=1e-7)
    x = noise(2).requires_grad_()
    run = ds.solve(model, noise=x, solver=solver, cond={"shift": x}, gradient=gradient)
    loss = run.x.sum() + model.net.weight.sum()
    first = torch.autograd.grad(loss, [x, model.net.weight], retain_graph=True)
    second = torch.autograd.grad(loss, [x, model.net.weight])  # the graph can be used again
    one, two = noise(2).requires_grad_(), noise(2).requires_grad_()
    apart = ds.solve(model, noise=one, solver=solver, cond={"shift": two}, gradient="direct")
    on_one, on_two, on_weight = torch.autograd.grad(apart.x.sum(), [one, two, model.net.weight])
    for found in (first, second):
        torch.testing.assert_close(found[0], on_one + on_two, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[1], on_weight + 1, rtol=1e-4, atol=1e-5)
    drawn = ds.solve(model, (2, 3), solver=solver, seed=0, gradient=gradient)
    assert drawn.x.requires_grad
    frozen = ds.adapt(lambda x, t: -x, "condot", "velocity")
    assert not ds.solve(frozen, (2, 3), solver=solver, seed=0, gradient="direct").x.requires_grad


def test_encode_has_gradients_too():
    """Data to noise, where the network cannot be called at the data: the way back of the same flow."""
    mixture = ring()
    model, x = mixture_model(mixture, "edm", "denoised"), mixture.sample(2, seed=0).requires_grad_()
    found = [
        torch.autograd.grad(ds.encode(model, x, solver=Adaptive(rtol=1e-5, atol=1e-5), gradient=g).square().sum(), x)[0]
        for g in GRADIENTS
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0], found[2], rtol=1e-2, atol=1e-2)


def test_a_network_that_no_gradient_would_reach_is_refused():
    net = Net()
    model = ds.adapt(lambda x, t: net(x, t), "condot", "velocity")
    with pytest.raises(ValueError, match=r"depends on a tensor of shape \(3, 3\) that is neither in cond nor among"):
        ds.solve(model, noise=noise(), solver=Adaptive(), gradient="adjoint")
    embedded = (net.weight * 2)[:1]  # a tensor with a graph of its own is a condition like any other
    run = ds.solve(
        ds.adapt(lambda x, t, shift: torch.tanh(x + shift), "condot", "velocity"), noise=noise(), solver=Adaptive(),
        cond={"shift": embedded}, gradient="adjoint",
    )  # fmt: skip
    assert torch.autograd.grad(run.x.sum(), net.weight)[0][0].all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ds.solve(model, noise=noise(), solver=Adaptive(), gradient="checkpoint").x.requires_grad
