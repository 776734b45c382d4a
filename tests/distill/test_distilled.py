"""The digits' student: it begins as its teacher, is written, read and sampled, from the command line too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import distill
from diffsolve.cli.app import app
from diffsolve.common.files import read_tensors, write_tensors
from diffsolve.distill import recipes
from diffsolve.reference import students


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_student_begins_as_its_teacher(name):
    teacher = ds.load(name)
    model = students.student(name, teacher)
    x, label = ds.Key(0).normal((2, *recipes.SHAPES[name])), torch.tensor([3, -1])
    model.net.eval()
    assert torch.allclose(model(x, 0.3, 0.9, label=label), teacher(x, 0.3, label=label), atol=1e-6)


def test_a_student_that_is_told_the_time_smoothly_begins_near_its_teacher():
    teacher = ds.load("digits")
    model = students.student("digits", teacher, highest=6.0)
    assert model.net.highest == model.net.highest_until == 6
    x, label = ds.Key(0).normal((20, 1, 8, 8)), torch.arange(20) % 10
    model.net.eval()
    for t in (0.05, 0.5, 0.95):
        near, own = model(x, t, 1.0, label=label), teacher(x, t, label=label)
        assert 0 < (near - own).square().mean().sqrt() < 0.1 * own.square().mean().sqrt()
    again = students.student("digits", teacher, highest=6.0)
    assert all(map(torch.equal, model.net.state_dict().values(), again.net.state_dict().values()))


@pytest.mark.parametrize(
    ("note", "frequencies"), [({}, (100, 100)), ({"until": 6.0}, (100, 6)), ({"highest": 6.0}, (6, 6))]
)
def test_a_file_says_at_which_frequencies_its_student_is_told_its_times(note, frequencies, tmp_path):
    weights = students.student("digits").net.state_dict()
    write_tensors(tmp_path / "student.safetensors", weights, students.KEY, {"model": "digits", **note})
    net = students.load("digits", tmp_path / "student.safetensors").net
    assert (net.highest, net.highest_until) == frequencies


def test_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 8)
    file, picture = tmp_path / "student.safetensors", tmp_path / "student.npy"
    run = CliRunner().invoke(app, ["distill", "trajectory", "--out", str(file), "--steps", "2", "--batch", "4"])
    assert run.exit_code == 0, run.output
    assert file.stat().st_size < 2e6
    assert distill.about(file)["method"] == "trajectory"
    run = CliRunner().invoke(app, ["sample", "--model", str(file), "--nfe", "1", "--num", "2", "--out", str(picture)])
    assert run.exit_code == 0, run.output
    assert "1 network calls" in run.output
    assert "FlowMap" in run.output
    model = distill.load_student(file)
    once = ds.sample(model, (2, 1, 8, 8), solver="flow-map", nfe=1, seed=0)
    assert torch.equal(once, ds.sample(model, (2, 1, 8, 8), nfe=1, seed=0))  # "auto" knows a flow map
    assert torch.equal(once, ds.sample(ds.load(f"digits-student(weights='{file}')"), (2, 1, 8, 8), nfe=1, seed=0))
    refused = CliRunner().invoke(app, ["distill", "magic", "--out", str(file)])
    assert refused.exit_code == 2
    assert "method must be 'trajectory', 'lagrangian'" in " ".join(refused.output.split())


def test_a_student_told_the_scale_from_the_command_line(tmp_path):
    file, picture = tmp_path / "guided.safetensors", tmp_path / "x.npy"
    run = CliRunner().invoke(app, ["distill", "guided", "--out", str(file), "--steps", "3", "--batch", "4"])
    assert run.exit_code == 0, run.output
    rest = ["--nfe", "4", "--num", "2", "--out", str(picture), "--guidance"]
    run = CliRunner().invoke(app, ["sample", "--model", str(file), *rest, "3"])
    assert run.exit_code == 0, run.output
    cond = {"label": torch.arange(2), "scale": 3.0}
    model = distill.load_student(file)
    assert model.net.net.times == 1
    assert np.array_equal(np.load(picture), ds.sample(model, (2, 1, 8, 8), nfe=4, seed=0, cond=cond))
    run = CliRunner().invoke(app, ["sample", "--model", str(file), *rest, "7"])
    assert "scale must be a finite number <= 4, got 7.0" in " ".join(run.output.split())


def test_guidance_from_the_command_line(tmp_path):
    picture = tmp_path / "x.npy"
    rest = ["--nfe", "4", "--num", "2", "--out", str(picture), "--guidance", "3"]
    run = CliRunner().invoke(app, ["sample", *rest])
    assert run.exit_code == 0, run.output
    wanted = ds.sample(ds.load("digits"), (2, 1, 8, 8), nfe=4, seed=0, cond={"label": torch.arange(2)}, guidance=3.0)
    assert np.array_equal(np.load(picture), wanted)
    run = CliRunner().invoke(app, ["sample", "--model", "mixture-2d", *rest])
    assert "guidance must be left out for a model without classes" in " ".join(run.output.split())


def test_other_files_are_no_students(tmp_path):
    write_tensors(
        tmp_path / "other.safetensors", {"a": torch.zeros(1)}, "diffsolve", {"method": "trajectory", "model": "digits"}
    )
    with pytest.raises(ValueError, match="a student of `diffsolve distill`.*it has no 'sampler'"):
        distill.about(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="one with the tensors of this network"):
        students.load("digits", tmp_path / "other.safetensors")


@pytest.mark.parametrize("method", ["progressive", "distribution"])
def test_stages_killed_and_resumed_have_the_same_bits(method, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 8)
    whole, parted = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    options = {"steps": 8, "batch": 2}
    report = distill.distill_reference(method, whole, **options)
    assert report["steps"] == 8
    report = distill.distill_reference(method, parted, **options, minutes=1e-7)
    assert not report["finished"]
    assert not parted.exists()
    again = distill.distill_reference(method, parted, **options)
    assert again["finished"]
    assert again["out"] == str(parted)
    a, b = (read_tensors(file, students.KEY) for file in (whole, parted))
    assert a[1] == b[1]
    assert all(torch.equal(value, b[0][name]) for name, value in a[0].items())
    assert {file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")} == {whole.name, parted.name}


def test_a_finished_stage_is_not_trained_again_but_with_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 8)
    out, fitted = tmp_path / "student.safetensors", []

    def fit(loss, student, learns, file, **settings):
        fitted.append((loss, file.name, settings["steps"]))
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return distill.fit(loss, student, learns, file, **settings)

    monkeypatch.setattr(recipes, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        distill.distill_reference("progressive", out, steps=9, batch=2)
    distill.distill_reference("progressive", out, steps=9, batch=2)
    assert [name for _, name, _ in fitted] == [f"{out.name}.stage{i}" for i in (0, 1, 2, 2, 3)]
    stages = [fitted[i][0] for i in (0, 1, 2, 4)]
    assert [loss.stretches.least for loss in stages] == [8, 4, 2, 1]
    assert [loss.stretches.steps for loss in stages] == [32, 16, 8, 4]
    assert [loss.solver for loss in stages] == ["heun", *["flow-map"] * 3]
    assert [loss.teacher.jumps for loss in stages] == [None, *["straight"] * 3]
    assert all(loss.weight == "none" for loss in stages)
    assert not any(p.requires_grad for p in stages[1].teacher.net.parameters())
    assert stages[1].teacher.net is not stages[2].teacher.net
    out.with_name(f"{out.name}.stage0").write_bytes(out.read_bytes())  # left there by another training
    fitted.clear()
    monkeypatch.setattr(
        recipes, "fit", lambda *args, **settings: fitted.append(args[3].name) or distill.fit(*args, **settings)
    )
    distill.distill_reference("progressive", out, steps=4, batch=4)
    assert len(fitted) == 4
    weights, note = read_tensors(out, students.KEY, accepted=students.ACCEPTED)
    for method, trained in (("reflow", 4), ("progressive", 3)):
        write_tensors(f"{out}.stage0", weights, students.KEY, {**note, "method": method, "steps": 1})
        fitted.clear()
        distill.distill_reference("progressive", out, steps=4, batch=4)
        assert len(fitted) == trained


def test_settings_of_recipes():
    teacher = ds.load("digits")
    matching = distill.RECIPES["distribution"].loss(teacher)
    assert (matching.steps, matching.turns, matching.regression) == (2, 3, 1.0)
    assert distill.RECIPES["distribution"].data == distill.RECIPES["reflow"].data == "pairs"
    assert distill.RECIPES["reflow"].loss(teacher).options == {}
    scm = distill.RECIPES["scm"].loss(teacher)
    assert scm.stretches == distill.Between("uniform-t", data=1.0, noise=0.2)
    assert scm.identity == distill.Eulerian("straight", 500)
    assert distill.RECIPES["sct"].loss(teacher) == replace(scm, source="data", teacher=None)
    law = distill.RECIPES["ect"].loss(teacher).stretches
    t, m, s = law.draw(torch.linspace(0.01, 0.99, 50)[:, None].expand(50, 4).numpy(), teacher.path, 1800).T
    assert np.allclose(t, np.linspace(0.01, 0.99, 50))
    assert ((m > t) & (m < 0.5 + t / 2)).all()  # by then a neighbour
    assert (s == 1).all()


def test_pairs_are_the_two_ends_of_runs_from_noise_of_their_own(monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 3)
    teacher = ds.load("digits")
    x0, cond = recipes.data(distill.RECIPES["reflow"], "digits", teacher)
    assert torch.equal(cond["noise"], ds.Key(recipes.SEED).normal((3, 1, 8, 8)))
    assert recipes.SEED != 0  # with which samples are drawn when nothing is said
    ends = ds.sample(teacher, noise=cond["noise"], cond={"label": cond["label"]}, nfe=32)
    assert (x0 - ends).abs().mean() < 0.02


@pytest.mark.product({"method": list(distill.RECIPES)}, some={"method": ["lagrangian", "reflow", "scm"]})
def test_every_recipe_trains(method, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 8)
    report = distill.distill_reference(method, tmp_path / "student.safetensors", steps=1, batch=4)
    assert report["finished"]
    model = distill.load_student(tmp_path / "student.safetensors")
    net = model.net.net if method == "guided" else model.net
    assert model.jumps == (None if method == "guided" else "straight")
    highest = distill.RECIPES[method].highest
    assert net.highest == net.highest_until == highest
    assert highest == (6 if method in ("lagrangian", "ayf", "meanflow", "scm", "sct") else 100)
