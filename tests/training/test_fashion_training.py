"""Training of the reference networks of Fashion-MNIST, on ten images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.idx import clothes
from typer.testing import CliRunner

from diffsolve.cli.app import app
from diffsolve.reference import fashion as reference
from diffsolve.training import fashion


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clothes(tmp_path_factory.mktemp("clothes"), train=10)


def run(objective: str, out: Path, folder: Path, **options: object) -> dict:
    return fashion.train(objective, out, folder=folder, **{"steps": 2, "batch": 3, **options})


@pytest.mark.parametrize("objective", ["flow", "noise", "edm"])
def test_a_recipe_makes_a_file_that_loads(tmp_path, folder, objective):
    out = tmp_path / "weights.safetensors"
    before = torch.get_rng_state()
    report = run(objective, out, folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert report["finished"]
    with safe_open(out, "pt") as file:
        note = json.loads(file.metadata()["diffsolve"])
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    recipe = reference.RECIPES[objective]
    assert (note["predicts"], note["lr"]) == (recipe.predicts, recipe.lr)
    model = reference.load(objective, out)
    assert model.predicts == recipe.predicts
    assert getattr(model.net, "body", model.net).head[2].weight.any()


def test_latents_take_the_autoencoder_that_was_trained(tmp_path, folder):
    first, out = tmp_path / "autoencoder.safetensors", tmp_path / "latent.safetensors"
    run("autoencoder", first, folder)
    run("latent", out, folder, autoencoder=first)
    net = reference.load("latent", out).net
    with safe_open(first, "pt") as file:
        trained = file.get_tensor("decoder.0.weight").float()
    assert torch.equal(net.autoencoder.decoder[0].weight, trained)
    assert (net.autoencoder.scale != 1).all()  # measured
    run("latent", out, folder)  # with the autoencoder that ships
    packaged, mine = reference.load("latent").net.autoencoder, reference.load("latent", out).net.autoencoder
    assert all(
        torch.equal(a, b) for a, b in zip(packaged.state_dict().values(), mine.state_dict().values(), strict=True)
    )


def test_seeds_differ_and_repeat(tmp_path, folder):
    files = [tmp_path / name for name in "abc"]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        run("edm", file, folder, steps=1, seed=seed)
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ("score", {}, "objective must be one of 'flow', 'noise', 'edm', 'latent', 'autoencoder', got 'score'"),
        ("flow", {"autoencoder": "a.safetensors"}, "autoencoder must be None but for objective='latent'"),
    ],
)
def test_wrong_arguments_are_errors(tmp_path, folder, objective, options, message):
    with pytest.raises(ValueError, match=message):
        run(objective, tmp_path / "weights.safetensors", folder, **options)


def test_the_command(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = ["train", "fashion", "--objective", "edm", "--steps", "2", "--batch", "3", "--folder", str(folder)]
    result = CliRunner().invoke(app, wanted)
    assert result.exit_code == 0, result.output
    assert "2 of 2 in" in result.output
    assert reference.load("edm", tmp_path / "fashion-edm.safetensors").predicts == "edm"
    missing = CliRunner().invoke(app, [*wanted[:-1], str(tmp_path / "none")])
    assert missing.exit_code == 2
    assert "dataset-fashion-mnist" in missing.output.replace("\n", " ")


def test_a_training_begins_with_the_weights_of_another(tmp_path, folder):
    """The noise at the flow's weights is the flow: one update at a rate of nearly 0 leaves it so."""
    flow, noise = tmp_path / "flow.safetensors", tmp_path / "noise.safetensors"
    run("flow", flow, folder, lr=0.05)
    run("noise", noise, folder, start=flow, lr=1e-9, steps=1)
    one, two = reference.load("flow", flow), reference.load("noise", noise)
    p = two.path.at(torch.tensor(300.0, dtype=torch.float64))
    x, label = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.tensor([2, -1])
    found = two.denoised(x, 300.0, label=label)
    straight = float(p.alpha + p.sigma)
    torch.testing.assert_close(
        found, one.denoised(x / straight, float(p.alpha) / straight, label=label), atol=1e-3, rtol=1e-3
    )
    again = tmp_path / "again.safetensors"
    run("flow", again, folder, start=noise, lr=1e-9, steps=1)  # and back
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.net.parameters(), reference.load("flow", again).net.parameters(), strict=True)
    )
