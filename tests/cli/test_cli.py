"""The command line, run in this process."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import diffsolve as ds
from diffsolve.cli import app as cli
from diffsolve.cli import options, pictures, runs
from diffsolve.common.registry import Registry
from diffsolve.execute.plan import DEFAULT_SOLVER
from diffsolve.reference import digits, names
from diffsolve.training import digits as training
from diffsolve.tuning import fit

needs_data = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test runs in an empty directory of its own, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def run(*arguments: object, code: int | None = 0) -> str:
    """The output of a command that ends with that exit code; None for any failure."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code if code is not None else result.exit_code != 0, result.output
    assert code != 0 or result.exception is None
    return result.output


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.array(image)


def test_help_lists_the_commands():
    text = run("--help")
    for command in ("sample", "tune", "plan", "solvers", "grids", "paths", "train"):
        assert f"  {command} " in text
    assert "digits" in run("train", "--help")


def test_every_default_is_the_librarys():
    given = inspect.signature(runs.train_digits).parameters
    for name, parameter in inspect.signature(training.train).parameters.items():
        if name not in ("out", "progress", "build"):
            assert given[name].default == parameter.default, name
    assert set(given) == set(inspect.signature(training.train).parameters) - {"build"}
    given = inspect.signature(runs.tune).parameters
    for name in ("teacher", "iterations", "batch"):
        assert given[name].default == inspect.signature(fit).parameters[name].default, name
    assert given["solver"].default is None  # a pilot
    for command in (runs.sample, runs.plan):
        assert inspect.signature(command).parameters["solver"].default == DEFAULT_SOLVER
    assert list(options.SHAPES) == names()


@pytest.mark.parametrize("missing", ["typer", "PIL"])
def test_a_missing_extra_is_one_line(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "diffsolve.cli.app")
    with pytest.raises(SystemExit, match=rf"{missing} is not installed.*diffsolve\[cli\]") as stopped:
        importlib.import_module("diffsolve.cli.app")
    assert "\n" not in stopped.value.code  # a message as code: printed, and exit code 1


# ------------------------------------------------------------------------------------------------- sample


def test_digits_by_default():
    text = run("sample", "--nfe", 2)
    for shown in ("digits", "auto", "2 network calls", "seed 0", "seconds", "samples.png"):
        assert shown in text
    assert f"method   {ds.plan(ds.load('digits'), nfe=2).solver}\n" in text
    assert pixels("samples.png").shape == (548, 548)
    assert os.listdir() == ["samples.png"]


def test_twenty_calls_by_default():
    assert "20 network calls" in run("sample", "--model", "mixture-2d", "--num", 1)


@pytest.mark.parametrize(
    ("count", "size"), [(1, (520, 520)), (3, (524, 524)), (6, (348, 520)), (7, (520, 520)), (4900, (844, 844))]
)
def test_pictures_are_tiled_from_the_top_left(count, size):
    x = np.linspace(-1, 1, count).reshape(-1, 1, 1, 1) * np.ones((1, 8, 8))
    picture = np.array(pictures.grid_image(x))
    assert picture.shape == size
    side = (size[1] - pictures.GAP) // int(np.ceil(np.sqrt(count)))
    corners = picture[pictures.GAP :: side, pictures.GAP :: side].ravel()[:count]
    np.testing.assert_array_equal(corners, np.rint((x[:, 0, 0, 0] + 1) * 127.5))


def test_pixels_beyond_the_range_are_clipped():
    picture = np.array(pictures.grid_image(np.array([[[[-3.0, 3.0], [0.0, 1.0]]]])))
    assert np.unique(picture).tolist() == [0, 128, 255]
    assert picture[4, 4] == 0


def test_points_in_the_plane():
    text = run("sample", "--model", "mixture-2d(path='edm')", "--solver", "heun", "--steps", 6, "--num", 50)
    assert "mixture-2d(path='edm')" in text
    assert "heun, 6 steps, 11 network calls" in text
    assert pixels("samples.png").shape == (512, 512, 3)


def test_points_are_where_they_should_be():
    def lit(*points):
        image = np.array(pictures.scatter_image(np.array(points, dtype=float)))
        rows, columns = np.nonzero((image == np.array([0, 0, 128])).all(-1))
        return rows.mean(), columns.mean()

    np.testing.assert_allclose(lit([0, 0]), 256, atol=1)
    np.testing.assert_allclose(lit([1, 0]), (256, 492), atol=1)  # on the frame, in the middle of the right side
    np.testing.assert_allclose(lit([0, 0.5], [0, 0.5]), (256 - 118, 256), atol=1)


