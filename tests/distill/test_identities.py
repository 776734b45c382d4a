"""On Gaussian data the flow map is known: every loss has its known minimum there, no gradient, and leads back to it."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support.flowmaps import VARIANCES, flow, flow_map, std

from diffsolve import distill
from diffsolve.paths import Custom
from diffsolve.tableau.frames import FRAMES, convert

LAM = torch.tensor(VARIANCES, dtype=torch.float64)
METHODS = {
    "guided": lambda teacher: distill.guided(teacher, low=1.0, high=1.0),
    "progressive": lambda teacher: distill.progressive(teacher, solver="flow-map"),
    "consistency": lambda teacher: distill.consistency(teacher, solver="flow-map"),
    "shortcut": lambda teacher: distill.shortcut(source="teacher", teacher=teacher),
    "ayf": distill.ayf,
    "lagrangian": distill.lagrangian,
    "scd": lambda teacher: distill.scm(teacher, warmup=0),
    "self": lambda teacher: replace(distill.ayf(teacher), source="self", teacher=None),
}
"""Those whose minimum is 0, with an exact teacher."""


@dataclass(frozen=True)
class Fixed(distill.Stretches):
    """Stretches given as shares of the way from pure noise to the data in the angle."""

    shares: tuple

    def draw(self, u, path, step):
        angle = (1 - np.array(self.shares)) * np.pi / 2
        times = np.where(angle == 0, path.t_data, path.time(-np.log(np.tan(np.maximum(angle, 1e-3)))).numpy())
        return np.tile(times, (len(u) // len(times), 1))


PARTS = Fixed(((0.2, 0.5, 0.8), (0.1, 0.3, 0.4), (0.6, 0.7, 0.9)))
ENDS = Fixed(((0.2, 0.5, 1), (0.1, 0.3, 1), (0.6, 0.7, 1)))


class Perturbed(torch.nn.Module):
    """The exact network plus theta x."""

    def __init__(self, model):
        super().__init__()
        self.exact, self.theta = model.net, torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x, *times, **cond):
        return self.exact(x, *times) + self.theta * x


def points():
    """(x_0, eps), (12, 3), whose means of products are those of the data and the noise: averages over them are exact.

    Three stretches see the same four points.
    """
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64).repeat_interleave(3, 0)
    return LAM.sqrt() * signs[:, :1], signs[:, 1:].expand(12, 3).contiguous()


def student(path, predicts="v", jumps="straight"):
    exact = flow_map(path, predicts, jumps)
    return replace(exact, net=Perturbed(exact))


def value(loss, model, **options):
    x0, noise = points()
    losses, parts = loss(model, x0, noise=noise, seed=0, step=3, **options)
    assert losses.shape == (12,)
    return losses, parts


def gradient(loss, model):
    losses, _ = value(loss, model)
    (grad,) = torch.autograd.grad(losses.mean(), model.net.theta)
    return grad


JUMPS = ["straight", "denoised", "trig", "native"]
PATHS = ["condot", "vp", "edm", "rectified"]
TRIG = Custom(torch.cos, torch.sin, math.pi / 2, 0.0, regular=True)
"""TrigFlow, the path of sCM."""


def loss_of(method, path, stretches=PARTS):
    loss = METHODS[method](flow_map(path, "denoised", "straight"))
    if method == "guided":
        stretches = replace(PARTS, shares=tuple((t, t, t) for t, _, _ in PARTS.shares))
    return replace(loss, stretches=stretches, metric=distill.Squared(), weight="none")


@pytest.mark.product({"method": list(METHODS), "jumps": JUMPS, "path": PATHS}, each=2)
def test_the_exact_map_is_the_minimum(method, jumps, path):
    loss, model = loss_of(method, path), student(path, "v", jumps)
    losses, parts = value(loss, model)
    assert losses.max() < 1e-6
    assert torch.allclose(parts.output, parts.target, atol=1e-6)
    assert gradient(loss, model).abs().max() < 1e-6
    if method != "self":  # any map of a flow of its own is a minimum there
        model.net.theta.data.fill_(0.05)
        assert value(loss, model)[0].mean() > 1e-5


@pytest.mark.parametrize(("method", "path"), list(zip(METHODS, PATHS * 2, strict=True)))
def test_descent_leads_back(method, path):
    """With part of the batch on the diagonal, which anchors what learns from itself."""
    if method == "self":
        return
    anchored = Fixed(((0.2, 0.2, 0.2), (0.1, 0.3, 0.4), (0.6, 0.6, 0.6)))
    loss = loss_of(method, path, anchored if method == "shortcut" else PARTS)
    loss, model = replace(loss, measure="output"), student(path)
    model.net.theta.data.fill_(0.05)
    _, parts = value(loss, model)
    for _ in range(8):
        model.net.theta.data -= 0.4 * gradient(loss, model) / (parts.x.square().mean(0) * 2 / 3)
    assert model.net.theta.abs().max() < 0.03


@pytest.mark.parametrize("path", ["condot", TRIG, "edm"])
@pytest.mark.parametrize("method", ["consistency", "progressive", "scd", "shortcut"])
def test_to_the_data_itself(method, path):
    """Where frames with c = 0 or v infinite are left out."""
    loss = METHODS[method](flow_map(path, "denoised", "straight"))
    loss = replace(loss, stretches=ENDS, metric=distill.Squared(), weight="none")
    model = student(path)
    assert value(loss, model)[0].max() < 1e-6
    assert gradient(loss, model).abs().max() < 1e-6
    model.net.theta.data.fill_(0.05)
    assert value(loss, model)[0].mean() > 1e-5


@pytest.mark.parametrize("path", ["condot", "vp", "edm"])
@pytest.mark.parametrize(
    ("jumps", "frame"), [("straight", None), ("trig", None), ("straight", "noise"), ("native", "trig")]
)
def test_from_data_the_minimum_is_the_variance_of_the_velocity(path, jumps, frame):
    """R = (dz_s/dz_t) (what the sample's own pair predicts, less its mean given x_t)."""
    loss = distill.Distillation(distill.Eulerian(frame), PARTS)
    model = student(path, "v", jumps)
    losses, parts = value(loss, model)
    use = FRAMES[frame or jumps]
    p, q = model.path.at(parts.t), model.path.at(parts.s)
    stretch = (std(model.path, parts.s) / use.c(q)[:, None]) / (std(model.path, parts.t) / use.c(p)[:, None])
    a, b = model.coefficients(p)
    left = ((a * p.sigma - b * p.alpha)[:, None]) ** 2 * LAM / std(model.path, parts.t) ** 2
    wanted = (stretch**2 * left).mean(1)
    mean = losses.view(4, 3).mean(0)
    assert torch.allclose(mean, wanted[:3], rtol=1e-6)
    assert gradient(loss, model).abs().max() < 1e-6
    if frame is None and jumps == "straight":
        meanflow = replace(distill.meanflow(), stretches=PARTS, metric=distill.Squared())
        assert torch.equal(value(meanflow, model)[0], losses)


def test_scm_from_data():
    loss = replace(distill.scm(warmup=0), stretches=ENDS, metric=distill.Squared())
    model = student(TRIG)
    losses, parts = value(loss, model)
    p = model.path.at(parts.t)
    stretch = std(model.path, parts.s) / (std(model.path, parts.t) / p.alpha[:, None])
    wanted = (stretch**2 * LAM / std(model.path, parts.t) ** 2).mean(1)  # (a sigma - b alpha)^2 of v is 1
    assert torch.allclose(losses.view(4, 3).mean(0), wanted[:3], rtol=1e-6)
    assert gradient(loss, model).abs().max() < 1e-6
    # F* = F + cos(t) df/dt of the paper (eq. 8), by finite differences of f = cos(t) x - sin(t) F.
    x0, noise = points()
    h = 1e-5

    def f(angle):
        x = torch.cos(angle)[:, None] * x0 + torch.sin(angle)[:, None] * noise
        return model.jump(x, angle, 0.0)

    angle = parts.t
    slope = (f(angle + h) - f(angle - h)) / (2 * h)
    assert torch.allclose(parts.target - parts.output, torch.cos(angle)[:, None] * slope, atol=1e-6)


def test_consistency_training_from_data_has_its_own_minimum():
    """At a finite gap E[x_m | x_t] is off the flow: the loss and its gradient at the exact map are as they must be."""
    loss = replace(distill.ect(), stretches=ENDS, metric=distill.Squared(), gap=0.0)
    model = student("edm")
    losses, parts = value(loss, model)
    path = model.path
    t, m, s = (std(path, time) for time in (parts.t, parts.m, parts.s))
    p, q = path.at(parts.t), path.at(parts.m)
    together = (p.alpha * q.alpha)[:, None] * LAM + (p.sigma * q.sigma)[:, None]
    correlation = together / (t * m)
    wanted = (2 * s**2 * (1 - correlation)).mean(1)
    assert torch.allclose(losses.view(4, 3).mean(0), wanted[:3], rtol=1e-6)
    on_out = model.landing(p, path.at(parts.s))[1]
    slopes = 2 * on_out[:, None] * s * t * (1 - correlation)
    assert torch.allclose(gradient(loss, model), slopes.mean(0) / 3, rtol=1e-6)
    # The gap's weight, and that the neighbours share their noise.
    with_gap = value(replace(loss, gap=2.0), model)[0]
    angle = torch.atan2(p.sigma, p.alpha) - torch.atan2(q.sigma, q.alpha)
    assert torch.allclose(with_gap, losses / angle**2, rtol=1e-9)


def test_warmup_begins_at_the_velocity():
    teacher = flow_map(TRIG, "v", "straight")
    loss = replace(distill.scm(teacher, warmup=12), stretches=ENDS, metric=distill.Squared())
    model = student(TRIG)
    _, half = value(loss, model)  # at update 3 of 12
    _, whole = value(replace(loss, identity=replace(loss.identity, warmup=0)), model)
    x = half.x
    now = teacher(x, half.t)  # its prediction at t
    assert torch.allclose(half.target, 0.25 * whole.target + 0.75 * now, atol=1e-9)


@pytest.mark.parametrize("identity", [distill.Eulerian(), distill.Lagrangian()])
def test_differences_in_the_place_of_a_derivative(identity):
    teacher = flow_map("condot", "velocity", "straight")
    loss = distill.Distillation(identity, PARTS, source="teacher", teacher=teacher)
    model = student("condot", "velocity")
    model.net.theta.data.fill_(0.1)
    forward = value(loss, model)[1]
    differs = value(replace(loss, identity=replace(identity, derivative="difference")), model)[1]
    assert torch.allclose(forward.target, differs.target, atol=1e-5)
    assert not torch.equal(forward.target, differs.target)


@pytest.mark.parametrize(("path", "jumps"), [("edm", "straight"), ("vp", "trig")])
@pytest.mark.parametrize("kind", ["eulerian", "lagrangian"])
def test_away_from_the_optimum_the_targets_are_as_the_identities_say(kind, path, jumps):
    """D* = d + (v_s - v_t) dD/dv_t along the flow, and d(X, s) - (v_s - v_t) dD/dv_s, by differences in D itself."""
    teacher = flow_map(path, "denoised", "straight")
    identity = distill.Eulerian() if kind == "eulerian" else distill.Lagrangian()
    model = student(path, "v", jumps)
    model.net.theta.data.fill_(0.2)
    _, parts = value(distill.Distillation(identity, PARTS, source="teacher", teacher=teacher), model)
    frame, where, h = FRAMES[jumps], model.path, 1e-6

    def mean(x, t, s, out=None):
        p = where.at(t)
        on_x, on_out = convert(frame.d(p), model.coefficients(p), p.alpha, p.sigma)
        out = model(x, t, s) if out is None else out
        return (on_x[:, None] * x + on_out[:, None] * out).detach()

    def now(x, t):  # d of the frame, from the teacher
        p = where.at(t)
        a, b = frame.d(p)
        return a[:, None] * teacher.denoised(x, t) + b[:, None] * teacher.noise(x, t)

    t, s, x = parts.t, parts.s, parts.x
    v = [frame.v(where.at(time)) for time in (t, s)]
    if kind == "eulerian":
        moved = [mean(flow(where, x, t, t + e), t + e, s) for e in (h, -h)]
        rate = (frame.v(where.at(t + h)) - frame.v(where.at(t - h)))[:, None]
        wanted = now(x, t) + (v[1] - v[0])[:, None] * (moved[0] - moved[1]) / rate
    else:
        moved = [mean(x, t, s + e) for e in (h, -h)]
        rate = (frame.v(where.at(s + h)) - frame.v(where.at(s - h)))[:, None]
        landed = model.jump(x, t, s).detach()
        wanted = now(landed, s) - (v[1] - v[0])[:, None] * (moved[0] - moved[1]) / rate
    assert torch.allclose(mean(x, t, s, parts.target), wanted, rtol=1e-5, atol=1e-6)
