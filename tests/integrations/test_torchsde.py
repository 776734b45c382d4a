"""torchsde integrates our models with our noise, and its noise serves where ours does."""

import math

import numpy as np
import pytest
import torch
import torchsde
from scipy import stats
from torch import nn

import diffsolve as ds
from diffsolve.integrations.torchsde import SDE, BrownianAdapter
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture

MEAN, STD = 0.7, 0.4
SPANS = {"condot": (0.2, 0.97), "rectified": (0.8, 0.03), "vp": (0.9, 0.05), "edm": (5.0, 0.1), "cosine": (0.9, 0.1)}
PREDICTS = ["velocity", "noise", "denoised", "score", "v"]


def gaussian(path, predicts="velocity"):
    return mixture_model(GaussianMixture.isotropic(torch.tensor([[MEAN]]), STD), path, predicts)


def marginal(path, t):
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


@pytest.mark.product({"path": list(SPANS), "tau": [0.0, 0.5, 1.0, 2.0]})
def test_the_moments_of_the_sde_are_those_of_the_path(path, tau):
    """On Gaussian data the drift is A x + b: dm = (A m + b) ds, dV = (2 A V + g^2) ds, solved by fine RK4."""
    for predicts in PREDICTS if tau == 1 and path in ("condot", "edm") else PREDICTS[:1]:
        model = gaussian(path, predicts)
        sde = model.as_sde(tau)
        start, stop = sde.span(*SPANS[path]).tolist()
        one = torch.ones(1, 1, dtype=torch.float64)

        def slope(s, moments, sde=sde, one=one):
            b = float(sde.f(s, 0 * one))
            a = float(sde.f(s, one)) - b
            return np.array([a * moments[0] + b, 2 * a * moments[1] + float(sde.g(s, one)) ** 2])

        m, n = np.array(marginal(model.path, SPANS[path][0])), 48
        times = np.geomspace(1, 1 + (stop - start), n + 1) - 1 + start
        if path == "edm":
            times = -np.geomspace(-start, -stop, n + 1)
        for s, t in zip(times, times[1:], strict=False):
            h = t - s
            k1 = slope(s, m)
            k2 = slope(s + h / 2, m + h / 2 * k1)
            k3 = slope(s + h / 2, m + h / 2 * k2)
            m = m + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(t, m + h * k3))
        np.testing.assert_allclose(m, marginal(model.path, SPANS[path][1]), rtol=1e-3)


def test_euler_is_the_plain_loop_on_an_image_with_our_noise():
    mixture = GaussianMixture.isotropic(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 0.5)
    model = mixture_model(mixture, "rectified", "velocity")
    sde = model.as_sde(0.7, shape=(2, 2, 2))
    x = ds.Key(0).normal((5, 2, 2, 2), dtype=torch.float64) * 0.8
    span = sde.span(0.9, 0.1)
    w = ds.Brownian((5, 8), 1, t0=-0.9, dtype=torch.float64)
    found = torchsde.sdeint(sde, sde.flatten(x), span, bm=w, dt=0.1, method="euler")
    loop, s = x, -0.9
    for _ in range(8):
        t, h = -s, 0.1
        score = model.score(loop, t)
        g2 = 2 * t * (t / (1 - t) + 1)  # of alpha = 1 - t, sigma = t
        noise = ds.Brownian((5, 2, 2, 2), 1, t0=-0.9, dtype=torch.float64)(s, s + h)
        loop = loop + h * (-model.velocity(loop, t) + 0.49 * g2 / 2 * score) + 0.7 * math.sqrt(g2) * noise
        s += h
    assert (sde.unflatten(found[-1]) - loop).abs().max() < 1e-10
    assert sde.unflatten(found).shape == (2, 5, 2, 2, 2)
    half = torchsde.sdeint(sde, sde.flatten(x).float(), span.float(), bm=ds.Brownian((5, 8), 1, t0=-0.9), dt=0.1,
                           method="euler")  # fmt: skip
    assert half.dtype == torch.float32
    assert (half[-1].double() - found[-1]).abs().max() < 2e-3  # the path at times rounded to float32


