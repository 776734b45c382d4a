"""Anybody's model, data and features, from Python and from the command line."""

import io
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve import metrics
from diffsolve.common.imports import named_object
from diffsolve.metrics import Statistics, batches, is_statistics, save_images
from diffsolve.metrics.features import named

STRANGER = """
import torch
import diffsolve as ds

class Net(torch.nn.Module):
    def __init__(self, bias=0.0):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(float(bias)))

    def forward(self, x, t, label=None):
        shift = 0 if label is None else label.view(-1, 1, 1, 1) / 10
        return -x + self.bias + shift

def model(bias=0.0, path="condot"):
    return ds.adapt(Net(bias).eval(), path, "velocity")

def labels():
    return {"label": torch.arange(4)}

def guide(times=1):
    return ds.Guidance(2.0, {"label": torch.tensor([7, 3]).repeat(times)})

def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(30, 3, 4, 4, generator=generator) * 2 - 1

def features():
    return lambda x: x.mean((2, 3))

def nothing():
    return 3
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A package of its own, in the folder where the user is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "toy.py").write_text(textwrap.dedent(STRANGER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield named_object("model", "mine.toy:images")()
    for name in ("mine", "mine.toy"):
        sys.modules.pop(name, None)


@pytest.fixture
def command(stranger):
    testing = pytest.importorskip("typer.testing")
    from diffsolve.cli import app as cli

    def invoke(*arguments, code=0):
        result = testing.CliRunner().invoke(cli.app, [*map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


def test_objects_by_name(stranger):
    assert named_object("model", "mine.toy:Net.forward").__name__ == "forward"
    for where, message in (
        ("mine.toy", "model must be written package.module:name, got 'mine.toy'"),
        ("mine.toy:", "written package.module:name"),
        ("mine/toy.py:x", "written package.module:name"),
        ("mine.other:x", "a module that can be imported, got 'mine.other:x': No module named 'mine.other'"),
        ("mine.toy:x", "the name of something in mine.toy, got 'mine.toy:x'"),
    ):
        with pytest.raises(ValueError, match=message):
            named_object("model", where)


def test_a_missing_import_of_a_module_is_its_own_error(stranger, tmp_path):
    (tmp_path / "mine" / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ModuleNotFoundError, match="nothing_of_that_name"):
        named_object("model", "mine.broken:x")


@pytest.mark.parametrize("channels", [1, 3])
def test_images_go_to_files_and_come_back(tmp_path, channels):
    x = torch.randint(0, 256, (7, channels, 5, 6), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "a.npz", tmp_path / "folder"):
        save_images(file, x.split(3))
        back = list(batches(file, 4))
        assert [len(part) for part in back] == [4, 3]
        assert torch.equal(torch.cat(back), x)
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (7, 5, 6, channels)
    save_images(tmp_path / "b.npz", 2 * torch.ones(1, channels, 2, 2))  # beyond white
    assert (np.load(tmp_path / "b.npz")["arr_0"] == 255).all()
    save_images(tmp_path / "b.npz", torch.full((1, channels, 2, 2), 10.4 / 127.5 - 1))
    assert (np.load(tmp_path / "b.npz")["arr_0"] == 10).all()


def test_batches_of_anything(stranger):
    for source in ("mine.toy:images", stranger, stranger.split(7), [(part, None) for part in stranger.split(7)]):
        parts = list(batches(source, 7))
        assert [len(part) for part in parts] == [7, 7, 7, 7, 2]
        assert torch.equal(torch.cat(parts), stranger)


def test_sources_that_are_none(stranger, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name, size in (("a.png", (4, 4)), ("b.png", (4, 5))):
        image.new("RGB", size).save(tmp_path / "mixed" / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for source, message in (
        ("empty", "data must be a folder with images"),
        ("mixed", r"of one size and kind, got 'a.png' of \(4, 4, 3\) and 'b.png' of \(5, 4, 3\)"),
        ("broken", "file must be an image, got 'broken/a.png': cannot identify"),
        ("floats.npz", "must be an .npz of images, .* arr_0 is ndarray of shape .* float64"),
        ("other.npz", "it has no|is not a file in the archive"),
        ("nowhere.txt", "data must be a folder, an .npz file, or package.module:loader"),
    ):
        with pytest.raises(ValueError, match=message):
            list(batches(source))
    with pytest.raises(FileNotFoundError):
        list(batches("nowhere.npz"))
    with pytest.raises(TypeError, match="data must be a folder, a file, a tensor or batches, got 3"):
        list(batches(3))


def test_statistics_or_images(stranger, tmp_path):
    Statistics.of(stranger).save(tmp_path / "s.npz")
    save_images(tmp_path / "i.npz", stranger)
    assert is_statistics("s.npz")
    assert not any(map(is_statistics, ("i.npz", "nowhere.npz", "mine", stranger)))


def test_features_by_name(stranger):
    assert torch.equal(named("mine.toy:features")(stranger), stranger.mean((2, 3)))
    assert named("pixels") is metrics.pixels
    assert named(torch.sin) is torch.sin
    with pytest.raises(ValueError, match=r"features must be .*'pixels'.*, got 'pixel'"):
        named("pixel")
    with pytest.raises(TypeError, match="what 'mine.toy:nothing' makes must be a callable"):
        named("mine.toy:nothing")


def test_the_command_is_the_library(command, stranger):
    """A package outside this one: the same table as from Python."""
    import mine.toy

    text = command(
        "bench", "--model", "mine.toy:model", "--model-args", "bias=0.25", "--model-args", "path=edm",
        "--data", "mine.toy:images", "--features", "mine.toy:features", "--cond", "mine.toy:labels",
        "--solver", "heun", "--grid", "karras", "--grid", "exponential", "--nfe", 3, "--num", 20, "--exact", 4,
        "--guidance", "mine.toy:guide",
    )  # fmt: skip
    table = metrics.sweep(
        mine.toy.model(0.25, "edm"), (3, 4, 4), reference=Statistics.of(stranger, mine.toy.features(), keep=2000),
        solvers={f"heun, {grid}": {"solver": "heun", "grid": grid} for grid in ("karras", "exponential")},
        nfe=3, num=20, exact=4, cond={"label": torch.arange(4)}, guidance=mine.toy.guide(2),
    )  # fmt: skip
    assert text == f"{table}\n"
    assert table.measures == ["FD", "FD inf", "KID", "endpoint error"]


def test_data_in_files_and_without_any(command, stranger, tmp_path):
    Statistics.of(stranger, keep=0).save("s.npz")
    (tmp_path / "folder").mkdir()
    save_images("folder", stranger)
    save_images("i.npz", stranger)
    options = ("--model", "mine.toy:model", "--nfe", 2, "--num", 8, "--exact", 2)
    folder, archive = (command("bench", *options, "--data", data) for data in ("folder", "i.npz"))
    assert folder == archive
    moments = command("bench", *options, "--data", "s.npz", "--shape", "3,4,4")
    assert "KID" in folder
    assert "KID" not in moments
    assert "FD against network calls (8 samples; fewer than 4 for each of 48 features" in moments
    bare = command("bench", *options, "--shape", "3,4,4")
    assert "FD" not in bare
    assert "endpoint error" in bare


def test_the_command_chooses(command):
    asked = ("--cond", "mine.toy:labels", "--guidance", "mine.toy:guide")
    options = ("--shape", "3,4,4", "--nfe", 3, "--num", 8, "--trials", 2, "--teacher", 20)
    text = command("choose", "--model", "mine.toy:model", *options, *asked, "--out", "run.json")
    assert ds.Tableau.load("run.json").nfe <= 3
    import mine.toy

    found = ds.choose(
        mine.toy.model(), (8, 3, 4, 4), nfe=3, trials=2, teacher=20, seed=0,
        cond={"label": mine.toy.labels()["label"].repeat(2)}, guidance=mine.toy.guide(4),
    )  # fmt: skip
    assert "| 3 | " in text.splitlines()[2] == str(found).splitlines()[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "--model", "mine.toy:other", "--shape", "2"), "the name of something in mine.toy"),
        (("bench", "--model", "mine.toy:model"), "shape must be given where the data do not show it, got data=None"),
        (("bench", "--model", "mine.toy:model", "--shape", "3,x"), "shape must be sizes >= 1 as 3,32,32, got '3,x'"),
        (("bench", "--model", "mine.toy:model", "--shape", "2", "--model-args", "3"), "model-args must be name=value"),
        (("bench", "--model", "mine.toy:model", "--shape", "2", "--class", "3"), "class must be left out"),
        (("bench", "--model", "mine.toy:model", "--shape", "2", "--features", "pixels"), "features must be given toge"),
        (("bench", "--model", "mixture-2d", "--shape", "2"), "shape must be left out for a reference model, got '2'"),
        (("bench", "--model", "mine.toy:nothing", "--shape", "2"), "model must be a Model"),
        (
            ("bench", "--model", "mine.toy:model", "--shape", "2", "--guidance", "two"),
            "guidance must be a number or pack",
        ),
        (("choose", "--model", "mine.toy:model", "--shape", "2", "--out", "a.json"), "out must be left out for more"),
    ],
)
def test_bad_values_are_one_line(command, arguments, message):
    assert message in " ".join(command(*arguments, code=2).split())


def test_a_png_is_what_pillow_reads(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = torch.tensor([[[[-1.0, 1.0]], [[0.0, 0.0]], [[1.0, -1.0]]]])
    save_images(tmp_path, x)
    assert image.open(io.BytesIO((tmp_path / "00000.png").read_bytes())).getpixel((1, 0)) == (255, 128, 0)


@pytest.mark.slow
def test_a_stranger_has_the_page_in_one_command(stranger, tmp_path):
    """As a user would: a process of its own, a package of one's own, a folder of one's own images."""
    pytest.importorskip("jinja2")
    (tmp_path / "images").mkdir()
    save_images("images", stranger)
    command = [
        *(sys.executable, "-m", "diffsolve", "bench", "--model", "mine.toy:model", "--model-args", "bias=0.1"),
        *("--data", "images", "--features", "mine.toy:features", "--cond", "mine.toy:labels", "--guidance", "2"),
        *("--solver", "auto", "--solver", "heun", "--nfe", "4", "--nfe", "6", "--num", "30", "--seeds", "2"),
        *("--score", "frechet", "--score", "precision(k=3)", "--out", "run.jsonl", "--report", "run.html"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run.html").read_text()
    assert "x = ds.sample(model, shape, solver=&#39;" in text
    assert text.count("data:image/png") == 4 * 8
    assert "frechet against time" in text
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1 + 8