def test_calls_at_once():
    sample = ("sample", "--model", "mixture-2d", "--num", 5, "--steps", 40, "--solver", "ddim")
    options = {"solver": "ddim", "steps": 40, "seed": 0}
    for given, parallel in ((("--tol", 0.3), ds.Picard(window=30, tol=0.3)), ((), ds.Picard(window=30))):
        text = run(*sample, "--out", "x.npy", "--parallel", 30, *given)
        made = ds.solve(ds.load("mixture-2d"), (5, 2), parallel=parallel, **options)
        assert np.array_equal(np.load("x.npy"), made.x.numpy())
        assert f"parallel {made.parallel.rounds} rounds in place of 40 calls\n" in text
    assert "parallel " not in run(*sample)
    assert "tol must be given together with parallel" in run(*sample, "--tol", 0.2, code=2)
    assert "--parallel" in run(*sample, "--parallel", 0, code=2)


def test_arrays_are_the_librarys_samples():
    run("sample", "--out", "x.npy", "--num", 3, "--nfe", 4, "--seed", 5, "--grid", "shifted(shift=2.0)", "--class", 7)
    x = ds.sample(
        ds.load("digits"), (3, 1, 8, 8), nfe=4, seed=5, grid="shifted(shift=2.0)", cond={"label": torch.full((3,), 7)}
    )
    np.testing.assert_array_equal(np.load("x.npy"), x.numpy())


@pytest.mark.parametrize(
    ("which", "expected"), [("all", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]), ("none", [-1] * 11), ("4", [4] * 11)]
)
def test_classes(which, expected):
    run("sample", "--out", "x.npy", "--num", 11, "--nfe", 2, "--class", which)
    x = ds.sample(ds.load("digits"), (11, 1, 8, 8), nfe=2, seed=0, cond={"label": torch.tensor(expected)})
    np.testing.assert_array_equal(np.load("x.npy"), x.numpy())


@pytest.mark.parametrize("model", ["digits", "mixture-2d"])
def test_the_same_seed_gives_the_same_bytes(model):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(
            "sample",
            "--model",
            model,
            "--num",
            4,
            "--nfe",
            2,
            "--solver",
            "ddim(eta=1.0)",
            "--seed",
            seed,
            "--out",
            f"{name}.png",
        )
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_progress():
    arguments = ("sample", "--model", "mixture-2d", "--nfe", 3)
    assert "3/3" in run(*arguments, "--progress")
    assert "3/3" not in run(*arguments, "--no-progress")
    assert "3/3" not in run(*arguments)  # not a terminal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "cats"), "model must be one of 'digits', 'digits-student', 'fashion', "),
        (("--model", "mixture-2d(path='nowhere')"), "path must be one of 'condot', "),
        (("--solver", "unipc3"), "did you mean 'unipc-3' or"),
        (("--solver", "ddim(eta=2)"), "eta must be a finite number >= 0 and <= 1, got 2"),
        (("--solver", "ddim(eta="), "solver must be written name or name(option=value, ...), got 'ddim(eta='"),
        (("--grid", "karass"), "did you mean 'karras'?"),
        (("--nfe", 5, "--steps", 5), "exactly one of steps and nfe must be given"),
        (("--nfe", 0), "nfe must be an integer >= 1, got 0"),
        (("--nfe", "many"), "--nfe"),
        (("--num", 0), "--num"),
        (("--seed", -1), "seed must be an integer, or one per row, in [0, 2**64), got -1"),
        (("--class", 10), "class must be 'all', 'none', '0', '1'"),
        (("--model", "mixture-2d", "--class", 3), "class must be all for a model without classes"),
        (("--out", "x.jpg"), "out must be a file ending in .png or .npy"),
        (("--out", "samples"), "out must be a file ending in .png or .npy"),
        (("--out", "nowhere/x.png"), "out must be in a folder that exists, got 'nowhere/x.png'"),
        (("--frob",), "--frob"),
    ],
)
def test_bad_values_are_one_line(arguments, message):
    last = run("sample", *arguments, code=2).splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert os.listdir() == []


def test_an_existing_directory_is_not_a_file():
    os.mkdir("x.png")
    assert "got the folder 'x.png'" in run("sample", "--out", "x.png", code=2)


