"""Clipped estimates: the published recursions of guided-diffusion and Imagen, and every driver."""

import math

import pytest
import torch

import diffsolve as ds
from diffsolve.execute.clip import quantile
from diffsolve.noise import Stream

T, SHAPE, SEED = 1000, (3, 2, 4), 7
BETAS = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
PRODUCTS = (1 - BETAS).cumprod(0)
PATH = ds.paths.Discrete(BETAS)
START = ds.Key(1).normal(SHAPE, dtype=torch.float64)


def network(x, t, bias=0.0):
    """Some network of noise, whose denoised estimates leave [-1, 1]."""
    return torch.tanh(1.7 * x + bias) + 0.1 * torch.sin(t / 100).view(-1, 1, 1)


MODEL = ds.adapt(network, PATH, "noise", dtype=torch.float64)


def drawn(i):
    return ds.Key(SEED).normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=torch.float64)


def dynamic(x):
    """Imagen, section 2.3."""
    s = torch.quantile(x.abs().flatten(1), 0.9, dim=1).clamp(min=1).view(-1, 1, 1)
    return torch.maximum(torch.minimum(x, s), -s) / s


CLIPS = {
    "static": (ds.Clip(), lambda x: x.clamp(-1, 1)),
    "wide": (ds.Clip(1.5), lambda x: x.clamp(-1.5, 1.5)),
    "dynamic": (ds.Clip(quantile=0.9), dynamic),
}


def published(method, rows, clip, outputs=network):
    """SpacedDiffusion of guided-diffusion: betas of the rows kept, and p_sample or ddim_sample with clip_denoised."""
    x = START
    for i, row in enumerate(rows):
        product, before = PRODUCTS[row], PRODUCTS[rows[i + 1]] if i + 1 < len(rows) else torch.tensor(1.0)
        eps = outputs(x, torch.full((len(x),), float(row), dtype=x.dtype))
        x0 = clip(x / product.sqrt() - (1 / product - 1).sqrt() * eps)
        beta = 1 - product / before
        variance = beta * (1 - before) / (1 - product)
        if method.startswith("ddim"):
            eta = 0.5 if "eta" in method else 0.0
            eps = (x / product.sqrt() - x0) / (1 / product - 1).sqrt()
            sigma = eta * variance.sqrt()
            mean = x0 * before.sqrt() + (1 - before - sigma**2).sqrt() * eps
        else:
            mean = beta * before.sqrt() / (1 - product) * x0
            mean = mean + (1 - before) * (1 - beta).sqrt() / (1 - product) * x
            sigma = (variance if method == "ddpm" else beta).sqrt()
        x = mean + (sigma * drawn(i) if before < 1 else 0)
    return x


def respaced(sections):
    """space_timesteps of guided-diffusion, last row first."""
    rows, first = set(), 0
    for k, wanted in enumerate(sections):
        size, at = T // len(sections) + (k < T % len(sections)), 0.0
        for _ in range(wanted):
            rows.add(first + round(at))
            at += (size - 1) / (wanted - 1) if wanted > 1 else 1
        first += size
    return sorted(rows)[::-1]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("method", ["ddpm", "ddpm(variance='large')", "ddim", "ddim(eta=0.5)"])
def test_the_published_recursions(method, clip):
    hook, by_hand = CLIPS[clip]
    for sections, grid in (((25,), "respaced"), ((4, 7, 5), "respaced(sections=(4, 7, 5))")):
        steps = sum(sections)
        mine = ds.sample(MODEL, noise=START, solver=method, steps=steps, grid=grid, seed=SEED, hook=hook)
        torch.testing.assert_close(mine, published(method, respaced(sections), by_hand), rtol=1e-9, atol=1e-9)
        free = ds.sample(MODEL, noise=START, solver=method, steps=steps, grid=grid, seed=SEED)
        assert not torch.allclose(mine, free, atol=1e-2)


def test_the_rows_of_every_number():
    grid = ds.grids.named("respaced")
    for n in range(2, T + 1):
        assert grid(PATH, n).tolist() == [*respaced([n]), -1]


