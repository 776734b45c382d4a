"""Rows that call nothing: the tableau is the loop that extrapolates, and costs as many calls as it says."""

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import ring
from diffsolve.solvers.skip import Skip
from diffsolve.tuning import fit

F64 = torch.float64


class Counted(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x, t):
        self.calls += 1
        return self.inner(x, t)


def loop(model, tableau, places, order, x):
    """The same by hand: the user's own run, call by call, with v = eps - x_0 extrapolated where nothing is called."""
    known, s, y, history = [], x, x, []
    for i, (w, (a, b), (t, alpha, sigma)) in enumerate(zip(tableau.weights, tableau.d, tableau.calls, strict=True)):
        u = sigma / (alpha + sigma)
        if i in places:
            denoised = model.denoised(y, float(t))
            known.append((u, (y - (alpha + sigma) * denoised) / sigma))
        last = known[-order - 1 :]
        v = 0
        for j, (node, value) in enumerate(last):
            v = v + value * np.prod([(u - other) / (node - other) for m, (other, _) in enumerate(last) if m != j])
        x_0, eps = (y - sigma * v) / (alpha + sigma), (y + alpha * v) / (alpha + sigma)
        history = [a * x_0 + b * eps, *history][: tableau.history]
        live = [s, y, *history]
        s, y = (sum(weight * one for weight, one in zip(side, live, strict=False)) for side in w)
    return y


@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m", "unipc-3", "deis-3", "ddim"])
@pytest.mark.parametrize(("path", "order"), [("condot", 2), ("vp", 1), ("edm", 3), ("vp", 0)])
def test_it_is_the_loop_that_extrapolates(solver, path, order):
    model = mixture_model(ring(), path, "velocity" if path == "condot" else "noise")
    plan = ds.plan(model, solver, steps=20, stop=None if path != "condot" else 0.99)
    places = [0, 3, 5, 9, 14, 17, 19]
    x = ds.Key(0).normal((4, 2), dtype=F64) * model.path.prior_std(float(plan.times[0]))
    table = ds.skip(plan, places, order)
    assert (table.nfe, table.steps) == (7, 20)
    found = ds.sample(model, noise=x, solver=table)
    torch.testing.assert_close(found, loop(model, plan, places, order, x), rtol=1e-7, atol=1e-7)


def test_all_calls_are_the_run_itself():
    model = mixture_model(ring(), "vp", "noise")
    plan = ds.plan(model, "dpmpp-2m", steps=12)
    want = ds.sample(model, (4, 2), solver=plan, seed=0, dtype=F64)
    torch.testing.assert_close(ds.sample(model, (4, 2), solver=ds.skip(plan, 12), seed=0, dtype=F64), want)


@pytest.mark.parametrize("solver", ["ab-2(frame='trig')", "ab-3(frame='native')"])
def test_a_run_in_another_frame_keeps_it(solver):
    model = mixture_model(ring(), "condot", "velocity")
    plan = ds.plan(model, solver, steps=24)
    x = ds.Key(0).normal((16, 2), dtype=F64)
    own, near, half = (ds.sample(model, noise=x, solver=s) for s in (plan, ds.skip(plan, 18), ds.skip(plan, 9)))
    assert set(ds.skip(plan, 9).frame) == set(plan.frame)
    assert (near - own).norm() < 0.3 * (half - own).norm() < 0.05 * own.norm()


def test_of_a_solver_it_is_a_solver():
    """steps are the user's own; each call is one of the network."""
    model = mixture_model(ring(), "vp", "noise")
    net = Counted(model.net)
    counted = ds.adapt(net, "vp", "noise")
    solver = ds.skip("dpmpp-2m", calls=6, order=1)
    assert isinstance(solver, Skip)
    x = ds.sample(counted, (4, 2), solver=solver, steps=24, seed=0)
    assert net.calls == 6
    table = ds.skip(ds.plan(model, "dpmpp-2m", steps=24), 6, 1)
    assert torch.equal(x, ds.sample(model, (4, 2), solver=table, seed=0))
    assert str(solver).startswith("Skip(solver=")
    np.testing.assert_array_equal(ds.plan(model, solver, steps=24).times, ds.plan(model, "dpmpp-2m", steps=24).times)


def test_extrapolation_is_nearer_to_the_users_own_picture():
    """Than reuse, and nearer than as many steps of the same solver."""
    model = mixture_model(ring(), "condot", "velocity")
    plan = ds.plan(model, "dpmpp-2m", steps=50)
    own = ds.sample(model, (64, 2), solver=plan, seed=0, dtype=F64)

    def off(solver, **options):
        return float((ds.sample(model, (64, 2), solver=solver, seed=0, dtype=F64, **options) - own).norm(dim=1).mean())

    errors = [off(ds.skip(plan, 17, order)) for order in (0, 1, 2)]
    assert errors[0] > 2 * max(errors[1:])
    assert max(errors[1:]) < off("dpmpp-2m", steps=17)


def test_it_goes_through_files_and_the_stepper(tmp_path):
    model = mixture_model(ring(), "vp", "noise")
    table = ds.skip(ds.plan(model, "unipc-2", steps=20), 8)
    table.save(tmp_path / "skip.json")
    assert ds.Tableau.load(tmp_path / "skip.json") == table
    stepper = ds.Stepper(model, max_history=8)
    ticket = stepper.submit((2,), solver=table, seed=0)
    stepper.run()
    assert torch.equal(stepper.result(ticket).x, ds.sample(model, (1, 2), solver=table, seed=0)[0])


def test_tune_learns_where_to_call_and_the_weights():
    model = mixture_model(ring(), "condot", "velocity")
    plan = ds.plan(model, "dpmpp-2m", steps=12)
    learned = fit(model, (24, 2), solver=ds.skip(plan, 5), teacher=plan, iterations=12, batch=16, seed=0, dtype=F64)
    assert learned.tableau.nfe == 5
    assert learned.after.value < 0.8 * learned.before.value


def test_what_is_refused():
    model = mixture_model(ring(), "vp", "noise")
    plan = ds.plan(model, "euler", steps=8)
    for calls in (0, 9, 2.5):
        with pytest.raises(ValueError, match="calls must be an integer from 1 to 8, got"):
            ds.skip(plan, calls)
    for calls in ([1, 2], [0, 3, 3], [0, 8], []):
        with pytest.raises(ValueError, match="calls must be a number, or rising numbers of rows from 0 on, below 8"):
            ds.skip(plan, calls)
    with pytest.raises(ValueError, match="order must be an integer from 0 to 4, got 5"):
        ds.skip(plan, 4, 5)
    for solver in ("heun", "ddim(eta=1.0)"):
        with pytest.raises(ValueError, match="solver must be deterministic, and call the network once at each"):
            ds.skip(ds.plan(model, solver, steps=8), 4)
