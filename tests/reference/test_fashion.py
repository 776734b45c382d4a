"""The networks of Fashion-MNIST that ship, and their classifier."""

from __future__ import annotations

from importlib import resources

import pytest
import torch

import diffsolve as ds
from diffsolve.reference import classifier, data, fashion

needs_data = pytest.mark.skipif(
    not (data.FASHION_FOLDER / "train-images-idx3-ubyte.gz").exists(), reason="needs dataset-fashion-mnist"
)
NAMES = {"fashion": "flow", "fashion-noise": "noise", "fashion-edm": "edm", "fashion-latent": "latent"}
LABELS = torch.arange(30) % 10


def samples(name: str, nfe: int, labels: torch.Tensor) -> torch.Tensor:
    shape = (4, 7, 7) if name == "fashion-latent" else (1, 28, 28)
    return ds.sample(ds.load(name), (len(labels), *shape), nfe=nfe, seed=0, cond={"label": labels}, check=True)


def test_the_weights_are_small():
    folder = resources.files("diffsolve.reference") / "weights"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 8e6


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_of_their_class(name):
    """Thirty samples of five calls, by the classifier; and images of [-1, 1], not more than a little outside."""
    x = samples(name, 5, LABELS)
    if name == "fashion-latent":
        x = ds.load(name).net.decode(x)
    assert x.shape == (30, 1, 28, 28)
    assert x.isfinite().all()
    assert -1.6 < x.min() < -0.9
    assert x.max() < 2
    right = classifier.load(data="fashion").logits(x.clamp(-1, 1)).argmax(1) == LABELS
    assert right.float().mean() >= 0.7


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_frozen_and_need_no_label(name):
    before = torch.get_rng_state()
    model = ds.load(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.net.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.net.parameters())
    x = torch.randn(2, *((4, 7, 7) if name == "fashion-latent" else (1, 28, 28)))
    t = float(model.path.time(0.0))
    free, none = model(x, t), model(x, t, label=torch.tensor([-1, -1]))
    assert torch.equal(free, none)
    assert not torch.equal(free, model(x, t, label=torch.tensor([3, 3])))


def test_clocks_tell_times_in_the_unit_interval():
    for name in NAMES:
        model = ds.load(name)
        ends = [
            float(model.network_time(torch.tensor(t, dtype=torch.float64)))
            for t in (model.path.t_noise, model.path.t_last)
        ]
        assert 0 <= min(ends) < max(ends) <= 1


def test_weights_of_ones_own(tmp_path):
    packaged = resources.files("diffsolve.reference") / "weights" / "fashion-edm.safetensors"
    file = tmp_path / "mine.safetensors"
    file.write_bytes(packaged.read_bytes())
    mine = ds.load(f"fashion-edm(weights={str(file)!r})")
    assert mine.predicts == "edm"
    assert torch.equal(mine.net.stem.weight, ds.load("fashion-edm").net.stem.weight)
    with pytest.raises(ValueError, match=r"mine\.safetensors"):
        ds.load(f"fashion-latent(weights={str(file)!r})")
    with pytest.raises(ValueError, match="objective must be one of 'flow'"):
        fashion.load("score")


@needs_data
def test_classifier_on_the_test_images():
    images, labels = data.fashion("test")
    net = classifier.load(data="fashion")
    with torch.no_grad():
        right = torch.cat([net.logits(chunk).argmax(1) for chunk in images[:2000].split(500)]) == labels[:2000]
    assert right.float().mean() > 0.91
    assert net(images[:3]).shape == (3, 64)


def test_unknown_data_of_the_classifier_are_an_error():
    with pytest.raises(ValueError, match="data must be 'digits' or 'fashion', got 'mnist'"):
        classifier.load(data="mnist")


def test_the_last_layer_is_fitted_to_the_images_as_they_are():
    """The gradient of its loss is zero, and the features have not changed."""
    torch.manual_seed(0)
    net = classifier.BUILD["fashion"]()
    images, labels = torch.rand(60, 1, 28, 28) * 2 - 1, torch.arange(60) % 10
    features = net(images).detach()
    classifier.fit_last(net, images, labels)
    assert torch.equal(net(images), features)
    loss = torch.nn.functional.cross_entropy(net.last(features), labels)
    loss = loss + classifier.PENALTY * net.last.weight.square().sum()
    gradients = torch.autograd.grad(loss, net.last.parameters())
    assert max(float(g.abs().max()) for g in gradients) < 1e-4


def test_noise_through_the_straight_velocity():
    """With the exact velocity inside, the exact noise, at every row; the state inside is on the straight path."""
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(3, 1, 2, 2, generator=g), torch.randn(3, 1, 2, 2, generator=g)
    path = ds.paths.named("ddpm")
    t = torch.tensor([0.0, 400.0, 999.0], dtype=torch.float64)
    alpha, sigma = (level.float().view(-1, 1, 1, 1) for level in (path.at(t).alpha, path.at(t).sigma))
    seen = {}

    def velocity(z, tau, label):
        seen.update(z=z, tau=tau, label=label)
        return x0 - noise

    net = fashion.Straightened(torch.nn.Identity())
    net.body.forward = velocity
    tau = fashion.straight_of_row(t).float()
    torch.testing.assert_close(net(alpha * x0 + sigma * noise, tau, label=7), noise)
    wide = tau.view(-1, 1, 1, 1)
    torch.testing.assert_close(seen["z"], wide * x0 + (1 - wide) * noise)
    assert torch.equal(seen["tau"], tau)
    assert seen["label"] == 7
    torch.testing.assert_close(1 / tau - 1, (sigma / alpha).flatten())