@pytest.mark.parametrize("bm", ["ours", "theirs"])
def test_samples_have_the_law_of_the_data(bm):
    model = gaussian("vp")
    sde = model.as_sde(1.0)
    n, span = 10_000, sde.span(0.9, 0.02)
    start = marginal(model.path, 0.9)
    x = start[0] + math.sqrt(start[1]) * ds.Key(0).normal((n, 1))
    w = {
        "ours": lambda: ds.Brownian((n, 1), 5, t0=-0.9),
        "theirs": lambda: torchsde.BrownianInterval(-0.9, -0.01, size=(n, 1), entropy=1),
    }[bm]()
    y = torchsde.sdeint(sde, x, span.float(), bm=w, dt=0.01, method="euler")[-1]
    mean, variance = marginal(model.path, 0.02)
    assert stats.kstest(((y - mean) / math.sqrt(variance)).flatten().numpy(), "norm").statistic < 0.025


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 16), nn.Linear(16, 3)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.5 * ds.Key(i).normal((p.numel(),)).view_as(p))

    def forward(self, x, t, shift=0.0):
        return self.out(torch.tanh(self.hidden(torch.cat([x, t[:, None]], 1)))) + shift


def test_the_adjoint_gives_the_gradients():
    net = Net().double()
    shift = torch.tensor(0.3, dtype=torch.float64)
    model = ds.adapt(net, "condot", "velocity")
    sde = SDE(model, 0.6, cond={"shift": shift}, sde_type="stratonovich")
    assert list(sde.parameters())
    x = ds.Key(0).normal((4, 3), dtype=torch.float64)

    def gradients(integrate, dt, **options):
        start = x.clone().requires_grad_()
        w = ds.Brownian((4, 3), 7, t0=0.3, dtype=torch.float64)
        y = integrate(sde, start, sde.span(0.3, 0.8), bm=w, dt=dt, **options)[-1]
        return torch.cat([g.flatten() for g in torch.autograd.grad((y**2).sum(), [start, *net.parameters()])])

    coarse, fine = (
        (
            gradients(torchsde.sdeint, dt, method="midpoint")
            - gradients(torchsde.sdeint_adjoint, dt, method="midpoint", adjoint_method="midpoint")
        ).norm()
        / gradients(torchsde.sdeint, dt, method="midpoint").norm()
        for dt in (0.05, 0.00625)
    )
    assert fine < 5e-3
    assert fine < coarse / 2


def test_their_interval_where_ours_is_expected():
    bm = torchsde.BrownianInterval(0.0, 2.0, size=(3, 4), entropy=0)
    path = BrownianAdapter(bm, shape=(3, 2, 2))
    w = path(0.5, 1.5)
    assert w.shape == path.shape == (3, 2, 2)
    assert torch.equal(w.reshape(3, 4), bm(0.5, 1.5))
    assert torch.equal(path(1.5, 0.5), -w)
    assert path([0.1, 0.2], [0.4, 0.9]).shape == (2, 3, 2, 2)
    torch.testing.assert_close(path.normal_between(0.5, 1.0), path(0.5, 1.0) / math.sqrt(0.5))
    several = path.normal_between([0.1, 0.2], [0.4, 0.9])
    torch.testing.assert_close(several[1], path(0.2, 0.9) / math.sqrt(0.7))
    wide = BrownianAdapter(torchsde.BrownianInterval(0.0, 2.0, size=(200, 50), entropy=1)).normal_between(0.2, 0.9)
    assert stats.kstest(wide.flatten().numpy(), "norm").pvalue > 1e-3
    with pytest.raises(ValueError, match="s and t must be different"):
        path.normal_between(0.5, 0.5)
    with pytest.raises(ValueError, match=r"\(5,\)"):
        BrownianAdapter(bm, shape=(5,))


def test_errors():
    model = gaussian("condot")
    for make, words in [
        (lambda: model.as_sde(-1.0), "tau must be .*, got -1.0"),
        (lambda: model.as_sde(sde_type="backward"), "'stratonovich'"),
        (lambda: model.as_sde().span(0.8, 0.2), "noisier"),
        (lambda: model.as_sde().span(0.2, 1.2), r"start and stop must be from .*, got \(0.2, 1.2\)"),
        (lambda: model.as_sde(shape=(2,)).flatten(torch.ones(1, 3)), r"\(1, 3\)"),
        (lambda: model.as_sde().f(0.0, torch.ones(1, 1)), "drift at tau=1"),
        (lambda: model.as_sde().g(0.0, torch.ones(1, 1)), "diffusion at tau=1"),
        (lambda: torchsde.sdeint(model.as_sde(), torch.ones(2, 1), [0.1, 0.2], bm=ds.Brownian((2, 1), 0)), "evy"),
    ]:
        with pytest.raises(ValueError, match=words):
            make()
    with pytest.raises(TypeError, match="cond must be a mapping of keyword arguments, got 3"):
        model.as_sde(cond=3)
    assert model.as_sde(0.0).f(0.0, torch.ones(1, 1)).isfinite().all()
    assert model.as_sde(0.0).g(0.0, torch.ones(1, 1)) == 0