@pytest.mark.parametrize("failing", ["replace", "write"])
def test_failed_writes_leave_what_was_there(monkeypatch, failing):
    Path("samples.png").write_bytes(b"before")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, {"replace": "replace", "write": "fsync"}[failing], full)
    assert "no space left" in run("sample", "--model", "mixture-2d", "--nfe", 2, code=2)
    assert os.listdir() == ["samples.png"]
    assert Path("samples.png").read_bytes() == b"before"


def test_samples_that_are_not_finite_are_a_failure(monkeypatch):
    broken = ds.adapt(lambda x, t, label: x * torch.nan, "condot", "velocity")
    monkeypatch.setattr(ds, "load", lambda name: broken)
    text = run("sample", "--num", 2, code=1)
    assert text.startswith("Error: net returned 128 non-finite values")
    assert len(text.splitlines()) == 1
    assert os.listdir() == []


@needs_data
def test_weights_of_ones_own():
    run("train", "digits", "--steps", 2, "--batch", 4, "--out", "mine.safetensors")
    text = run("sample", "--model", "digits(weights='mine.safetensors')", "--num", 3, "--nfe", 2, "--out", "x.npy")
    assert "digits(weights='mine.safetensors')" in text
    model = ds.load("digits(weights='mine.safetensors')")
    x = ds.sample(model, (3, 1, 8, 8), nfe=2, seed=0, cond={"label": torch.tensor([0, 1, 2])})
    np.testing.assert_array_equal(np.load("x.npy"), x.numpy())
    missing = run("sample", "--model", "digits(weights='none.safetensors')", code=2)
    assert "No such file or directory: 'none.safetensors'" in " ".join(missing.split())
    Path("none.safetensors").write_text("{}")
    refused = " ".join(run("sample", "--model", "digits(weights='none.safetensors')", code=2).split())
    assert "file must be a safetensors file, got 'none.safetensors'" in refused


def test_the_package_runs_as_a_module():
    made = subprocess.run([sys.executable, "-m", "diffsolve", "--version"], capture_output=True, text=True, check=True)
    assert made.stdout == run("--version")
    wrong = subprocess.run([sys.executable, "-m", "diffsolve", "smple"], capture_output=True, text=True, check=False)
    assert "Usage: diffsolve" in wrong.stderr


def test_the_version():
    assert run("--version") == f"{ds.__version__}\n"


# -------------------------------------------------------------------------------------------------- tune


