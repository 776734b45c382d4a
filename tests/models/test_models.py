import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PATHS

import diffsolve as ds
from diffsolve import paths
from diffsolve.models import CLOCKS
from diffsolve.reference import mixture_model
from diffsolve.tableau.frames import FRAMES, PREDICTIONS, convert

NAMES = list(PREDICTIONS)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(PATHS), st.sampled_from(NAMES), st.sampled_from(NAMES), st.floats(0.02, 0.98), st.floats(0.1, 3.0)
)
def test_every_pair_of_predictions_round_trips(path, source, target, where, sigma_data):
    path = paths.named(path)
    p = path.nodes(path.t_noise + where * (path.t_last - path.t_noise))
    data, noise = 0.7, -1.3
    x = p.alpha * data + p.sigma * noise
    a, b = PREDICTIONS[source](p, sigma_data)
    out = a * data + b * noise
    to = convert(PREDICTIONS[target](p, sigma_data), (a, b), p.alpha, p.sigma)
    converted = to[0] * x + to[1] * out
    a_target, b_target = PREDICTIONS[target](p, sigma_data)
    condition = abs(to[0] * x) + abs(to[1] * out)
    np.testing.assert_allclose(converted, a_target * data + b_target * noise, rtol=1e-9, atol=1e-11 * condition)
    back = convert((a, b), PREDICTIONS[target](p, sigma_data), p.alpha, p.sigma)
    np.testing.assert_allclose(
        back[0] * x + back[1] * converted, out, rtol=1e-9, atol=1e-9 * (abs(back[0] * x) + abs(back[1] * converted))
    )


def test_definitions():
    """Each prediction against its defining formula, on numbers."""
    path, t, data, noise, sd = paths.VP(), 0.37, 0.7, -1.3, 0.5
    p = path.nodes(t)
    x = p.alpha * data + p.sigma * noise
    value = {name: float(a * data + b * noise) for name, (a, b) in ((n, PREDICTIONS[n](p, sd)) for n in NAMES)}
    assert value["score"] == pytest.approx(-noise / p.sigma)
    assert value["v"] == pytest.approx(p.alpha * noise - p.sigma * data)
    h = 1e-6
    x_at = lambda s: float(path.alpha(s)) * data + float(path.sigma(s)) * noise  # noqa: E731
    assert value["velocity"] == pytest.approx((x_at(t + h) - x_at(t - h)) / (2 * h), rel=1e-7)
    rho = p.sigma / p.alpha
    skip, out = sd**2 / (rho**2 + sd**2), rho * sd / math.sqrt(rho**2 + sd**2)
    assert value["edm"] == pytest.approx((data - skip * x / p.alpha) / out)


def test_frames_are_what_their_table_says():
    """d is the derivative of z = x / c by v along a fixed (x_0, eps), and slope that of v by theta."""
    path, t, h = paths.VP(), np.array([0.2, 0.5, 0.8]), 1e-6
    for frame in FRAMES.values():
        left, p, right = path.nodes(t - h), path.nodes(t), path.nodes(t + h)
        for data, noise in ((1.0, 0.0), (0.0, 1.0)):
            z = [(q.alpha * data + q.sigma * noise) / frame.c(q) for q in (left, right)]
            a, b = frame.d(p)
            slope = (z[1] - z[0]) / (frame.v(right) - frame.v(left))
            np.testing.assert_allclose(a * data + b * noise, slope, rtol=1e-7, atol=1e-7, err_msg=frame.name)
        theta = [np.arctan2(q.sigma, q.alpha) for q in (left, right)]
        slope = (frame.v(right) - frame.v(left)) / (theta[1] - theta[0])
        np.testing.assert_allclose(frame.slope(p), slope, rtol=1e-6, err_msg=frame.name)
        np.testing.assert_allclose(frame.time(path, frame.v(p)), t, rtol=1e-10, err_msg=frame.name)


