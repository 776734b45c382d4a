"""The autoencoder, its loss, and a network on its latents."""

from __future__ import annotations

import math

import pytest
import torch

import diffsolve as ds
from diffsolve.reference.autoencoder import BETA, Autoencoder, Latent, loss
from diffsolve.reference.unet import UNet


def small() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(1, 8, latents=3)


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 1, 12, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes():
    net, x = small(), images()
    z = net.encode(x)
    assert z.shape == (5, 3, 3, 2)
    assert net.decode(z).shape == x.shape


def test_measured_latents_are_of_unit_size():
    net, x = small(), images(520)
    raw = net.posterior(x)[0]
    before = net.decode(raw)  # shift 0 and scale 1: the network's own latents
    net.measure(x)
    z = net.encode(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.decode(z), before, atol=1e-4, rtol=0)


def test_loss_is_that_of_the_draw():
    """Written out; and with a posterior of variance 1 and mean m, KL is m^2 / 2 for each latent."""
    net, x = small(), images()
    model = ds.adapt(net, "condot", "denoised")
    with torch.no_grad():
        value, again = loss(model, x, cond={}, seed=3, step=7)
        mean, std = net.posterior(x)
        error = again - x
        kl = -0.5 * (1 + 2 * std.log() - mean**2 - std**2).flatten(1).sum(1) / 96
        expected = (error**2).mean((1, 2, 3)) + error.abs().mean((1, 2, 3)) + BETA * kl
        torch.testing.assert_close(value, expected)
        last = net.encoder[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0, 0.0]))
        value, again = loss(model, x, seed=3, step=7)
        error = again - x
        rest = (error**2).mean((1, 2, 3)) + error.abs().mean((1, 2, 3))
        torch.testing.assert_close(value - rest, torch.full((5,), BETA * 18 * 2.0 / 96))


def test_draws_depend_on_seed_step_and_place():
    model, x = ds.adapt(small(), "condot", "denoised"), images()
    one, _ = loss(model, x, seed=3, step=7)
    assert torch.equal(one, loss(model, x, seed=3, step=7)[0])
    assert not torch.equal(one, loss(model, x, seed=4, step=7)[0])
    assert not torch.equal(one, loss(model, x, seed=3, step=8)[0])
    torch.testing.assert_close(one[2:], loss(model, x[2:], seed=3, step=7, index=2)[0])


def test_gradients_reach_all_parameters():
    net = small()
    loss(ds.adapt(net, "condot", "denoised"), images(), seed=0, step=0)[0].mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert math.isfinite(sum(float(p.grad.square().sum()) for p in net.parameters()))


def test_network_on_latents():
    """Sampling runs on latents; only the network on them is trained."""
    net = Latent(UNet(3, 8, (1,), num_classes=2, heads=2, groups=4), small()).eval()
    assert {name.partition(".")[0] for name, p in net.named_parameters() if p.requires_grad} == {"body"}
    z = ds.sample(
        ds.adapt(net, "condot", "velocity"), (2, 3, 3, 2), nfe=2, seed=0, cond={"label": torch.tensor([0, 1])}
    )
    assert torch.equal(net.decode(z), net.autoencoder.decode(z))
    assert net.decode(z).shape == (2, 1, 12, 8)
    assert torch.equal(net.encode(images()), net.autoencoder.encode(images()))


def test_latents_of_two_times():
    net = Latent(UNet(3, 8, (1,), heads=2, groups=4, times=2), small())
    z, t, s = torch.randn(2, 3, 4, 4), torch.rand(2), torch.rand(2)
    assert net(z, t, s).shape == z.shape
    with pytest.raises(ValueError, match="s must be None"):
        Latent(UNet(3, 8, (1,), heads=2, groups=4), small())(z, t, s)
