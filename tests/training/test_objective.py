"""The objective: its minimum is the posterior mean, for every prediction, path and weight."""

import itertools
import math

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve import training
from diffsolve.paths import Position
from diffsolve.tableau.frames import PREDICTIONS
from diffsolve.training import laws, weights

S = 0.36  # the variance of the data
KINDS = [
    ("condot", "velocity"), ("condot", "v"), ("ddpm", "noise"), ("ddpm", "v"), ("edm", "denoised"), ("edm", "edm"),
    ("ve", "score"), ("vp", "score"), ("cosine", "v"), ("vp", "velocity"),
]  # fmt: skip
WEIGHTS = ["none", "snr", "min-snr(gamma=3)", "edm", "sigmoid(bias=-1)"]
B = 8000


def data(count=B, *event):
    return math.sqrt(S) * torch.randn(count, *event, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Linear(torch.nn.Module):
    """The best network for N(0, S), times 1 + theta."""

    def __init__(self, path, predicts, theta=0.0):
        super().__init__()
        self.path, self.predicts = ds.paths.named(path), predicts
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def gain(self, p):
        a, b = PREDICTIONS[self.predicts](p, 0.5)
        return (a * p.alpha * S + b * p.sigma) / (p.alpha**2 * S + p.sigma**2)

    def forward(self, x, t):
        p = self.path.at((4 * t).exp() if self.predicts == "edm" else t)
        if self.predicts == "edm":  # sees c_in x and log(sigma) / 4
            x = x * (p.sigma**2 + 0.25).sqrt().view(-1, *[1] * (x.dim() - 1))
        return (1 + self.theta) * self.gain(p).view(-1, *[1] * (x.dim() - 1)) * x


def model_of(path, predicts, theta=0.0):
    return ds.adapt(Linear(path, predicts, theta).double(), path, predicts, dtype=torch.float64)


@pytest.mark.parametrize(("path", "predicts"), KINDS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_minimum_is_the_posterior_mean(path, predicts, weight):
    """No gradient there, and the loss is w times the variance of a x_0 + b eps given x, to their standard errors."""
    model = model_of(path, predicts)
    loss, parts = training.objective(model, data(B, 1), seed=0, step=3, times="log-normal(mean=0)", weight=weight)
    p = model.path.at(parts.times)
    a, b = (torch.as_tensor(c).expand(B) for c in model.coefficients(p))
    w = weights.named(weight).of_output(p, a, b)
    variance = (a * p.sigma - b * p.alpha) ** 2 * S / (p.alpha**2 * S + p.sigma**2)
    off = loss - w * variance
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(B)
    slope = 2 * w[:, None] * (parts.output - parts.target) * parts.output
    (gradient,) = torch.autograd.grad(loss.mean(), list(model.net.parameters()))
    assert gradient == pytest.approx(float(slope.detach().mean()), rel=1e-9)
    assert abs(gradient) < 4 * slope.std() / math.sqrt(B)


@pytest.mark.parametrize(("path", "predicts"), KINDS)
def test_a_perturbed_optimum_descends_back(path, predicts):
    model = model_of(path, predicts, theta=0.4)
    optimizer = torch.optim.LBFGS(model.net.parameters(), line_search_fn="strong_wolfe")
    x0 = data(B, 2)

    def closure():
        optimizer.zero_grad()
        loss = training.objective(model, x0, seed=1, step=0, times="logit-normal")[0].mean()
        loss.backward()
        return loss

    before = closure().item()
    optimizer.step(closure)
    assert abs(model.net.theta.item()) < 0.05
    assert closure().item() < before


@pytest.mark.parametrize(
    ("predicts", "weight"), [*itertools.product(["noise", "v", "denoised", "velocity"], WEIGHTS[1:])]
)
def test_one_weight_is_one_loss_for_every_prediction(predicts, weight):
    """Of x_0's error: networks that are off by the same in x_0 have the same loss."""
    path = ds.paths.named("vp")

    def net(x, t):  # a guess of x_0, as whatever is predicted
        p = path.at(t)
        a, b = (torch.as_tensor(c).expand(len(x))[:, None] for c in PREDICTIONS[predicts](p, 0.5))
        x0 = torch.tanh(x)
        return a * x0 + b * (x - p.alpha[:, None] * x0) / p.sigma[:, None]

    model = ds.adapt(net, path, predicts, dtype=torch.float64)
    x0 = data(64, 3)
    loss, parts = training.objective(model, x0, seed=4, step=0, weight=weight)
    weighing = weights.named(weight)
    assert isinstance(weighing, training.DataWeight)
    w = weighing.of_data(path.at(parts.times))
    torch.testing.assert_close(loss, w * (torch.tanh(parts.x) - x0).square().mean(1), rtol=1e-8, atol=1e-12)


def test_a_batch_in_parts_is_the_batch():
    model = model_of("condot", "velocity")
    x0, how = data(10, 2, 2), {"seed": 5, "step": 7, "times": "logit-normal"}
    whole, parts = training.objective(model, x0, **how)
    split = [training.objective(model, x0[i : i + 5], index=i, **how) for i in (0, 5)]
    assert torch.equal(torch.cat([loss for loss, _ in split]), whole)
    assert torch.equal(torch.cat([part.x for _, part in split]), parts.x)
    assert not torch.equal(training.objective(model, x0, **{**how, "step": 8})[1].x, parts.x)
    assert not torch.equal(training.objective(model, x0, **{**how, "seed": 6})[1].times, parts.times)


def test_given_noise_makes_the_pairs():
    model = model_of("condot", "velocity")
    x0, other = data(6, 2), 3 + torch.rand(6, 2, dtype=torch.float64)
    _, parts = training.objective(model, x0, noise=other, seed=0, step=0)
    t = parts.times[:, None]
    torch.testing.assert_close(parts.x, t * x0 + (1 - t) * other)
    torch.testing.assert_close(parts.target, x0 - other)


def test_conditions_are_dropped_at_their_rate_and_alike_on_every_rank():
    seen = []

    def net(x, t, label, image, scale=1.0):
        seen.append((label, image))
        return x * scale

    model = ds.adapt(net, "condot", "velocity")
    x0, label, image = torch.randn(4000, 2), torch.arange(4000) % 10, torch.ones(4000, 2)
    cond = {"label": label, "image": image, "scale": 2.0}
    how = {"seed": 1, "step": 2, "drop": 0.2, "uncond": {"label": 10, "image": torch.zeros(4000, 2)}}
    training.objective(model, x0, cond=cond, **how)
    dropped = seen[-1][0] == 10
    assert 0.17 < dropped.float().mean() < 0.23
    assert torch.equal(seen[-1][0][~dropped], label[~dropped])
    assert torch.equal(seen[-1][1][:, 0] == 0, dropped)
    part = {name: value[3000:] if torch.is_tensor(value) else value for name, value in cond.items()}
    how["uncond"] = {"label": 10}
    training.objective(model, x0[3000:], cond=part, index=3000, **how)
    assert torch.equal(seen[-1][0], torch.where(dropped, 10, label)[3000:])
    assert seen[-1][1].all()


@pytest.mark.parametrize("path", ["condot", "edm", "ddpm", "ve", "vp", "cosine", "ddpm(zero_terminal_snr=True)"])
@pytest.mark.parametrize("law", ["uniform-t", "uniform-lambda", "karras", "log-normal", "logit-normal(std=2.0)"])
def test_times_are_those_of_the_law(path, law):
    where = ds.paths.named(path)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    t = laws.named(law)(u, where)
    low, high = sorted((where.t_noise, where.t_last))
    assert ((t >= low) & (t <= high)).all()
    assert (t.diff() * (where.t_data - where.t_noise) >= 0).all()  # from the noise to the data
    lam = where.lam(t)
    if where.integer:
        assert torch.equal(t, t.round())
        if law == "uniform-t":
            assert t.unique(return_counts=True)[1].tolist() == [2] * 1000
    elif law == "log-normal":
        middle = lam[(t > low) & (t < high)]
        assert float(middle.median()) == pytest.approx(1.2, abs=0.2)
        assert float((lam < 1.2).double().mean()) == pytest.approx(0.5, abs=0.01)
    elif law == "uniform-t":
        np.testing.assert_allclose(t.diff().abs(), (high - low) / 2000, rtol=1e-6)


def test_the_times_of_a_batch_are_spread_evenly():
    _, parts = training.objective(model_of("condot", "velocity"), data(144, 1), seed=0, step=0)
    gaps = parts.times.sort().values.diff()
    assert gaps.max() < 3 / 144
    assert gaps.min() > 0.3 / 144


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"times": "uniform-x"}, "law of times must be one of"),
        ({"times": "trailing"}, "grid must be a grid that is even in some variable"),
        ({"weight": "min-snr(gamma=0)"}, "gamma must be a finite number > 0, got 0"),
        ({"drop": 0.1}, "uncond must be given with drop=0.1"),
        ({"drop": 2}, "drop must be a finite number >= 0 and <= 1, got 2"),
        ({"noise": torch.ones(2)}, r"noise must be a tensor of the shape of x0, \(4, 2\)"),
        ({"step": -1}, "step must be an integer"),
        ({"x0": torch.ones(4, 2, dtype=torch.int64)}, "x0 must be a floating tensor"),
        ({"x0": torch.ones(0, 2)}, "x0 must be of shape"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be a Model"),
        ({"drop": 0.5, "cond": {"k": 1.0}, "uncond": {"k": 0.0}}, r"cond\['k'\] must be a tensor of 4 rows"),
        ({"drop": 0.5, "uncond": {"k": 0.0}}, r"cond\['k'\] must be a tensor of 4 rows, .* got None"),
        ({"index": -1}, "index must be an integer >= 0, got -1"),
    ],
)
def test_errors_name_what_is_wrong(options, says):
    given = {"model": model_of("condot", "velocity"), "x0": torch.ones(4, 2), "seed": 0, "step": 0, **options}
    model, x0 = given.pop("model"), given.pop("x0")
    with pytest.raises((ValueError, TypeError), match=says):
        training.objective(model, x0, **given)


