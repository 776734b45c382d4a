"""More of the table learned: times told apart from the state's, scales of guidance, calls made together."""

import json

import numpy as np
import pytest
import torch
from support.learning import RING, Net, moved, noise

import diffsolve as ds
from diffsolve.parallel.independent import edges
from diffsolve.tableau.augmented import augmented
from diffsolve.tuning import fit
from diffsolve.tuning.pilot import grown, spread
from diffsolve.tuning.student import Student, flattened

SHIFT = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
GUIDED = {"cond": {"shift": SHIFT}, "guidance": ds.Guidance(3.0, {"shift": 0.5})}
QUICK = {"teacher": 20, "seed": 0, "dtype": torch.float64, "iterations": 6, "solver": "unipc-3"}


def learned(path="condot", predicts="velocity", **how):
    model = ds.adapt(Net(), path, predicts)
    return model, moved(model, also=("told", "guides"), **how).tableau()


@pytest.mark.parametrize("path", ["condot", "edm", "ddpm"])
def test_every_call_is_told_its_time_and_guided_by_its_part(path):
    """A plain loop over B, with the network's velocity at the time told and at its own scale."""
    model, table = learned(path, "v")
    assert (table.told != table.calls[:, 0])[1:].all()
    assert (table.guides != 1).all()
    x = noise() * model.path.prior_std()
    levels = np.concatenate([table.calls, table.grid[-1:]])[:, 1:]
    c, B, v, y = levels.sum(1), flattened(table), [], x
    for i in range(table.nfe):
        told = model.network_time(torch.full((4,), table.told[i], dtype=torch.float64))
        with_, without = (model.net(y, told, shift=shift) for shift in (SHIFT, 0.5))
        out = without + (1 + table.guides[i] * 2) * (with_ - without)
        alpha, sigma = levels[i]
        # out = alpha eps - sigma x_0, y = alpha x_0 + sigma eps
        r = alpha**2 + sigma**2
        v.append((alpha * out + sigma * y) / r - (alpha * y - sigma * out) / r)
        y = c[i + 1] * (x / c[0] + sum(B[i, j] * v[j] for j in range(i + 1)))
    torch.testing.assert_close(ds.sample(model, noise=x, solver=table, **GUIDED), y, rtol=1e-9, atol=1e-9)


def test_wherever_a_run_goes_they_go_too():
    model, table = learned()
    x = noise()
    wanted = ds.sample(model, noise=x, solver=table, **GUIDED)
    for how in ({"parallel": ds.Picard(window=3, tol=0)}, {"parallel": ds.Independent()}, {"gradient": "direct"}):
        torch.testing.assert_close(ds.sample(model, noise=x, solver=table, **how, **GUIDED), wanted)
    stepper = ds.Stepper(model, max_history=5)
    guidance = ds.Guidance(3.0, {"shift": torch.tensor([0.5], dtype=torch.float64)})
    tickets = [stepper.submit(noise=x[i], solver=table, cond={"shift": SHIFT[i]}, guidance=guidance) for i in (0, 3)]
    stepper.run()
    for i, ticket in zip((0, 3), tickets, strict=True):
        torch.testing.assert_close(stepper.result(ticket).x, wanted[i])
    first = ds.solve(model, noise=x, solver=table, max_calls=2, **GUIDED)
    rest = ds.solve(model, solver=table, state=first.state, **GUIDED)
    assert torch.equal(rest.x, wanted)
    every = ds.skip(table, table.nfe)
    torch.testing.assert_close(ds.sample(model, noise=x, solver=every, **GUIDED), wanted)


def test_a_file_has_what_is_unusual(tmp_path):
    model, table = learned()
    table.save(tmp_path / "t.json")
    again = ds.Tableau.load(tmp_path / "t.json")
    assert again == table
    assert again.unusual.keys() == {"told", "guides"}
    assert {"told", "guides"} & json.loads(moved(model).tableau().to_json()).keys() == set()
    assert ds.execute.bind(table, model).identity != ds.execute.bind(moved(model).tableau(), model).identity


def test_where_the_network_is_called_by_others_they_are_refused(df):
    from diffsolve.integrations.diffusers import Scheduler
    from diffsolve.integrations.k_diffusion import sampler

    model, table = learned("edm", "denoised")
    with pytest.raises(ValueError, match="without scales of guidance of its own: the host guides"):
        sampler(table, seed=0)(model.net, noise(4) * 80, torch.from_numpy(table.times.copy()).float(), disable=True)
    with pytest.raises(ValueError, match="tells the network the state's own time"):
        augmented(table)
    each = ds.Guidance(torch.full((4,), 2.0), {"shift": 0.5})
    with pytest.raises(ValueError, match="scale must be one for all samples with moved"):
        ds.sample(model, noise=noise(4) * 80, solver=table, cond={"shift": SHIFT}, guidance=each)
    from support.learning import family_of

    _, table = learned("rectified")
    with pytest.raises(ValueError, match="without scales of guidance of its own: the pipeline guides"):
        Scheduler(df.FlowMatchEulerDiscreteScheduler(), family_of(table)).set_timesteps(5)
    table = moved(ds.adapt(Net(), "rectified", "velocity"), also=("told",)).tableau()
    scheduler = Scheduler(df.FlowMatchEulerDiscreteScheduler(), family_of(table))
    for asked in (
        {"num_inference_steps": 5},
        {"sigmas": np.linspace(1, 0.1, 5).tolist()},
    ):  # of which the number counts
        scheduler.set_timesteps(**asked)
        np.testing.assert_allclose(scheduler.timesteps, 1000 * table.told, rtol=1e-6)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "edm"), ("ddpm", "noise")])
