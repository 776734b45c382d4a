"""Learned tableaux: what they are made of, their gradients, and how far they carry."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.learning import RING, Net, moved, noise

import diffsolve as ds
from diffsolve.common.files import FileError, read_tensors, write_tensors
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import random_means, ring
from diffsolve.tuning import fit
from diffsolve.tuning.options import TuneOptions
from diffsolve.tuning.pilot import STARTS
from diffsolve.tuning.student import flattened

QUICK = {"method": "adam", "iterations": 12, "batch": 16, "teacher": 20, "seed": 0, "dtype": torch.float64}


# ------------------------------------------------------------------------------------------------ what it is


@pytest.mark.product(
    {
        "solver": [
            *("auto", "euler", "ab-3", "abm-4", "unipc-3", "unipc-2(frame='noise')", "dpmpp-2m", "deis-3", "midpoint")
        ],
        "path": ["condot", "edm", "ddpm"],
    }
)
def test_every_run_is_made_of_its_start_and_its_velocities(path, solver):
    model = mixture_model(random_means(3, modes=3), path, "v")
    tableau = ds.plan(model, solver, steps=6)
    B, x = flattened(tableau), noise() * model.path.prior_std()
    run = ds.solve(model, noise=x, solver=tableau, trajectory="calls")
    levels = np.concatenate([tableau.calls, tableau.grid[-1:]])[:, 1:]
    c = levels.sum(1)
    v = []
    for i, y in enumerate(run.trajectory):
        z = x / c[0] + sum(float(B[i - 1, j]) * v[j] for j in range(i))
        torch.testing.assert_close(c[i] * z, y, rtol=1e-9, atol=1e-9)
        if i < tableau.nfe:
            t = float(tableau.calls[i, 0])
            v.append(model.predict("noise", y, t) - model.predict("denoised", y, t))
    u = levels[:, 1] / c
    np.testing.assert_allclose(B.sum(1), u[1:] - u[0], atol=1e-12)
    assert not np.triu(B, 1).any()


@pytest.mark.parametrize("solver", ["heun", "rk4", "ddpm", "sa-2", "edm-euler", "restart", "unipc-3(mode='pece')"])
def test_other_runs_are_refused(solver):
    with pytest.raises(ValueError, match="once at each of its times"):
        ds.tune(RING, (8, 2), nfe=12, solver=solver)


@pytest.mark.product({"path": ["condot", "rectified", "edm", "ddpm", "cosine", "subvp", "ve"], "history": [2, 3, 6]})
def test_a_moved_student_is_exact_for_a_constant_velocity_and_in_order(path, history):
    model = mixture_model(ring(), path, "v")
    student = moved(model, nfe=6, history=history, scale=1.0)
    tableau = student.tableau()  # which checks itself: one weight changed and it does not come to be
    assert tableau.history <= history
    assert tableau.nfe == 6
    theta = np.arctan2(tableau.calls[:, 2], tableau.calls[:, 1])
    assert (np.diff(theta) < 0).all()
    assert tableau.times[0] == model.path.t_noise
    assert tableau.times[-1] == model.path.t_data
    broken = tableau.weights.copy()
    broken[3, :, 2] += 1e-6
    with pytest.raises(ValueError, match="constant prediction"):
        replace(tableau, weights=broken)
    learned = sum(min(i, history - 1) for i in range(6))  # free weights, one less in each row than it may use
    assert len(student.free) == len(student.weights) == learned


@pytest.mark.parametrize("history", [2, 5])
@pytest.mark.parametrize(
    ("path", "predicts"),
    [("condot", "velocity"), ("condot", "v"), ("edm", "edm"), ("edm", "denoised"), ("ddpm", "noise"), ("vp", "score")],
)
def test_the_student_runs_as_its_tableau(path, predicts, history):
    model = ds.adapt(Net(), path, predicts)
    student, x = moved(model, history=history), noise() * model.path.prior_std()
    shift = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    for guidance in (ds.Guidance(1.0), ds.Guidance(3.0, {"shift": 0.5}, interval=(0.1, 1.5), rescale=0.3)):
        wanted = ds.sample(model, noise=x, solver=student.tableau(), cond={"shift": shift}, guidance=guidance)
        found = student(x, {"shift": shift}, guidance)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_part_of_the_way():
    model = mixture_model(ring(), "edm", "denoised")
    x = noise(40, 2) * 3
    tuning = fit(model, noise=x, nfe=4, start=3.0, stop=0.1, **QUICK)
    assert tuning.tableau.times[[0, -1]].tolist() == [3.0, 0.1]
    assert (tuning.tableau.calls[:, 0] > 0.1).all()


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "edm"), ("ddpm", "noise")])
def test_gradients_against_finite_differences(path, predicts):
    model = ds.adapt(Net(), path, predicts)
    student = moved(model, nfe=4, history=3)
    x, guidance = noise() * model.path.prior_std(), ds.Guidance(1.5, {"shift": 0.3})
    names, parameters = zip(*student.parameters.items(), strict=True)

    def loss(gradient="direct"):
        return student(x, {"shift": 0.1}, guidance, gradient).square().sum()

    direct = torch.autograd.grad(loss(), parameters)
    for g, h in zip(direct, torch.autograd.grad(loss("checkpoint"), parameters), strict=True):
        assert torch.equal(g, h)
    for name, p, g in zip(names, parameters, direct, strict=True):
        for place in np.ndindex(*p.shape):
            h, kept = 1e-5, float(p.data[place])
            values = []
            for side in (-h, h):
                p.data[place] = kept + side
                values.append(float(loss().detach()))
            p.data[place] = kept
            slope = (values[1] - values[0]) / (2 * h)
            assert slope == pytest.approx(float(g[place]), rel=2e-5, abs=2e-6 * float(g.abs().max())), (name, place)
    assert model.net.weight.grad is None  # the network is left alone


# ------------------------------------------------------------------------------------------------ how far it carries


def rivals(model, x, exact, nfe, size):
    """The error of every registered deterministic solver, on its own grid."""
    errors = {}
    for name in ds.solvers.names():
        try:
            tableau = ds.plan(model, name, nfe=nfe)
        except ValueError:
            continue  # needs more calls
        if not tableau.stochastic:
            errors[name] = distance(model, x, exact, tableau, size)
    assert len(errors) > 40
    return errors


def distance(model, x, exact, tableau, size):
    return float(size((ds.sample(model, noise=x, solver=tableau) - exact).norm(dim=1)))


def carries(mixture, path, nfe, factor, n, size=torch.mean, **options):
    """On noises of another seed, drawn as `sample` draws them, the learned tableau is that much nearer than any."""
    model = mixture_model(mixture, path, "velocity")
    table = ds.tune(model, (n, mixture.dim), nfe=nfe, seed=0, dtype=torch.float64, **options)
    x = ds.Key(5).normal((128, mixture.dim), dtype=torch.float64) * model.path.prior_std()
    exact = ds.sample(model, noise=x, solver="auto", nfe=200)
    errors = rivals(model, x, exact, nfe, size)
    assert distance(model, x, exact, table, size) < factor * min(errors.values())
    assert table.nfe == nfe


@pytest.mark.slow
def test_nearer_than_every_solver_in_the_plane():
    carries(ring(), "condot", 5, 0.3, 256, iterations=150, teacher=60)


@pytest.mark.slow
def test_nearer_than_every_solver_in_64_dimensions():
    carries(random_means(64), "condot", 5, 0.5, 160, iterations=120, teacher=40)


@pytest.mark.slow
@pytest.mark.parametrize("nfe", [5, 6, 8])
@pytest.mark.parametrize("path", ["condot", "edm", "ddpm"])
@pytest.mark.parametrize("mixture", [ring(), random_means(64)], ids=["ring", "iso64"])
def test_nearer_than_every_solver(mixture, path, nfe):
    # A median, as one particle of 128 that ends in another mode is worth more than the mean of all the others.
    carries(mixture, path, nfe, 0.7, 1024, size=torch.median)


def test_one_seed_one_tableau_and_what_a_file_holds(tmp_path):
    first, again = (fit(RING, (40, 2), nfe=4, solver="unipc-3", **QUICK) for _ in range(2))
    assert first.tableau == again.tableau
    assert first.losses == again.losses
    assert first.improved
    assert first.after.value < first.before.value
    assert first.validation[0][1] > min(loss for _, loss in first.validation)
    assert ds.tune(RING, (40, 2), nfe=4, solver="unipc-3", **{**QUICK, "seed": 1}) != first.tableau
    assert first.tableau.solver == "tuned(unipc-3, nfe=4)"
    assert "tuned(unipc-3, nfe=4): held-out loss" in str(first)
    assert first.calls == 40 * 20 + 12 * 16 * 4 + len(first.validation) * 5 * 4 + 2 * 40 * 4
    first.tableau.save(tmp_path / "mine.json")
    loaded = ds.Tableau.load(tmp_path / "mine.json")
    assert loaded == first.tableau
    x = ds.sample(RING, (8, 2), solver=loaded, seed=3)
    assert torch.equal(x, ds.sample(RING, (8, 2), solver=first.tableau, seed=3))
    parallel = ds.sample(RING, (8, 2), solver=loaded, seed=3, parallel=ds.Picard(window=4, tol=0))
    torch.testing.assert_close(parallel, x)


def test_the_number_given_is_the_held_out_error():
    model = mixture_model(ring(), "condot")
    tuning = fit(model, noise=noise(40, 2), nfe=4, **QUICK)
    x = noise(40, 2)
    ends = ds.sample(model, noise=x, solver="auto", nfe=20)
    for table, value in ((tuning.start, tuning.before), (tuning.tableau, tuning.after)):
        found = (ds.sample(model, noise=x[35:], solver=table) - ends[35:]).norm(dim=1).mean()
        assert value.value == pytest.approx(float(found / ends.square().sum(1).mean().sqrt()), rel=1e-9)


def test_what_the_teacher_may_be():
    x = noise(40, 2)
    teacher = ds.plan(RING, nfe=20)
    ends = ds.sample(RING, noise=x, solver=teacher)
    tables = [fit(RING, noise=x, nfe=4, **{**QUICK, "teacher": t}).tableau for t in (20, teacher, ends)]
    assert tables[0] == tables[1] == tables[2]


def test_a_loss_of_ones_own_and_conditions_per_sample():
    model = ds.adapt(Net(), "condot", "velocity")
    shift, seen = torch.linspace(-1, 1, 48, dtype=torch.float64)[:, None], []

    def loss(x, ends):
        seen.append((len(x), x.requires_grad))
        return (x - ends).abs().mean()

    guidance = ds.Guidance(2.0, {"shift": -shift})
    tuning = fit(model, (48, 3), nfe=4, loss=loss, solver="unipc-3", cond={"shift": shift}, guidance=guidance, **QUICK)
    assert tuning.improved
    assert seen.count((16, True)) == 12  # 48 noises: 36 to learn from, 16 at a time
    x = ds.Key(0).normal((48, 3), row=1, dtype=torch.float64)
    cond = {"cond": {"shift": shift}, "guidance": guidance}
    ends = ds.sample(model, noise=x, solver="auto", nfe=20, **cond)
    found = (ds.sample(model, noise=x, solver=tuning.tableau, **cond) - ends)[42:].abs().mean()
    assert tuning.after.value == pytest.approx(float(found), rel=1e-9)


def test_its_noises_are_no_ones_samples():
    starts = []

    def net(x, t):
        starts.append(x.detach().clone())
        return -x * (1 + t[:, None])

    fit(ds.adapt(net, "condot", "velocity"), (8, 2), nfe=2, **{**QUICK, "iterations": 1})
    known = ds.Key(0).normal((8, 2), dtype=torch.float64)
    assert all((x[:, None] - known).abs().sum(-1).min() > 1e-6 for x in starts if len(x) == 8)


def test_float32_and_a_network_in_half_precision():
    network_time = []

    class Half(Net):
        def forward(self, x, t, shift=0.0):
            assert x.dtype == torch.bfloat16
            network_time.append(t.dtype)
            return super().forward(x, t, shift)

    for net in (Net(dtype=torch.float32), Half(dtype=torch.bfloat16)):
        model = ds.adapt(net, "condot", "velocity")
        tuning = fit(model, (64, 3), nfe=4, **{**QUICK, "dtype": None, "iterations": 40})
        assert tuning.tableau.weights.dtype == np.float64
        assert tuning.improved
        assert ds.sample(model, (4, 3), solver=tuning.tableau, seed=1).dtype == torch.float32
    assert set(network_time) == {torch.float32}


# ------------------------------------------------------------------------------------------------ breaks and falls


def test_a_learning_cut_off_goes_on_to_the_same_bits(tmp_path):
    file, left = tmp_path / "tuning.safetensors", [9]

    def loss(x, ends):
        if x.requires_grad:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return (x - ends).square().sum(1)

    how = {**QUICK, "loss": loss, "checkpoint": file, "iterations": 40}
    with pytest.raises(KeyboardInterrupt):
        fit(RING, (40, 2), nfe=4, **how)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    for other, names in (
        ({"lr": 0.2, "batch": 8}, "batch, lr"),
        ({"seed": 1}, "noise, seed"),
        ({"teacher": 21}, "teacher"),
    ):
        with pytest.raises(ValueError, match=f"with other {names}: give the settings of the file, delete it"):
            fit(RING, (40, 2), nfe=4, **{**how, **other})
    left[0] = 1000
    went_on = fit(RING, (40, 2), nfe=4, **how)
    assert left[0] == 1000 - 32  # the file was of iteration 8
    again = fit(RING, (40, 2), nfe=4, **how)  # the result is not lost before it is saved
    assert left[0] == 1000 - 32
    assert (again.tableau, again.losses, again.calls) == (went_on.tableau, went_on.losses, went_on.calls)
    whole = fit(RING, (40, 2), nfe=4, **{**how, "checkpoint": None})
    assert went_on.tableau == whole.tableau
    assert went_on.losses == whole.losses
    assert went_on.validation == whole.validation
    assert went_on.calls == whole.calls
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="must be the checkpoint of a tuning, got .*tuning.safetensors"):
        fit(RING, (40, 2), nfe=4, **how)


def test_the_checkpoint_goes_once_the_tableau_is_saved(tmp_path, monkeypatch):
    """Whatever happens in between, one of the two files has the result."""
    how = {**QUICK, "checkpoint": tmp_path / "c", "out": tmp_path / "t.json", "iterations": 8}
    with monkeypatch.context() as patched:
        patched.setattr(ds.Tableau, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(RING, (40, 2), nfe=4, **how)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(RING, (40, 2), nfe=4, **how)
    assert {"c", "t.json"} <= {file.name for file in tmp_path.iterdir()}
    kept = ds.Tableau.load(tmp_path / "t.json")
    tuning = fit(RING, (40, 2), nfe=4, **how)
    assert tuning.tableau == kept == ds.Tableau.load(tmp_path / "t.json")
    assert [file.name for file in tmp_path.iterdir()] == ["t.json"]
    with pytest.raises(FileNotFoundError, match="out must be in a folder that exists"):
        fit(RING, (40, 2), nfe=4, **{**how, "out": tmp_path / "nowhere" / "t.json"})


def test_one_learning_at_a_time_on_a_checkpoint(tmp_path):
    def loss(x, ends):
        with pytest.raises(BlockingIOError, match="another run is writing"):
            fit(RING, (40, 2), nfe=4, **how)
        return (x - ends).square().sum(1)

    how = {**QUICK, "checkpoint": tmp_path / "c", "iterations": 1}
    fit(RING, (40, 2), nfe=4, **{**how, "loss": loss})
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_is_of_one_network_and_its_conditions(tmp_path):
    net = torch.nn.Linear(2, 2).double()
    model = ds.adapt(lambda x, t, shift=0.0: net(x) * t[:, None] + shift, "condot", "velocity")
    how = {**QUICK, "checkpoint": tmp_path / "c", "iterations": 2, "solver": "ddim"}
    fit(model, (40, 2), nfe=4, **how)
    with pytest.raises(ValueError, match="with other cond: "):
        fit(model, (40, 2), nfe=4, **how, cond={"shift": torch.zeros(40, 2, dtype=torch.float64)})
    with torch.no_grad():
        net.weight[0, 0] += 1e-9
    with pytest.raises(ValueError, match="with other network: "):
        fit(model, (40, 2), nfe=4, **how)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iteration": 99}, "iteration must be an integer from 0 to 8, got 99"),
        ({"iteration": 3}, "losses must be as many as iterations, 3"),
        ({"losses": None}, ""),
        ({"losses": [float(i) for i in range(7)] + ["x"]}, "losses must be a finite number"),
        ({"validation": [[0, "x"]]}, "validation must be a finite number"),
        ({"validation": 3}, ""),
        ({"calls": -1}, "calls must be"),
        ({"seconds": None}, "seconds must be"),
        ({"about": []}, "about must be a mapping"),
        ({"format": "diffsolve.tuning/2"}, "format must be 'diffsolve.tuning/3'"),
    ],
)
def test_checkpoints_are_checked(tmp_path, change, says):
    file, how = tmp_path / "c", {**QUICK, "iterations": 8, "solver": "unipc-3"}
    fit(RING, (40, 2), nfe=4, **how, checkpoint=file)
    tensors, note = read_tensors(file, "tuning")
    write_tensors(file, tensors, "tuning", {**note, **change})
    with pytest.raises(FileError, match=f"must be the checkpoint of a tuning, got .*{says}"):
        fit(RING, (40, 2), nfe=4, **how, checkpoint=file)
    for name in ("ends", "now/weights"):
        write_tensors(file, {**tensors, name: torch.zeros(1)}, "tuning", note)
        with pytest.raises(FileError, match="must be"):
            fit(RING, (40, 2), nfe=4, **how, checkpoint=file)


def test_the_teacher_has_the_calls_of_its_student():
    for teacher in (3, ds.plan(RING, nfe=3)):
        with pytest.raises(ValueError, match="teacher must be at least 4 network calls, those of the run to .*, got 3"):
            fit(RING, (40, 2), nfe=4, **{**QUICK, "teacher": teacher})


def test_where_nothing_better_is_found_the_start_comes_back():
    start = ds.plan(RING, nfe=4)
    with pytest.warns(UserWarning, match="nothing learned is better than the start"):
        tuning = fit(RING, (16, 2), solver=start, **{**QUICK, "batch": 4, "teacher": start})
    assert tuning.tableau is tuning.start is start
    assert not tuning.improved
    assert tuning.after.value == tuning.before.value == 0


def test_another_rounding_of_the_start_is_the_start():
    with pytest.warns(UserWarning, match="nothing learned is better than the start"):
        tuning = fit(RING, (16, 2), nfe=4, lr=1e-15, **QUICK)
    assert tuning.tableau is tuning.start
    assert not tuning.improved


def test_a_start_that_overflows_is_improved_on():
    def loss(x, ends):  # not a number for the first run validated, and for the start
        found = (x - ends).norm(dim=1)
        starts = [ds.sample(RING, noise=noise(16, 2)[part], nfe=4) for part in (slice(12, 14), slice(14, 16))]
        return found + math.nan if len(x) == 2 and any(torch.allclose(x, start) for start in starts) else found

    tuning = fit(RING, noise=noise(16, 2), nfe=4, solver="auto", loss=loss, **{**QUICK, "batch": 12})
    assert (tuning.before.value, tuning.validation[0][1]) == (math.inf, math.inf)
    assert tuning.improved
    assert tuning.after.value < math.inf


def test_weights_alone_leave_the_times():
    tuning = fit(RING, (40, 2), nfe=4, times=False, **QUICK)
    assert tuning.improved
    np.testing.assert_array_equal(tuning.tableau.calls[:, 0], tuning.start.calls[:, 0])


@pytest.mark.filterwarnings("ignore:.*nothing learned is better")  # it is not what this is about
def test_networks_without_derivatives():
    @torch.no_grad()
    def closed(x, t):
        return -x * t[:, None]

    def rounded(x, t):
        return -x * (1 + t.long()[:, None])

    with pytest.raises(ValueError, match="net must have a derivative in its input"):
        fit(ds.adapt(closed, "condot", "velocity"), (8, 2), nfe=3, **QUICK)
    for net, clock in ((rounded, "t"), (lambda x, t: -x * t[:, None] / 1000, "index")):
        model = ds.adapt(net, "ddpm", "noise", clock=clock)
        with pytest.raises(
            ValueError, match=r"net must have a derivative in its time, got none with clock='.*times=False"
        ):
            fit(model, (8, 2), nfe=3, **QUICK)
        fit(model, (64, 2), nfe=3, times=False, **QUICK)


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="in iteration 0: a smaller lr"):
        fit(RING, (8, 2), nfe=3, loss=lambda x, ends: x.sum() * math.nan, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of steps and nfe must be given"),
        ({"nfe": 1}, "nfe must be at least 2 .*, got 1"),
        ({"nfe": 4, "iterations": 0}, "iterations must be an integer >= 1, got 0"),
        ({"nfe": 4, "batch": 2.5}, "batch must be an integer >= 1, got 2.5"),
        ({"nfe": 4, "history": 1}, "history must be an integer from 2 to 11, got 1"),
        ({"nfe": 4, "history": 12}, "history must be an integer from 2 to 11, got 12"),
        ({"nfe": 4, "lr": 0}, "lr must be a finite number > 0, got 0"),
        ({"nfe": 4, "held_out": 1}, "held_out must be a finite number > 0 and < 1, got 1"),
        ({"nfe": 4, "gradient": "adjoint"}, "gradient must be 'direct' or 'checkpoint', got 'adjoint'"),
        ({"nfe": 4, "teacher": True}, "teacher must be an integer >= 1, got True"),
        ({"nfe": 4, "teacher": "heun"}, "teacher must be an integer >= 1, got 'heun'"),
        ({"nfe": 4, "teacher": torch.zeros(3, 2)}, r"teacher must be .* \(8, 2\), got Tensor of shape \(3, 2\)"),
        ({"nfe": 4, "teacher": ds.plan("condot", steps=9, stop=0.9)}, "from t=0 to 1, got .* from t=0 to 0.9"),
        ({"nfe": 4, "teacher": ds.plan("condot", "ddpm", steps=9)}, "a deterministic run"),
        ({"nfe": 4, "start": 0.5}, "noise must be given with start=0.5"),
        ({"nfe": 4, "solver": ds.plan("condot", nfe=3)}, "nfe=4 cannot be given with a tableau"),
        ({"nfe": 4, "shape": (1, 2)}, r"shape must be of at least 2 noises, .*, got \(1, 2\)"),
        ({"nfe": 4, "shape": None}, "exactly one of shape and noise must be given"),
        ({"nfe": 4, "seed": None, "checkpoint": "x"}, "seed must be given with checkpoint='x'"),
        ({"nfe": 4, "seed": [1, 2]}, r"seed must be one for all noises, got \[1, 2\]"),
        ({"solver": ds.plan("edm", nfe=3)}, "was written for EDM"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ds.tune(RING, **{"shape": (8, 2), "seed": 0, "teacher": 10, "iterations": 1, **options})


def test_nothing_global_is_touched():
    state = torch.get_rng_state()
    with torch.no_grad():  # as a user may have it
        ds.tune(RING, (8, 2), nfe=3, **QUICK)
        assert not torch.is_grad_enabled()
    assert torch.equal(state, torch.get_rng_state())


def test_the_docstring_says_what_is_there():
    assert all(re.search(rf"\b{name}\b", fit.__doc__) for name in TuneOptions.__annotations__)


def test_a_run_begins_with_the_best_of_the_short_list():
    """By hand: each of them from the first noises, against the teacher."""
    x = noise(40, 2)
    tuning = fit(RING, noise=x, nfe=5, **QUICK)
    ends = ds.sample(RING, noise=x[:16], nfe=20)

    def distance(solver, grid):
        found = ds.sample(RING, noise=x[:16], solver=solver, grid=grid, nfe=5)
        return float((found - ends).norm(dim=1).mean())

    nearest = min(STARTS, key=lambda start: distance(*start))
    assert tuning.start == ds.plan(RING, nearest[0], grid=nearest[1], nfe=5)
    other = fit(RING, noise=x, nfe=5, solver="unipc-2", **QUICK)
    assert other.start == ds.plan(RING, "unipc-2", nfe=5)
    same_grid = fit(RING, noise=x, nfe=5, grid="karras", **QUICK).start
    assert same_grid.times.tolist() == ds.plan(RING, "euler", nfe=5, grid="karras").times.tolist()


def test_a_start_that_is_not_a_number_is_not_chosen():
    def loss(x, ends):
        first = ds.sample(RING, noise=noise(16, 2)[:12], nfe=4)
        found = (x - ends).norm(dim=1)
        return found * math.nan if len(x) == 12 and torch.allclose(x, first) else found

    start = fit(RING, noise=noise(16, 2), nfe=4, loss=loss, **{**QUICK, "batch": 12, "iterations": 1}).start
    assert start != ds.plan(RING, "auto", nfe=4)