def test_half_precision_data_has_a_loss_in_float32():
    model = ds.adapt(lambda x, t: 0.5 * x, "condot", "velocity")
    loss, _ = training.objective(model, torch.ones(3, 2, dtype=torch.bfloat16), seed=0, step=0)
    assert loss.dtype == torch.float32
    one = training.objective(model, torch.ones(3), seed=0, step=0)[0]
    assert one.shape == (3,)


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        ("snr", 4.0),
        ("min-snr(gamma=3)", 3.0),
        ("min-snr(gamma=9)", 4.0),
        ("edm(sigma_data=0.25)", (0.5**2 + 0.25**2) / (0.5 * 0.25) ** 2),
        ("sigmoid(bias=-1)", 4.0 / (1 + math.exp(1 + math.log(4)))),
    ],
)
def test_weights_are_those_of_their_papers(weight, value):
    """Of x_0's error at alpha = .8, sigma = .4: rho = 1/2, SNR = 4."""
    p = Position(*(torch.tensor([v], dtype=torch.float64) for v in (0.5, 0.8, 0.4, 0.0, 0.0)))
    assert float(weights.named(weight).of_data(p)) == pytest.approx(value)
    noise = weights.named(weight).of_output(p, torch.zeros(1), torch.ones(1))
    assert float(noise) == pytest.approx(value / 4)  # an error of the noise is half of that of x_0 there
