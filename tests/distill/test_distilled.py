"""The digits' student: it begins as its teacher, is written, read and sampled, from the command line too."""

import pytest
import torch
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve import distill
from diffsolve.cli.app import app
from diffsolve.distill import recipes
from diffsolve.reference import students


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_a_student_begins_as_its_teacher(name):
    teacher = ds.load(name)
    model = students.student(name, teacher)
    x, label = ds.Key(0).normal((2, *recipes.SHAPES[name])), torch.tensor([3, -1])
    model.net.eval()
    assert torch.allclose(model(x, 0.3, 0.9, label=label), teacher(x, 0.3, label=label), atol=1e-6)


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


def test_other_files_are_no_students(tmp_path):
    from diffsolve.common.files import write_tensors

    write_tensors(
        tmp_path / "other.safetensors", {"a": torch.zeros(1)}, "diffsolve", {"method": "trajectory", "model": "digits"}
    )
    with pytest.raises(ValueError, match="a student of `diffsolve distill`.*it has no 'sampler'"):
        distill.about(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="one with the tensors of this network"):
        students.load("digits", tmp_path / "other.safetensors")


@pytest.mark.product({"method": list(distill.RECIPES)}, some={"method": ["lagrangian", "reflow", "scm"]})
def test_every_recipe_trains(method, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "RUNS", 8)
    report = distill.distill_reference(method, tmp_path / "student.safetensors", steps=1, batch=4)
    assert report["finished"]
    model = distill.load_student(tmp_path / "student.safetensors")
    assert model.jumps == "straight"
    assert model.net.highest_until == distill.RECIPES[method].until == (6 if method in ("lagrangian", "scm") else 100)
