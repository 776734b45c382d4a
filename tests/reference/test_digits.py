"""The U-Net, and the loading of the digits model."""

from __future__ import annotations

import importlib.util
import sys
from importlib import resources

import pytest
import safetensors.torch
import torch

from diffsolve.reference import digits
from diffsolve.reference.unet import UNet

needs_data = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")


def tiny() -> UNet:
    return UNet(channels=8, multipliers=(1, 2), num_classes=10, heads=2, groups=4, dropout=0.2)


def awake(net: UNet) -> UNet:
    """The zero-initialised layers made random, so that the output depends on everything; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        if not p.any():
            p.data.normal_(0, 0.2, generator=generator)
    return net.eval()


# ---------------------------------------------------------------------------------------------- the U-Net


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "channels", "multipliers"), [(8, 1, (1, 2)), (32, 3, (1, 1, 2)), (8, 2, (1,))])
def test_output_like_input(dtype, size, channels, multipliers):
    net = UNet(channels, 8, multipliers, blocks=2, num_classes=4).to(dtype)
    x, t = torch.randn(3, channels, size, size, dtype=dtype), torch.rand(3)
    out = awake(net)(x, t, label=torch.tensor([0, -1, 3]))
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_starts_at_zero():
    assert not tiny()(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


def test_no_label_is_minus_one():
    net, x, t = awake(tiny()), torch.randn(4, 1, 8, 8), torch.rand(4)
    free = net(x, t)
    assert torch.equal(free, net(x, t, label=torch.full((4,), -1)))
    mixed = net(x, t, label=torch.tensor([-1, 0, 9, -1]))
    changed = (mixed - free).abs().amax((1, 2, 3)) > 1e-4
    assert changed.tolist() == [False, True, True, False]


@pytest.mark.parametrize("label", [-2, 10])
def test_unknown_labels_are_errors(label):
    with pytest.raises(IndexError):
        tiny()(torch.zeros(1, 1, 8, 8), torch.zeros(1), label=torch.tensor([label]))


def test_unconditional_network():
    net, x, t = awake(UNet(channels=8)), torch.randn(2, 1, 8, 8), torch.rand(2)
    assert torch.equal(net(x, t), net(x, t, label=torch.tensor([-1, -1])))
    with pytest.raises(IndexError):
        net(x, t, label=torch.tensor([0, 0]))


def test_sides_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="divisible by 2"):
        tiny()(torch.zeros(1, 1, 7, 8), torch.zeros(1))


def test_samples_of_a_batch_do_not_mix():
    net, x, t = awake(tiny()).double(), torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.rand(3)
    label = torch.tensor([1, -1, 2])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], label=label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, label=label), alone)


def test_times_are_embedded_in_float32():
    """bfloat16 has no number between 0.996 and 1; the network still tells such times apart."""
    net = awake(tiny()).bfloat16()
    x = torch.randn(1, 1, 8, 8, dtype=torch.bfloat16).expand(2, -1, -1, -1)
    near, end = net(x, torch.tensor([0.999, 1.0]))
    assert not torch.equal(near, end)


# ------------------------------------------------------------------------------------- data and weights


@needs_data
def test_data():
    images, labels = digits.load_data()
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert labels.shape == (1797,)
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


def test_data_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"diffsolve\[train\]"):
        digits.load_data()


def test_packaged_weights():
    packaged = resources.files("diffsolve.reference") / "weights" / "digits.safetensors"
    assert len(packaged.read_bytes()) <= 2e6
    before = torch.get_rng_state()
    net = digits.load()
    assert torch.equal(torch.get_rng_state(), before)
    assert not net.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in net.parameters())
    out = net(torch.randn(2, 1, 8, 8), torch.tensor([0.0, 1.0]), label=torch.tensor([3, -1]))
    assert out.shape == (2, 1, 8, 8)
    assert out.isfinite().all()


@needs_data
def test_packaged_weights_predict_the_velocity():
    """At t = 1 the velocity is x0 - E[eps] = x0; at t = 0 it is E[x0] - eps, with the mean of the class."""
    images, labels = digits.load_data()
    net = digits.load()
    noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    end = net(images[:500], torch.ones(500), label=labels[:500]) - images[:500]
    assert end.square().mean() < 0.1
    for label in range(10):
        start = net(noise, torch.zeros(500), label=torch.full((500,), label)) + noise
        assert (start - images[labels == label].mean(0)).square().mean() < 0.05


def corruptions(good: bytes) -> dict[str, bytes]:
    tensors = safetensors.torch.load(good)
    name = "head.2.weight"

    def changed(**new: torch.Tensor) -> bytes:
        return safetensors.torch.save({**tensors, **{key.replace("__", "."): new[key] for key in new}})

    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "huge header": b"\xff" * 8 + good[8:],
        "pickle": b"\x80\x04cos\nsystem\n",
        "no tensors": safetensors.torch.save({}),
        "extra": changed(extra=torch.zeros(1)),
        "missing": safetensors.torch.save({key: tensors[key] for key in tensors if key != name}),
        "wrong shape": changed(head__2__weight=tensors[name][:, :1].contiguous()),
        "wrong dtype": changed(head__2__weight=tensors[name].to(torch.int8)),
        "not finite": changed(head__2__weight=torch.full_like(tensors[name], torch.nan)),
    }


@pytest.mark.parametrize("kind", list(corruptions(safetensors.torch.save(tiny().state_dict()))))
def test_bad_weights_are_errors(tmp_path, kind):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(corruptions(safetensors.torch.save(tiny().state_dict()))[kind])
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        digits.load(file, build=tiny)


def test_missing_weights_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        digits.load(tmp_path / "none.safetensors")