def test_what_is_clipped_is_guided():
    def both(x, t):
        outs = network(x, t, 0.4), network(x, t)
        return outs[1] + 3 * (outs[0] - outs[1])

    options = {"solver": "ddim", "steps": 10, "grid": "respaced", "guidance": 3.0, "cond": {"bias": 0.4}}
    mine = ds.sample(MODEL, noise=START, hook=ds.Clip(), **options)
    wanted = published("ddim", respaced([10]), lambda x: x.clamp(-1, 1), both)
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


def test_a_dynamic_threshold_has_a_largest_and_ends_within_the_bound():
    x = torch.tensor([[0.1, -0.2, 0.3], [3.0, -6.0, 9.0], [30.0, 60.0, -90.0]])
    clipped = ds.Clip(2.0, quantile=1.0, most=10.0).clipped(x)
    assert torch.equal(clipped[0], x[0])
    torch.testing.assert_close(clipped[1], x[1] * 2 / 9)
    torch.testing.assert_close(clipped[2], torch.tensor([2.0, 2.0, -2.0]))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.995, 1.0])
def test_quantiles_are_those_of_torch(share):
    rows = torch.randn(5, 193, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(quantile(rows, share), torch.quantile(rows, share, dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_dynamic_threshold_takes_half_precision(dtype):
    x = torch.tensor([[3.0, -6.0, 9.0]])
    clipped = ds.Clip(2.0, quantile=0.5).clipped(x.to(dtype))
    assert clipped.dtype == dtype
    torch.testing.assert_close(clipped, torch.tensor([[1.0, -2.0, 2.0]], dtype=dtype))


def test_a_dynamic_threshold_takes_no_samples_single_numbers_and_many():
    clip = ds.Clip(quantile=0.5)
    assert clip.clipped(torch.zeros(0, 2, 3)).shape == (0, 2, 3)
    assert torch.equal(clip.clipped(torch.tensor([0.5, -3.0])), torch.tensor([0.5, -1.0]))
    many = torch.full((2, 2**23 + 1), 4.0)  # more than torch.quantile takes
    assert torch.equal(clip.clipped(many), many / 4)


@pytest.mark.parametrize(("options", "says"), [
    ({"bound": 0}, "bound must be a finite number > 0, got 0"), ({"bound": math.inf}, "bound must be a finite number"),
    ({"quantile": 1.5}, "quantile must be a finite number >= 0 and <= 1, got 1.5"),
    ({"bound": 2.0, "most": 1.0}, "most must be a number >= bound=2.0, got 1.0"),
    ({"most": float("nan")}, "most must be a number >= bound=1.0, got nan"),
])  # fmt: skip
def test_thresholds_are_checked(options, says):
    with pytest.raises(ValueError, match=says):
        ds.Clip(**options)


@pytest.mark.parametrize(("sections", "steps", "says"), [
    ((4, 4), 9, r"steps must be 8, the sum of sections=\(4, 4\), got 9"),
    ((0, 4), 4, "sections must be an integer >= 1, got 0"),
    ((600, 4), 604, "sections must be at most the 500 rows of a section"),
])  # fmt: skip
def test_sections_are_checked(sections, steps, says):
    with pytest.raises(ValueError, match=says):
        ds.grids.named(f"respaced(sections={sections})")(PATH, steps)
    with pytest.raises(ValueError, match="sections must be empty but for the spacing 'respaced'"):
        ds.grids.Spaced("linspace", sections=(1, 2))


@pytest.mark.parametrize("options", [
    {"solver": ds.Adaptive()}, {"parallel": ds.Picard(4), "steps": 4}, {"gradient": "direct", "steps": 4},
])  # fmt: skip
def test_a_driver_that_takes_no_hook_says_so(options):
    with pytest.raises(ValueError, match="hook=.* cannot be given with"):
        ds.sample(MODEL, noise=START, hook=ds.Clip(), **options)