def test_a_tuning_that_cannot_save_keeps_its_checkpoint(monkeypatch):
    how = ("--model", "mixture-2d", "--num", 20, "--teacher", 9, "--iterations", 3, "--batch", 8, "--nfe", 3)
    with monkeypatch.context() as patched:
        patched.setattr(ds.Tableau, "save", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        assert "no space left" in run("tune", *how, code=2)
    assert os.listdir() == ["tuned.json.checkpoint"]
    assert "with other teacher: give the" in " ".join(run("tune", *how, "--teacher", 10, code=2).split())
    run("tune", *how, "--teacher", 10, "--force")
    assert os.listdir() == ["tuned.json"]
    few = " ".join(run("tune", *how, "--teacher", 2, code=2).split())
    assert "teacher must be at least 3 network calls, those of the run to learn, got 2" in few


# ----------------------------------------------------------------------------------------------- logprob


@needs_data
@pytest.mark.slow
def test_a_wrong_option_leaves_no_file_that_refuses_the_right_one():
    arguments = ("logprob", "--num", 2, "--tol", 0.1, "--trace", "hutchinson(probes=1)")
    for wrong in (("--trace", "hutch"), ("--tol", "nan"), ("--stop", 7), ("--dequantisation", "none"), ("--data", "x"),
                  ("--model", "mixture-2d"), ("--seed", -1), ("--out", "x.txt")):  # fmt: skip
        run(*arguments, *wrong, code=2 if wrong[0] != "--model" else None)
        assert os.listdir() == [], wrong
    assert "2/2" in run(*arguments, "--progress")
    assert os.listdir() == ["logprob.jsonl"]
    before = Path("logprob.jsonl").read_bytes()
    refused = " ".join(run(*arguments, "--tol", 0.2, code=2).split())
    assert "tol=0.1 there and 0.2 here. Give the settings of the file, name another file, or start anew with" in refused
    assert Path("logprob.jsonl").read_bytes() == before
    run(*arguments, "--tol", 0.2, "--force")
    assert len(Path("logprob.jsonl").read_text().splitlines()) == 3


@needs_data
@pytest.mark.slow
def test_what_is_missing_is_found_by_its_index():
    """Lines out of order, or lost in the middle, are neither counted nor measured twice."""
    arguments = ("logprob", "--tol", 0.1, "--trace", "hutchinson(probes=1)", "--batch", 2, "--num")
    whole = run(*arguments, 5)
    lines = Path("logprob.jsonl").read_text().splitlines()
    Path("logprob.jsonl").write_text("\n".join([lines[0], lines[5], lines[2]]) + "\n")
    assert run(*arguments, 5) == whole
    again = [json.loads(line) for line in Path("logprob.jsonl").read_text().splitlines()[1:]]
    assert [entry["index"] for entry in again] == [4, 1, 0, 2, 3]
    Path("logprob.jsonl").write_text(lines[0] + "\n" + lines[1].replace('"index": 0', '"index": true') + "\n")
    assert "index must be an integer >= 0, got True" in " ".join(run(*arguments, 5, code=2).split())


def test_a_learned_run_is_saved_and_sampled_with():
    how = ("--model", "mixture-2d", "--num", 24, "--teacher", 8, "--iterations", 3, "--batch", 8, "--seed", 3)
    text = run("tune", *how, "--nfe", 3, "--out", "mine.json")
    assert "method   tuned(" in text
    assert os.listdir() == ["mine.json"]
    model, table = ds.load("mixture-2d"), ds.Tableau.load("mine.json")
    assert table == ds.tune(model, (24, 2), nfe=3, teacher=8, iterations=3, batch=8, seed=3)
    text = run("sample", "--model", "mixture-2d", "--solver", "mine.json", "--num", 5, "--seed", 1, "--out", "x.npy")
    assert "mine.json, 3 steps, 3 network calls" in text
    np.testing.assert_array_equal(np.load("x.npy"), ds.sample(model, (5, 2), solver=table, seed=1).numpy())
    assert "nfe=4 cannot be given" in run("sample", "--solver", "mine.json", "--nfe", 4, code=2)
    more = ("--iterations", 1, "--also", "told", "--history", 2, "--method", "least-squares")
    assert run("tune", *how[:-2], *more, "--nfe", "2-3", "--out", "two.json").count("method   tuned(") == 2
    assert "multiple of together=2" in run("tune", *how[:-2], "--together", 2, "--nfe", 4, code=2).replace("\n", " ")
    text = run("sample", "--model", "mixture-2d", "--solver", "two.json", "--num", 5, "--nfe", 2, "--out", "y.npy")
    assert "2 network calls" in text
    family = ds.Family.load("two.json")
    assert [family[nfe].history for nfe in (2, 3)] == [2, 2]
    np.testing.assert_array_equal(np.load("y.npy"), ds.sample(model, (5, 2), solver=family, nfe=2, seed=0).numpy())
    for wrong in ("two", "4-2", "2,x"):
        text = run("tune", "--nfe", wrong, code=2).replace("\n", " ")
        assert "nfe must be a number, a list or a rising range" in text
        assert f"got '{wrong}'" in text
    assert "was written for CondOT" in run(
        "sample", "--model", "mixture-2d(path='edm')", "--solver", "mine.json", code=2
    ).replace("\n", " ")


@pytest.mark.slow
def test_a_learned_run_of_digits():
    run("tune", "--num", 4, "--nfe", 2, "--teacher", 3, "--iterations", 1, "--batch", 2, "--class", 7)
    label = {"label": torch.full((4,), 7)}
    wanted = ds.tune(ds.load("digits"), (4, 1, 8, 8), nfe=2, teacher=3, iterations=1, batch=2, seed=0, cond=label)
    assert ds.Tableau.load("tuned.json") == wanted
    for arguments in (("--model", "mixture-2d", "--class", 3), ("--model", "digit"), ("--out", "x.png"), ("--nfe", 1)):
        assert "Traceback" not in run("tune", *arguments, code=2)
    assert os.listdir() == ["tuned.json"]


# ------------------------------------------------------------------------------------------ plan and tables


def test_plan():
    arguments = ("--path", "edm", "--solver", "unipc-3", "--nfe", 8, "--grid", "karras(rho=5.0)")
    expected = ds.plan("edm", "unipc-3", nfe=8, grid="karras(rho=5.0)")
    lines = run("plan", *arguments, "--out", "t.json").splitlines()
    assert ds.Tableau.load("t.json") == expected
    gains = expected.amplification()
    assert lines[:-1] == expected.table(("end/error", gains)).splitlines()
    assert lines[2] == str(expected).splitlines()[2] + f"{gains[0]:11.3g}"
    assert lines[-1].endswith(f"of a v network that errs by 0.03: {expected.expected_error():.3g}")
    noise = ds.plan("ddpm", nfe=5, predicts="noise")
    lines = run("plan", "--path", "ddpm", "--nfe", 5, "--predicts", "noise").splitlines()
    gains = noise.amplification(predicts="noise", path="ddpm")
    assert lines[:-1] == noise.table(("end/error", gains)).splitlines()
    assert "expected" not in run("plan", "--solver", "ddim(eta=1)", "--nfe", 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--path", "edn"), "did you mean 'edm'?"),
        (("--solver", "heun", "--nfe", 1, "--path", "condot"), "nfe must be at least 2"),
        (("--out", "t.txt"), "out must be a file ending in .json"),
        (("--out", "nowhere/t.json"), "out must be in a folder that exists"),
        (("--nfe", 100_000), "nfe must be at most 2000 here, where every call is printed"),
        (("--steps", 2001), "steps must be at most 2000 here"),
        (("--predicts", "eps"), "did you mean 'noise'?"),
    ],
)
def test_bad_plans_are_one_line(arguments, message):
    assert message in run("plan", *arguments, code=2).splitlines()[-1]
    assert os.listdir() == []