def test_the_student_with_a_graph_runs_as_its_tableau(path, predicts, together):
    model = ds.adapt(Net(), path, predicts)
    student = moved(model, nfe=3, also=("told", "guides"), together=together)
    x = noise() * model.path.prior_std()
    found = student(x, GUIDED["cond"], GUIDED["guidance"])
    torch.testing.assert_close(found, ds.sample(model, noise=x, solver=student.tableau(), **GUIDED))
    slopes = dict(zip(student.parameters, torch.autograd.grad(found.sum(), student.parameters.values()), strict=True))
    for name in ("offsets", "guides"):
        p, h, ends = student.parameters[name], 1e-6, []
        for side in (h, -2 * h):
            p.data[1] += side
            ends.append(float(student(x, GUIDED["cond"], GUIDED["guidance"]).sum().detach()))
        p.data[1] += h
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(float(slopes[name][1]), rel=1e-5)


@pytest.mark.parametrize("also", [(), ("told", "guides")])
@pytest.mark.parametrize("path", ["condot", "edm"])
def test_a_learned_run_is_where_another_learning_begins(path, also):
    model, table = learned(path)
    # On paths that stop before the data a last call there is moved a little, to be free, where times are learned.
    again = Student(model, table, 5, path == "condot", "moved", also).tableau()
    for name in ("calls", "told", "guides", "weights"):
        np.testing.assert_allclose(getattr(again, name), getattr(table, name), rtol=1e-9, atol=1e-9)


def test_calls_together_do_not_depend_on_each_other():
    model = ds.adapt(Net(), "condot", "velocity")
    table, x = moved(model, nfe=4, together=3).tableau(), noise()
    assert edges(table) == [0, 1, 4, 7, 10]
    assert edges(ds.plan(model, "unipc-3", nfe=5)) == [0, 1, 2, 3, 4, 5]
    sizes = []

    def net(x, t):
        sizes.append(len(x))
        return model.net(x, t)

    run = ds.solve(ds.adapt(net, "condot", "velocity"), noise=x, solver=table, parallel=ds.Independent())
    assert sizes == [4, 12, 12, 12]
    assert (run.parallel.rounds, run.parallel.calls, run.parallel.depth) == (4, 40, 4)
    torch.testing.assert_close(run.x, ds.sample(model, noise=x, solver=table))
    every = ds.solve(model, noise=x, solver=table, parallel=ds.Independent(), trajectory="calls").trajectory
    torch.testing.assert_close(every, ds.solve(model, noise=x, solver=table, trajectory="calls").trajectory)
    in_order = {"noise": x, "solver": "unipc-3", "nfe": 5}
    assert torch.equal(ds.sample(model, parallel=ds.Independent(), **in_order), ds.sample(model, **in_order))


def test_groups_begin_as_the_run_without_them_and_grow_by_a_group():
    model, x = ds.adapt(Net(), "edm", "denoised"), noise() * 80
    few = ds.plan(model, "unipc-3", nfe=4)
    table = spread(model, few, 2)
    assert edges(table) == [0, 1, 3, 5, 7]
    more = grown(model, table, 9, together=2).tableau
    assert {*edges(more)} <= {0, 1, 3, 5, 7, 9}  # the new group has no weight, so that the next need not wait for it
    wanted = ds.sample(model, noise=x, solver=few)
    for run in (table, more):
        torch.testing.assert_close(ds.sample(model, noise=x, solver=run), wanted, rtol=1e-9, atol=1e-9)


def test_more_to_learn_is_nearer():
    """Of two calls in sequence, on noises that nothing depended on."""
    how = {**QUICK, "times": False}
    plain, told = (fit(RING, (96, 2), nfe=2, also=also, **how) for also in ((), "told"))
    many = fit(RING, (96, 2), nfe=5, together=4, **how)
    assert told.after.value < 0.5 * plain.after.value
    assert many.after.value < 0.8 * plain.after.value
    assert told.tableau.solver == "tuned(unipc-3, nfe=2, also=told)"
    assert many.tableau.solver == "tuned(unipc-3, nfe=5, together=4)"
    assert edges(many.tableau) == [0, 1, 5]


def test_guidance_learned_call_by_call():
    model = ds.adapt(Net(), "condot", "velocity")
    shift = torch.linspace(-1, 1, 96, dtype=torch.float64)[:, None]
    how = {"cond": {"shift": shift}, "guidance": ds.Guidance(2.0, {"shift": -shift}), **QUICK}
    plain, other = (fit(model, (96, 3), nfe=[2], also=also, times=False, **how) for also in ((), ["guides"]))
    assert other[2].after.value < 0.9 * plain[2].after.value
    assert other.family.provenance.options["also"] == ["guides"]
    assert (other[2].tableau.guides != 1).any()
    with pytest.raises(ValueError, match="guidance must be a scale other than 1"):
        fit(RING, (8, 2), nfe=3, also="guides")


def test_what_there_is_to_learn_is_checked():
    for options, message in (
        ({"also": "more"}, "also must be 'told', 'guides' or 'blurs', got 'more'"),
        ({"together": 0}, "together must be an integer"),
        ({"together": 2, "nfe": 4}, "nfe must be 1 more than a multiple of together=2, got 4"),
        ({"together": 2, "history": 2, "nfe": 5}, "history must be an integer from 3"),
        ({"also": "told", "method": "gits"}, "also must be left out with method='gits'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (8, 2), **{"nfe": 3, **options})
    rows = ds.adapt(RING.net, "ddpm", "noise", clock="index")
    with pytest.raises(ValueError, match="in its time, got none with clock='index'"):
        fit(rows, (8, 2), nfe=3, times=False, also="told")