@pytest.mark.product({"predicts": list(NAMES), "path": ["edm", "vp", "condot", "ddpm"]}, each=2)
def test_a_model_converts_its_network(path, predicts, mixture):
    path = paths.named(path)
    model = mixture_model(mixture, path, predicts)
    x = torch.randn(5, 2, dtype=torch.float64)
    t = path.t_noise + torch.linspace(0.1, 0.9, 5, dtype=torch.float64) * (path.t_last - path.t_noise)
    data, noise = mixture.expectations(x, path.alpha(t), path.sigma(t))
    column = lambda w: w[:, None]  # noqa: E731
    torch.testing.assert_close(model.denoised(x, t), data, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.noise(x, t), noise, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.score(x, t), mixture.score(x, path.alpha(t), path.sigma(t)), rtol=1e-8, atol=1e-8)
    da, dsig = path.derivatives(t)
    torch.testing.assert_close(model.velocity(x, t), column(da) * data + column(dsig) * noise, rtol=1e-7, atol=1e-7)
    one = model.denoised(x[:1], float(t[0]))
    torch.testing.assert_close(one, data[:1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("path", "t", "source", "target"),
    [
        ("condot", 0.0, "noise", "denoised"),
        ("condot", 0.0, "score", "velocity"),
        ("condot", 1.0, "denoised", "noise"),
        ("condot", 1.0, "denoised", "score"),
        ("condot", 1.0, "v", "score"),
        ("ddpm(zero_terminal_snr=True)", 999.0, "noise", "v"),
        ("vp", 0.0, "noise", "velocity"),
    ],
)
def test_undetermined_is_an_error(path, t, source, target):
    model = ds.adapt(lambda x, t: x, path, source)
    with pytest.raises(ValueError, match=f"predicts '{source}' does not determine '{target}'"):
        model.predict(target, torch.zeros(3, 2), t)


def test_determined_at_the_ends():
    for predicts in ("velocity", "v"):
        model = ds.adapt(lambda x, t: -x, "condot", predicts)
        for t in (0.0, 1.0):
            assert model.determined(t)
            assert model.denoised(torch.ones(2, 3), t).isfinite().all()
    assert ds.adapt(lambda x, t: x, "condot", "denoised").determined(0.0)
    assert not ds.adapt(lambda x, t: x, "condot", "denoised").determined(1.0)
    assert not ds.adapt(lambda x, t: x, "condot", "noise").determined(0.0)
    assert not ds.adapt(lambda x, t: x, "edm", "noise").determined(0.0)


def test_clocks():
    heard = []

    def net(x, t):
        heard.append(t.clone())
        return x

    path = paths.named("ddpm")
    rho = path.rho(250.25)
    expected = {
        "t": 250.25, "1-t": -249.25, "1000t": 250250.0, "index": 250.0, "sigma": path.sigma(250.25), "rho": rho,
        "c_noise": rho.log() / 4, "lambda": path.lam(250.25),
    }  # fmt: skip
    assert set(expected) == set(CLOCKS)
    for name, value in expected.items():
        ds.adapt(net, path, "noise", clock=name)(torch.zeros(3, 2), 250.25)
        torch.testing.assert_close(heard[-1], torch.full((3,), float(value)))
    ds.adapt(net, path, "noise", clock=lambda t: t / 1000)(torch.zeros(2, 2), torch.tensor([100.0, 300.0]))
    torch.testing.assert_close(heard[-1], torch.tensor([0.1, 0.3]))


class Half(torch.nn.Module):
    """A network in bf16 that remembers what it was given."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2).to(dtype)
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.dtype, t.clone()))
        return self.linear(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_network_in_another_precision(dtype):
    net, full = Half(dtype), Half(torch.float32)
    for network in (net, full):
        x = ds.sample(ds.adapt(network, "edm", "denoised"), (3, 2), solver="unipc-2", nfe=6, seed=0)
        assert x.dtype == (torch.float64 if dtype == torch.float64 and network is net else torch.float32)
        assert x.isfinite().all()
    for (seen, t), (_, t_full) in zip(net.seen, full.seen, strict=True):
        assert seen == dtype
        assert t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(t.float(), t_full)  # the time never passes through half precision


def test_raw_edm_network_is_its_denoiser(mixture):
    """A raw network F behind EDM's preconditioning, used raw and wrapped as its authors do."""
    sd = 0.8
    weight = torch.randn(2, 2, dtype=torch.float64)
    raw = lambda x, c: torch.tanh(x @ weight) + c[:, None]  # noqa: E731

    def wrapped(x, sigma):  # Karras et al., eq. 7
        s = sigma[:, None]
        skip, out, scale = sd**2 / (s**2 + sd**2), s * sd / (s**2 + sd**2).sqrt(), 1 / (s**2 + sd**2).sqrt()
        return skip * x + out * raw(scale * x, sigma.log() / 4)

    a = ds.adapt(raw, "edm", "edm", sigma_data=sd)
    b = ds.adapt(wrapped, "edm", "denoised")
    x = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(a.denoised(x, 3.0), b(x, 3.0))
    for solver in ("heun", "dpmpp-3m", "unipc-3", "euler(frame='noise')"):
        one, two = (ds.sample(m, noise=80 * x, solver=solver, steps=7) for m in (a, b))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.adapt(3, "edm", "noise"), "net must be a callable .*, got 3"),
        (lambda: ds.adapt(len, "edm", "eps"), "predicts must be 'denoised', 'noise', 'score', .*, got 'eps'"),
        (lambda: ds.adapt(len, "edm", "denoised", learned="eps"), "learned must be 'denoised', .*, got 'eps'"),
        (lambda: ds.adapt(len, learned="noise"), "path and predicts must be given .*learned='noise'"),
        (lambda: ds.adapt(len, "edn", "noise"), "path must be one of .*, got 'edn'; did you mean 'edm'"),
        (lambda: ds.adapt(len, "edm", "noise", clock="tt"), "clock must be .*, got 'tt'"),
        (lambda: ds.adapt(len, "edm", "noise", clock=4), "clock must be .*, got 4"),
        (lambda: ds.adapt(len, "edm", "edm", sigma_data=0), "sigma_data must be a finite number > 0, got 0"),
        (lambda: ds.adapt(len, "edm", "noise", dtype=torch.int32), "dtype must be .*, got torch.int32"),
        (
            lambda: ds.adapt(lambda x, t: x, "edm", "noise").predict("eps", torch.ones(1, 2), 1.0),
            "what must be .*, got 'eps'",
        ),
        (
            lambda: ds.adapt(lambda x, t: x, "edm", "noise").noise(torch.ones(3, 2), torch.ones(2)),
            r"t must have shape .*, got shape \(2,\)",
        ),
        (
            lambda: ds.adapt(lambda x, t: x[:1], "edm", "noise").noise(torch.ones(3, 2), 1.0),
            r"output of net must have the shape of x, .*, got shape \(1, 2\)",
        ),
        (
            lambda: ds.adapt(lambda x, t: (x,), "edm", "noise").noise(torch.ones(3, 2), 1.0),
            r"output of net must be a tensor of shape \(3, 2\), got tuple; output= of ds.adapt takes the pred",
        ),
        (
            lambda: ds.adapt(lambda x, t: x.int(), "edm", "noise").noise(torch.ones(3, 2), 1.0),
            "output of net must have a floating dtype",
        ),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("eps", "noise"),
        ("epsilon", "noise"),
        ("x0", "denoised"),
        ("sample", "denoised"),
        ("flow", "velocity"),
        ("v_prediction", "v"),
        ("V_Prediction", "v"),
    ],
)
def test_other_libraries_names_of_predictions_suggest_the_ones_here(name, meant):
    model = ds.load("mixture-2d")
    x = torch.zeros(1, 2)
    for refused in (
        lambda: ds.adapt(lambda x, t: x, "condot", name),
        lambda: model.predict(name, x, 0.5),
        lambda: ds.plan("condot", nfe=3, predicts=name),
        lambda: ds.begin(model, (1, 2), nfe=3, prediction=name),
        lambda: ds.plan("condot", nfe=3).amplification(predicts=name),
        lambda: ds.load(f"mixture-2d(predicts={name!r})"),
    ):
        with pytest.raises(ValueError, match=f"must be .*'noise'.*, got '{name}'; did you mean '{meant}'"):
            refused()