@pytest.mark.parametrize("kind", ["solvers", "grids", "paths"])
@pytest.mark.parametrize("width", [80, 200])
def test_tables_list_every_name(monkeypatch, kind, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = run(kind).splitlines()
    assert max(map(len, lines)) <= width
    firsts = [line.split()[0] for line in lines if re.match("  [a-z]", line)]
    assert sorted(first for first in firsts if first != kind[:-1]) == getattr(ds, kind).names()


def test_the_table_of_solvers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = run("solvers")
    rows = {line.split()[0]: line.split()[1:5] for line in text.splitlines() if line.startswith("  ")}
    assert rows["solver"] == ["order", "calls", "history", "frame"]
    assert rows["heun"] == ["2", "2", "1", "straight"]
    assert rows["dpmpp-2m"] == ["2", "1", "2", "denoised"]
    for name in ds.solvers.names():
        solver, tableau = ds.solvers.named(name), ds.plan("condot", name, steps=12)
        assert rows[name][:3] == [str(solver.order), str(solver.calls), str(tableau.history)]


def test_tables_show_shared_options_once(monkeypatch):
    class Thing:
        """What it is.

        And more.
        """

        def __str__(self) -> str:
            return "thing"

    def entry(a: int = 1, b: str = "x") -> Thing:
        return Thing()

    def other(a: int = 2, b: str = "x", c: float = 0.5) -> Thing:
        return Thing()

    def alone() -> Thing:
        """Something [else]."""
        return Thing()

    registry = Registry("grid", Thing, {"one": entry, "two": other, "three": entry, "z": alone})
    monkeypatch.setattr(ds.grids, "registry", registry)
    lines = [line.rstrip() for line in run("grids").splitlines()]
    rows = [i for i, line in enumerate(lines) if line.startswith("  ")]
    assert [line for i, line in enumerate(lines) if i not in rows] == [
        "What it is.",
        "Options: a=1, b='x'",
        "",
        "Something [else].",
        "",
    ]
    ends = {lines[i].split()[0]: lines[i].endswith("a=2, c=0.5") for i in rows}
    assert ends == {"grid": False, "one": False, "three": False, "two": True, "z": False}


# -------------------------------------------------------------------------------------------------- train


@needs_data
def test_training():
    text = run("train", "digits", "--steps", 2, "--batch", 4, "--out", "w.safetensors")
    assert "2 of 2" in text
    assert "finished" in text
    assert os.listdir() == ["w.safetensors"]
    digits.load("w.safetensors")


@needs_data
def test_training_in_two_sittings():
    arguments = ("train", "digits", "--steps", 2, "--batch", 4, "--out", "w.safetensors")
    text = run(*arguments, "--minutes", 1e-9)
    assert "1 of 2" in text
    assert "the same command goes on" in text
    assert os.listdir() == ["w.safetensors.checkpoint"]
    assert "checkpoint must be of a run with" in run(*arguments, "--seed", 1, code=2).splitlines()[-1]
    assert "finished" in run(*arguments)
    assert os.listdir() == ["w.safetensors"]


def test_bad_training_options_are_one_line():
    assert "lr must be a finite number > 0" in run("train", "digits", "--lr", -1, code=2).splitlines()[-1]
    assert os.listdir() == []


def test_training_without_the_data_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert (
        run("train", "digits", code=1) == "Error: the digits come from scikit-learn: pip install 'diffsolve[train]'\n"
    )
