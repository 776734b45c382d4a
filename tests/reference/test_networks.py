"""The U-Net, the transformer and the layers for points: what each is told, and what it makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffsolve.reference.dit import DiT
from diffsolve.reference.embedding import Conditioned, fourier, refit
from diffsolve.reference.mlp import MLP
from diffsolve.reference.unet import UNet

IMAGE = (2, 8, 8)
BUILD: dict[str, Callable[..., Conditioned]] = {
    "unet": lambda **k: UNet(2, 8, (1, 2), heads=2, groups=4, **k),
    "unet, patches": lambda **k: UNet(2, 8, (1, 2), heads=2, groups=4, patch=2, **k),
    "dit": lambda **k: DiT(2, 16, 2, heads=2, **k),
    "mlp": lambda **k: MLP(128, 16, 2, **k),
}
every = pytest.mark.parametrize("name", BUILD)


def awake(net: nn.Module) -> nn.Module:
    """Zero-initialised layers made random, so that the output depends on everything."""
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        if not p.any():
            p.data.normal_(0, 0.2, generator=g)
    return net.eval()


def inputs(n: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, *IMAGE, generator=g, dtype=dtype), torch.rand(n, generator=g), torch.rand(n, generator=g)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_output_like_input(name, dtype):
    net = awake(BUILD[name](num_classes=4, times=2)).to(dtype)
    x, t, s = inputs(dtype=dtype)
    out = net(x, t, s, label=torch.tensor([0, -1, 3]))
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert out.isfinite().all()


@every
def test_starts_at_zero(name):
    x, t, _ = inputs()
    net = BUILD[name]()
    for p in net.parameters():
        if p.dim() == 1:  # the last layer of points has a bias, not of zeros
            p.data.zero_()
    assert not net(x, t).any()


@every
def test_no_label_is_minus_one(name):
    net, (x, t, _) = awake(BUILD[name](num_classes=4)), inputs()
    free = net(x, t)
    assert torch.equal(free, net(x, t, label=torch.full((3,), -1)))
    changed = (net(x, t, label=torch.tensor([-1, 0, 3])) - free).abs().flatten(1).amax(1) > 1e-4
    assert changed.tolist() == [False, True, True]
    with pytest.raises(IndexError):
        net(x, t, label=torch.tensor([0, 0, 4]))


@every
def test_network_of_two_times(name):
    """It tells s apart, and s = None is s = t."""
    net, (x, t, s) = awake(BUILD[name](times=2)), inputs()
    assert torch.equal(net(x, t), net(x, t, t))
    assert ((net(x, t, s) - net(x, t)).abs().flatten(1).amax(1) > 1e-4).all()
    assert ((net(x, s, t) - net(x, t, s)).abs().flatten(1).amax(1) > 1e-4).all()


@every
def test_two_times_begin_as_one(name):
    """Weights of a network of one time go into one of two, which then is the same for every s."""
    x, t, s = inputs()
    one, two = awake(BUILD[name](num_classes=4)), BUILD[name](num_classes=4, times=2).eval()
    left = two.load_state_dict(one.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {key.partition(".")[0] for key in left.missing_keys} == {"until"}
    torch.testing.assert_close(two(x, t, s), one(x, t), rtol=0, atol=0)


def test_the_second_time_has_frequencies_of_its_own():
    """t at angles up to `highest`, s up to `until`."""
    told, (x, t, s) = [], inputs()
    net = UNet(2, 8, (1, 2), heads=2, groups=4, times=2, until=6.0)
    for layers in (net.time, net.until):
        layers.register_forward_pre_hook(lambda _, given: told.append(given[0]))
    net(x, t, s)
    wanted = torch.stack([fourier(t, net.features, 100.0), fourier(s, net.features, 6.0)])
    torch.testing.assert_close(torch.stack(told), wanted)


@every
def test_one_time_refuses_two(name):
    x, t, s = inputs()
    net = BUILD[name](num_classes=4)
    with pytest.raises(ValueError, match="s must be None for a network of one time"):
        net(x, t, s)
    with pytest.raises(TypeError, match="s must be a floating tensor; label="):
        net(x, t, torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="times must be"):
        BUILD[name](times=3)


@every
def test_samples_of_a_batch_do_not_mix(name):
    net = awake(BUILD[name](num_classes=4, times=2)).double()
    (x, t, s), label = inputs(dtype=torch.float64), torch.tensor([1, -1, 2])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], s[i : i + 1], label=label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t, s, label=label), alone)


@pytest.mark.parametrize(("net", "divisor"), [(UNet(1, 8, (1, 2), patch=2), 4), (DiT(1, 8, 1, heads=2, patch=4), 4)])
def test_sides_that_do_not_fit_are_errors(net, divisor):
    with pytest.raises(ValueError, match=f"divisible by {divisor}"):
        net(torch.zeros(1, 1, 8, 10), torch.zeros(1))


def test_widths_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="width must be a multiple of 4 and of 3 heads, got 16"):
        DiT(1, 16, 1, heads=3)


def test_transformer_tells_places_apart():
    """The same squares elsewhere give other outputs: rows from columns too."""
    net = awake(DiT(1, 16, 1, heads=2, patch=2))
    x, t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((1,), 0.5)
    assert (net(x.roll(2, 3), t).roll(-2, 3) - net(x, t)).abs().max() > 1e-3
    assert (net(x.mT, t).mT - net(x, t)).abs().max() > 1e-3


def test_transformer_takes_other_sizes():
    net = awake(DiT(1, 16, 1, heads=2, patch=2))
    assert net(torch.randn(2, 1, 4, 12), torch.rand(2)).shape == (2, 1, 4, 12)


def test_blocks_of_the_transformer_begin_as_the_identity():
    x, e = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(DiT(1, 16, 1).blocks[0](x, e), x)


def test_block_of_the_transformer_is_that_of_the_paper():
    """adaLN-zero written out: shift, scale and gate of the attention, then those of the dense layers."""
    block = awake(DiT(1, 16, 1, heads=2)).blocks[0].double()
    x, e = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 16, dtype=torch.float64)
    parts = block.modulate(e).view(2, 6, 1, 16).unbind(1)

    def normed(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (h - h.mean(2, keepdim=True)) / (h.var(2, keepdim=True, correction=0) + 1e-5).sqrt() * (
            1 + scale
        ) + shift

    q, k, v = (part.unflatten(2, (2, 8)) for part in block.qkv(normed(x, *parts[:2])).split(16, dim=2))
    share = (torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(3)
    h = x + parts[2] * block.out(torch.einsum("bhij,bjhd->bihd", share, v).flatten(2))
    expected = h + parts[5] * block.dense(normed(h, *parts[3:5]))
    torch.testing.assert_close(block(x, e), expected)


def test_layers_are_fitted_from_what_they_are():
    """To wanted values of any size; those that are right already stay so."""
    torch.manual_seed(0)
    layers, other = (nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 3)) for _ in range(2))
    inputs = torch.randn(50, 4)
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter *= 1000
        wanted = layers(inputs)
    assert refit(layers, inputs, wanted, steps=1) < 1e-5
    assert refit(other, inputs, wanted) < 0.1
    assert (other(inputs) - wanted).std() < 0.1 * wanted.std()
