"""Features of other libraries: their own network and preprocessing, on a copy with random weights; no downloads."""

import numpy as np
import pytest
import torch

from diffsolve import metrics
from diffsolve.metrics import Statistics
from diffsolve.metrics.extractors import WEIGHTS, LibraryFeatures
from diffsolve.metrics.features import named
from diffsolve.metrics.images import as_bytes


@pytest.fixture
def hub(tmp_path):
    """An empty cache of torch.hub."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def random_weights(file, made, monkeypatch):
    """A state of random numbers for torch-fidelity's class, in a file; and that network."""
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(made, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = made("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), file)
    return network


def fidelity():
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3


def test_images_become_bytes(images):
    seen = []

    def features(network, integers):
        seen.append(integers)
        return integers.flatten(1).float()

    extractor = LibraryFeatures("test", torch.nn.Identity(), features)
    extractor(images)
    grey = torch.tensor([[[[-1.0, 0.0], [1.0, 2.0]]]])
    extractor(grey)
    assert torch.equal(seen[0], as_bytes(images))
    assert seen[1].tolist() == [[[[0, 128], [255, 255]]] * 3]
    assert not extractor.network.training


@pytest.mark.parametrize("name", ["weights", "pt"])
def test_inception_is_torch_fidelitys(hub, images, monkeypatch, name):
    """From either library's file in the cache, or from a path; the features are bit for bit the library's."""
    network = random_weights(hub / f"{'weights-' if name == 'weights' else 'pt_'}{WEIGHTS}", fidelity(), monkeypatch)
    found = named("inception")
    (expected,) = network(as_bytes(images[:2]))
    assert expected.shape == (2, 2048)
    assert torch.equal(found(images[:2]), expected)
    if name == "pt":
        path = hub / f"pt_{WEIGHTS}"
        assert torch.equal(named(f"inception(weights={str(path)!r})")(images[:2]), expected)


@pytest.mark.slow
def test_fid_is_torch_fidelitys(hub, images, monkeypatch):
    """The library's own number, of the same images."""
    made = fidelity()
    import torch_fidelity

    file = hub / f"weights-{WEIGHTS}"
    random_weights(file, made, monkeypatch)
    one, two = (
        images.repeat(4, 1, 1, 1) + torch.linspace(0, 0.5, 16)[:, None, None, None],
        images.flip(2).repeat(4, 1, 1, 1),
    )

    class Bytes(torch.utils.data.Dataset):
        def __init__(self, x):
            self.x = as_bytes(x)

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i]

    theirs = torch_fidelity.calculate_metrics(
        input1=Bytes(one), input2=Bytes(two), fid=True, cuda=False, verbose=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(file),
    )["frechet_inception_distance"]  # fmt: skip
    features = named("inception")
    ours = metrics.frechet(Statistics.of(one, features), Statistics.of(two, features))
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)


def test_what_is_missing_is_told(hub, monkeypatch):
    fidelity()
    for spec, message in (
        ("inception", rf"weights must be on this machine, got no file '{hub}/weights-{WEIGHTS}'; it is https://github"),
        ("inception(weights='nowhere.pth')", "got no file 'nowhere.pth'"),
        ("clip", f"got no file '{hub}/clip-vit-l-14-336px-"),
        ("dinov2", "the code of DINOv2 must be in .*facebookresearch_dinov2_main"),
        ("dinov2(size='huge')", "size must be 'small', 'base', 'large' or 'giant', got 'huge'"),
        ("clip(size='rn50')", "size must be 'vit-b-32'"),
        ("inception(library='keras')", "library must be 'torch-fidelity' or 'pytorch-fid'"),
    ):
        with pytest.raises(ValueError, match=message):
            named(spec)


def test_a_hostile_file_is_refused(hub):
    fidelity()
    import pickle

    class Hostile:
        def __reduce__(self):
            return (pytest.fail, ("it ran",))

    (hub / f"weights-{WEIGHTS}").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match="file must be a file of weights"):
        named("inception")


def test_without_a_library(monkeypatch):
    monkeypatch.setattr("diffsolve.metrics.extractors.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install torch-fidelity"):
        named("inception")
    with pytest.raises(ImportError, match="clip's features need torch-fidelity"):
        named("clip")


def test_statistics_of_other_packages(tmp_path, images):
    """The field's .npz: mu and sigma alone, as pytorch-fid writes them, and ours as they read it."""
    images = images[:, :, :4, :4]
    rows = images.flatten(1).double()
    np.savez(tmp_path / "theirs.npz", mu=rows.mean(0).numpy(), sigma=np.cov(rows.numpy(), rowvar=False))
    ours = Statistics.of(images)
    assert metrics.frechet(ours, Statistics.load(tmp_path / "theirs.npz")) == pytest.approx(0, abs=1e-9)
    ours.save(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as file:
        assert file["mu"] == pytest.approx(rows.mean(0).numpy())
        assert file["sigma"] == pytest.approx(np.cov(rows.numpy(), rowvar=False))
