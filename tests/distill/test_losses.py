"""Losses as users call them: keyed, pure, guided, in parts; runs, pairs, distributions; training to a file."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.flowmaps import VARIANCES, flow, flow_map, std

import diffsolve as ds
from diffsolve import distill, paths
from diffsolve.reference import students
from diffsolve.reference.embedding import fourier

LAM = torch.tensor(VARIANCES, dtype=torch.float64)
X0 = LAM.sqrt() * ds.Key(1).normal((6, 3), dtype=torch.float64)


class Net(torch.nn.Module):
    """A small network of two times; the second is optional."""

    def __init__(self, width=16):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.time = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, width))
            self.first, self.last = torch.nn.Linear(3, width), torch.nn.Linear(width, 3)
        self.double()

    def forward(self, x, t, s=None, label=None, scale=None):
        e = self.time(t[:, None]) + (0 if s is None else 0.3 * s[:, None]) + (0 if label is None else label[:, None])
        e = e + (0 if scale is None else 0.1 * scale[:, None])
        return self.last(torch.tanh(self.first(x) + e))


def student(**options):
    return ds.adapt(Net(), "condot", "velocity", jumps="straight", **options)


TEACHER = flow_map("condot", "velocity", "straight")
LOSSES = {
    "progressive": distill.progressive(TEACHER, 4),
    "guided": distill.guided(TEACHER, uncond={}),
    "consistency": distill.consistency(TEACHER),
    "ect": distill.ect(),
    "scm": distill.scm(warmup=10),
    "scd": distill.scm(TEACHER, warmup=10),
    "meanflow": distill.meanflow(),
    "ayf": distill.ayf(TEACHER),
    "lagrangian": distill.lagrangian(TEACHER),
    "shortcut": distill.shortcut(),
    "trajectory": distill.trajectory(TEACHER, nodes=2, solver="flow-map"),
    "reflow": distill.reflow(TEACHER, steps=2, solver="flow-map"),
    "distribution": distill.distribution(TEACHER, flow_map("condot", "velocity", "straight", (1.0, 1.0, 1.0))),
}


@pytest.mark.parametrize("method", LOSSES)
def test_a_loss_depends_on_its_seed_step_and_index_alone(method):
    loss, model = LOSSES[method], student()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    whole, parts = loss(model, X0, seed=3, step=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == (6,)
    assert whole.isfinite().all()
    again, _ = loss(model, X0, seed=3, step=7)
    assert torch.equal(whole, again)
    part, _ = loss(model, X0[2:], seed=3, step=7, index=2)
    assert torch.allclose(part, whole[2:], rtol=1e-9)
    assert not torch.equal(loss(model, X0, seed=3, step=8)[0], whole)
    assert not torch.equal(loss(model, X0, seed=4, step=7)[0], whole)
    whole.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.net.last.parameters())
    assert len(parts) >= 5


def test_laws_of_stretches():
    u = np.random.default_rng(0).uniform(1e-6, 1 - 1e-6, (4000, 4))
    path = paths.VP()
    t, m, s = distill.Between(diagonal=0.5, data=0.5, noise=0.25).draw(u, path, 0).T
    assert ((t >= m) & (m >= s)).all()
    assert abs((t == s).mean() - 0.5) < 0.03
    assert abs((s == path.t_data).mean() - 0.25) < 0.03
    assert abs((t == path.t_noise).mean() - 0.125) < 0.03
    t, m, s = distill.Steps(steps=4).draw(u, path, 0).T
    nodes = ds.grids.named("jumps(variable='theta')")(path, 4)
    assert set(t) == set(nodes[:-1])
    assert set(m) == set(nodes[1:])
    assert (s == 0).all()
    assert len(set(distill.Steps(steps=2, every=10, most=6).draw(u, path, 100)[:, 0])) == 6
    assert len(set(distill.Steps(steps=2, every=10).draw(u, path, 10)[:, 0])) == 4
    t, m, s = distill.Halves(steps=4, diagonal=0.25).draw(u, paths.CondOT(), 0).T
    stays = t == s
    assert abs(stays.mean() - 0.25) < 0.03
    assert np.allclose(m, (t + s) / 2)
    assert set((s - t)[~stays].round(9)) == {1.0, 0.5, 0.25}
    ends = 4 * distill.Halves(steps=4, least=4).draw(u, paths.CondOT(), 0)[:, 2]
    assert np.allclose(ends, ends.round())


def test_the_schedule_of_ect():
    """r / t = 1 - n(t) / q^a, n(t) = 1 + 8 sigmoid(-t); at first x_0 itself is the target."""
    u = np.linspace(0.05, 0.95, 19)[:, None].repeat(4, 1)
    path = paths.EDM()
    law = distill.Shrinking(every=100)
    first = law.draw(u, path, 0)
    assert (first[:, 1] == 0).sum() > 5  # where n(t) >= q
    for step in (0, 250, 900):
        t, m, _ = law.draw(u, path, step).T
        ratio = 1 - (1 + 8 / (1 + np.exp(t))) / 2.0 ** (1 + step // 100)
        assert np.allclose(m / t, np.maximum(ratio, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of times near the noise end, where sigma / alpha is 1e4
        distill.Shrinking(b=100.0).draw(np.full((1, 4), 0.999), paths.named("edm"), 0)


def test_metrics():
    residual = torch.tensor([[0.3, -0.4], [0.0, 0.0]], dtype=torch.float64)
    square = torch.tensor([0.125, 0.0], dtype=torch.float64)
    assert torch.allclose(distill.Squared()(residual), square)
    assert torch.allclose(distill.Huber(0.1)(residual), (square + 0.01).sqrt() - 0.1)
    assert torch.allclose(distill.Adaptive(0.5, 0.01)(residual), square / (square + 0.01).sqrt())
    assert torch.allclose(distill.Normalised(0.1)(residual), (square.sqrt() / (square.sqrt() + 0.1)) ** 2)
    moving = residual.clone().requires_grad_()
    distill.Normalised(0.1)(moving).sum().backward()  # as if the residual were g, in 2410.11081, eq. 8
    assert torch.allclose(moving.grad, residual / (square.sqrt() + 0.1)[:, None])


def test_a_guided_teacher_and_a_student_told_the_scale():
    net = lambda x, t, label=None: x * (0.3 if label is None else 0.5)  # noqa: E731
    teacher = ds.adapt(net, "condot", "velocity")
    loss = distill.guided(teacher, 1.0, 3.0)
    _, parts = loss(student(), X0, cond={"label": torch.ones(6).double()}, seed=0, step=1)
    scale = (parts.target / parts.x).mean(1)  # 0.3 + scale 0.2
    told = (scale - 0.3) / 0.2
    assert ((told > 1) & (told < 3)).all()
    assert told.std() > 0.1
    fixed = distill.ayf(teacher, guidance=2.0, stretches=distill.Between(diagonal=1.0), metric=distill.Squared())
    _, parts = fixed(student(), X0, cond={"label": torch.ones(6).double()}, seed=0, step=1)
    assert torch.allclose(parts.target, 0.7 * parts.x)


def test_meanflow_guides_itself():
    """omega v + kappa u(c) + (1 - omega - kappa) u(none), 2505.13447, eq. 20."""
    model, cond = student(), {"label": torch.ones(6).double()}
    loss = distill.meanflow(1.0, scale=1.5, mix=0.3, uncond={"label": torch.zeros(6).double()})
    noise = ds.Key(2).normal((6, 3), dtype=torch.float64)
    _, parts = loss(model, X0, cond=cond, noise=noise, seed=0, step=0)
    own = [model(parts.x, parts.t, label=label.double()) for label in (torch.ones(6), torch.zeros(6))]
    assert torch.allclose(parts.target, 1.5 * (X0 - noise) + 0.3 * own[0] - 0.8 * own[1])
    dropped = distill.meanflow(1.0, uncond={"label": torch.zeros(())}, drop=1.0)
    _, parts = dropped(model, X0, cond=cond, seed=0, step=0)
    assert torch.allclose(parts.output, model(parts.x, parts.t, label=torch.zeros(6).double()))


@pytest.mark.parametrize("path", ["condot", "vp", "edm"])
def test_regression_on_exact_runs_is_zero(path):
    teacher = flow_map(path, "v", "straight")
    loss = distill.trajectory(teacher, nodes=3, solver="flow-map", fine=1)
    model = replace(teacher, net=teacher.net)
    losses, parts = loss(model, X0, seed=0, step=0)
    assert losses.max() < 1e-12
    kept = distill.runs(teacher, (5, 3), nodes=3, solver="flow-map", fine=1, seed=4, batch=2, dtype=X0.dtype)
    assert kept.shape == (5, 4, 3)
    assert torch.allclose(kept[:, 0], teacher.path.prior_std() * ds.Key(4).normal((5, 3), dtype=torch.float64))
    ends = flow(teacher.path, kept[:, 0], teacher.path.t_noise, teacher.path.t_data)
    assert torch.allclose(kept[:, -1], ends, rtol=1e-9)
    from_kept = distill.trajectory(path=teacher.path, nodes=3, ends=0.0)
    losses, parts = from_kept(model, kept, seed=0, step=0)
    assert losses.max() < 1e-12
    moved = replace(model, net=lambda x, t, s: teacher.net(x, t, s) + 1)
    assert torch.allclose(from_kept(moved, kept, seed=0, step=0)[0], torch.ones(5).double())
    assert len({(float(t), float(s)) for t, s in zip(parts.t, parts.s, strict=True)}) > 1


def test_reflow_on_exact_pairs_has_a_straight_minimum():
    """x_0 = sqrt(lambda) eps for every pair: the velocity of x_t = (t sqrt(lambda) + 1 - t) eps."""
    root = LAM.sqrt()
    noise = ds.Key(3).normal((6, 3), dtype=torch.float64)
    model = ds.adapt(lambda x, t: (root - 1) / (t[:, None] * root + 1 - t[:, None]) * x, "condot", "velocity")
    losses, _ = distill.reflow()(model, noise * root, noise=noise, seed=0, step=0)
    assert losses.max() < 1e-12
    losses, _ = distill.reflow(TEACHER, steps=2, solver="flow-map")(model, X0, seed=0, step=0)
    assert losses.max() < 1e-12


def test_distribution_matching_points_from_the_students_law_to_the_teachers():
    wide = tuple(1.3**2 * v for v in VARIANCES)
    exact = flow_map("condot", "velocity", "straight")
    loss = distill.distribution(TEACHER, exact)
    assert loss(exact, X0, seed=0, step=0)[0].max() < 1e-20
    off = replace(exact, net=lambda x, t, s: flow_map("condot", "velocity", "straight", wide).net(x, t, s))
    fake = flow_map("condot", "velocity", "straight", wide)
    losses, parts = distill.distribution(TEACHER, fake)(off, X0, seed=0, step=0)
    assert torch.allclose(losses, (parts.output - parts.target).square().mean(1) / 2)  # whose gradient is the step
    p = TEACHER.path.at(parts.t)
    gains = [p.alpha[:, None] * v / std(TEACHER.path, parts.t, tuple(v.tolist())) ** 2 for v in (1.3**2 * LAM, LAM)]
    real = gains[1] * parts.x
    size = (parts.output - real).abs().mean(1, keepdim=True)
    assert torch.allclose(parts.output - parts.target, (gains[0] - gains[1]) * parts.x / size, rtol=1e-6)
    # On average that is towards less.
    assert ((parts.output - parts.target) * parts.output).mean() > 0
    fake_losses, fakes = distill.distribution(TEACHER, fake).fake_loss(off, X0, seed=0, step=0)
    made = off.jump(ds.Key(0).normal((6, 3), stream=11, dtype=torch.float64), 0.0, 1.0)
    assert torch.allclose(fakes.target, made - (fakes.x - fakes.times[:, None] * made) / (1 - fakes.times[:, None]))
    assert fake_losses.shape == (6,)


def test_samples_of_several_calls_keep_the_law():
    """An exact student's samples are the data's whatever the node at which the last jump begins."""
    exact = flow_map("condot", "velocity", "straight")
    loss = distill.distribution(TEACHER, exact, steps=3)
    x0 = torch.zeros(6000, 3, dtype=torch.float64)
    made = []

    class Watched:
        def __call__(self, x, t, s):
            made.append((x, t, s))
            return exact.net(x, t, s)

    _, parts = loss(replace(exact, net=Watched()), x0, seed=5, step=2)
    assert torch.allclose(parts.output.square().mean(0), LAM, rtol=0.06)
    (z, start, _), (begins, t, s) = made
    assert (start == 0).all()
    assert (s == 1).all()
    nodes = torch.from_numpy(ds.grids.named("jumps(variable='theta')")(exact.path, 3))[:-1]
    assert {float(time) for time in t} == set(nodes.tolist())
    for node in nodes:
        there = begins[t == node]
        assert abs(len(there) - 2000) < 200
        assert torch.allclose(there.square().mean(0), std(exact.path, node[None])[0] ** 2, rtol=0.12)
    assert torch.equal(begins[t == 0], z[t == 0])
    # Else it is the same sample, noised again: no more alike than alpha says.
    late = t == nodes[2]
    alike = (begins[late] * z[late]).mean(0) / LAM.sqrt()
    assert torch.allclose(alike, nodes[2].expand(3), atol=0.08)


@pytest.mark.parametrize("path", ["condot", "edm"])
def test_regression_on_pairs_is_part_of_distribution_matching(path):
    exact = flow_map(path, "velocity", "straight")
    noise = ds.Key(3).normal((6, 3), dtype=torch.float64)
    loss = distill.distribution(exact, exact, regression=0.5)
    begin, end = exact.path.t_noise, exact.path.t_data
    ends = flow(exact.path, noise * exact.path.prior_std(), begin, end)
    assert loss(exact, ends, noise=noise, seed=0, step=0)[0].max() < 1e-12
    losses, _ = loss(exact, ends + 2, noise=noise, seed=0, step=0)
    assert torch.allclose(losses, torch.full((6,), 2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="noise must be the start of each x0, with regression"):
        loss(exact, ends, seed=0, step=0)


class Scaled(torch.nn.Module):
    """The flow map, or the velocity, of data whose deviations are learned."""

    def __init__(self, by):
        super().__init__()
        self.by = torch.nn.Parameter(torch.full((), float(by)).double())

    def forward(self, x, t, s=None):
        if s is None:  # the velocity of Gaussian data of that variance
            v = (self.by**2 * LAM) * t[:, None]
            return (v - (1 - t[:, None])) / (t[:, None] ** 2 * self.by**2 * LAM + (1 - t[:, None]) ** 2) * x
        return (self.by * LAM.sqrt() - 1) * x  # as it is from the noise to the data


def test_student_and_fake_by_turns():
    """From too wide a law, by one optimizer, the student comes to the teacher's, and the fake network after it."""
    net = distill.WithFake(Scaled(1.6), Scaled(1.6))
    model = ds.adapt(net, "condot", "velocity", jumps="straight")
    fake = ds.adapt(net.fake, "condot", "velocity")
    loss = distill.distribution(TEACHER, fake, turns=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    x0 = torch.zeros(64, 3, dtype=torch.float64)
    for step in range(150):
        losses, _ = loss(model, x0, seed=1, step=step)
        optimizer.zero_grad()
        losses.mean().backward()
        assert (net.net.by.grad is None) == (step % 3 != 2)
        assert (net.fake.by.grad is None) == (step % 3 == 2)
        optimizer.step()
    assert abs(net.net.by - 1) < 0.1
    assert abs(net.fake.by - 1) < 0.2
    with pytest.raises(ValueError, match="student.net must be a WithFake that carries the fake network"):
        loss(replace(model, net=net.net), x0, seed=0, step=0)


def test_the_fake_network_is_a_copy_that_drops_nothing():
    net = torch.nn.Sequential(Net(), torch.nn.Dropout(0.5))
    teacher = ds.adapt(net.requires_grad_(False), "condot", "velocity")
    fake = distill.distribution(teacher).fake
    assert fake.net is not net
    assert fake.net[1].p == 0
    assert net[1].p == 0.5
    assert all(p.requires_grad for p in fake.net.parameters())


def test_a_slow_copy_is_the_target(tmp_path):
    model, slow = student(), student()
    for p in slow.net.parameters():
        p.data *= 0.5
    loss = distill.shortcut(diagonal=0.0)
    assert not torch.equal(loss(model, X0, seed=0, step=0)[0], loss(model, X0, seed=0, step=0, target=slow)[0])
    seen = []

    class Watched:
        averaged = True

        def __call__(self, net, x0, *, target, **options):
            seen.append((net.net, target.net))
            return loss(net, x0, target=target, **options)

    distill.fit(Watched(), model, X0, tmp_path / "a.safetensors", steps=2, batch=4)
    assert all(isinstance(target, Net) and target is not net for net, target in seen)


@pytest.mark.parametrize("method", ["consistency", "meanflow"])
def test_fit_improves_a_student_and_resumes_with_the_same_bits(method, tmp_path):
    data = LAM.sqrt() * ds.Key(9).normal((64, 3), dtype=torch.float64)
    options = {"steps": 12, "batch": 16, "lr": 3e-3}
    whole = student()
    report = distill.fit(LOSSES[method], whole, data, tmp_path / "whole.safetensors", **options)
    assert report["finished"]
    parted = student()
    first = distill.fit(LOSSES[method], parted, data, tmp_path / "parted.safetensors", **options, minutes=1e-6)
    assert not first["finished"]
    again = student()
    distill.fit(LOSSES[method], again, data, tmp_path / "parted.safetensors", **options)
    for a, b in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_network_of_one_time_gets_a_second():
    plain = Net()
    told = distill.TwoTimes(plain, plain.time)
    model = ds.adapt(told, "condot", "velocity", jumps="straight")
    x = X0[:2]
    assert torch.equal(model(x, 0.3, 0.8), ds.adapt(plain, "condot", "velocity")(x, 0.3))
    told.added[2].weight.data.normal_()
    assert not torch.equal(model(x, 0.3, 0.8), model(x, 0.3, 0.5))
    losses, _ = LOSSES["ayf"](model, X0, seed=0, step=0)
    losses.sum().backward()
    assert told.added[0].weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="embedding must be a module inside the network"):
        distill.TwoTimes(plain, torch.nn.Linear(1, 1))


def test_s_is_told_as_a_share_of_the_span():
    """A network that counts to 999 is told of s as one that counts to 1; derivatives grow with the frequency."""

    def slope(span, highest=6.0):
        torch.manual_seed(0)
        plain = Net()
        told = distill.TwoTimes(plain, plain.time, span, highest)
        told.added[2].weight.data.normal_()
        s = torch.full((2,), 0.4 * span, dtype=torch.float64, requires_grad=True)
        out = told(X0[:2], torch.zeros(2).double(), s)
        return out.detach(), torch.autograd.grad(out.sum(), s)[0].abs().mean() * span

    (one, rate), (count, same), (_, steep) = slope(1.0), slope(999.0), slope(1.0, 60.0)
    torch.testing.assert_close(one, count)
    torch.testing.assert_close(rate, same)
    assert steep > 3 * rate
    with pytest.raises(ValueError, match="span must be a finite number > 0, got 0"):
        distill.TwoTimes(Net(), Net().time, 0)


def test_a_network_is_told_the_scale_of_guidance():
    plain = Net()
    told = distill.WithScale(plain, plain.time)
    model = ds.adapt(told, "condot", "velocity")
    x, same = X0[:2], {"label": torch.tensor([1.0, 2.0]).double()}
    assert torch.equal(model(x, 0.3, scale=3.0, **same), ds.adapt(plain, "condot", "velocity")(x, 0.3, **same))
    told.added[2].weight.data.normal_()
    assert torch.equal(model(x, 0.3, scale=torch.tensor([1.0, 1.0])), model(x, 0.3))
    assert not torch.equal(model(x, 0.3, scale=2.0), model(x, 0.3))
    assert torch.equal(model(x, 0.3, scale=torch.tensor([2.0, 3.0]))[1], model(x, 0.3, scale=3.0)[1])
    two = ds.adapt(distill.TwoTimes(told, plain.time), "condot", "velocity", jumps="straight")
    assert torch.equal(two(x, 0.3, 0.8, scale=2.0), model(x, 0.3, scale=2.0))
    losses, _ = LOSSES["guided"](model, X0, seed=0, step=0)
    losses.sum().backward()
    assert told.added[0].weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"scale must be a finite number <= 4, got 5"):
        model(x, 0.3, scale=5)


def test_a_student_told_the_scale_learns_what_its_guided_teacher_says():
    """Of a teacher that is linear in the label the guided velocity is x (0.3 + scale 0.2)."""
    net = lambda x, t, label=None: x * (0.3 if label is None else 0.5)  # noqa: E731
    teacher = ds.adapt(net, "condot", "velocity")
    plain = Net()
    model = ds.adapt(distill.WithScale(plain, plain.time), "condot", "velocity")
    loss, optimizer = distill.guided(teacher), torch.optim.Adam(model.net.parameters(), lr=5e-3)
    for step in range(600):
        losses, _ = loss(
            model, ds.Key(step).normal((32, 3)).double(), cond={"label": torch.zeros(32).double()}, seed=0, step=step
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    x, label = ds.Key(1).normal((200, 3)).double(), torch.zeros(200).double()
    for scale in (1.5, 3.5):
        wanted = x * (0.3 + scale * 0.2)
        with torch.no_grad():
            assert (model(x, 0.5, label=label, scale=scale) - wanted).square().mean().sqrt() < 0.1 * wanted.std()


@pytest.mark.parametrize("method", ["ayf", "lagrangian"])
def test_forward_derivatives_of_networks_in_channels_last(method):
    """Whose group normalisation torch has no forward derivative of."""
    x0 = ds.Key(0).normal((3, 1, 8, 8))
    model, teacher = students.student("digits"), ds.load("digits")
    for layer in model.net.head:  # which begins at zero
        torch.nn.init.normal_(layer.weight, std=0.1) if hasattr(layer, "weight") else None
    loss = getattr(distill, method)(teacher)
    plain, _ = loss(model, x0, seed=0, step=0)
    model.net.to(memory_format=torch.channels_last)
    last, _ = loss(model, x0.to(memory_format=torch.channels_last), seed=0, step=0)
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)


class Tanh(torch.autograd.Function):
    """Without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        out = x.tanh()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx, slope):
        return slope * (1 - ctx.saved_tensors[0] ** 2)


class TanhOfTwoParts(Tanh):
    """In the form that torch's transforms take."""

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)


@pytest.mark.parametrize("function", [Tanh, TanhOfTwoParts])
def test_a_network_without_a_forward_derivative_is_told_of_the_way_without(function):
    layer = torch.nn.Linear(3, 3).double()
    model = ds.adapt(
        lambda x, t, s: function.apply(layer(x)) * (1 + s[:, None]), "condot", "velocity", jumps="straight"
    )
    for method, identity in ((distill.ayf, distill.Eulerian), (distill.lagrangian, distill.Lagrangian)):
        with pytest.raises(NotImplementedError, match="no forward derivative .*identity=.*derivative='difference'"):
            method(TEACHER)(model, X0, seed=0, step=0)
        losses, _ = method(TEACHER, identity=identity(derivative="difference"))(model, X0, seed=0, step=0)
        losses.sum().backward()
        assert layer.weight.grad.isfinite().all()


def test_all_on_the_diagonal_needs_no_forward_derivative(monkeypatch):
    """And has the target that the derivative's factor of 0 leaves."""
    monkeypatch.setattr(torch.func, "jvp", None)
    loss = distill.ayf(TEACHER, stretches=distill.Between(diagonal=1.0))
    model = ds.adapt(Net(), "condot", "denoised", jumps="straight")
    _, parts = loss(model, X0, seed=0, step=0)
    v = TEACHER.velocity(parts.x, parts.t)
    assert torch.allclose(parts.target, parts.x + (1 - parts.t)[:, None] * v)


class Wobbling(Net):
    """A network told its time at a high frequency too, on a clock from -2 to 3."""

    def __init__(self):
        super().__init__()
        self.told, self.norm = torch.nn.Sequential(self.time, torch.nn.Identity()), torch.nn.BatchNorm1d(3).double()

    def forward(self, x, t, label=None):
        e = self.told((t[:, None] + 2) / 5 + 0.02 * torch.sin(60 * t[:, None]))
        return self.last(torch.tanh(self.first(self.norm(x)) + e + (0 if label is None else label[:, None])))


def smooth(**options):
    plain = Wobbling()
    made = distill.SmoothTime(plain, plain.told, X0[:1], {"label": torch.tensor([1.0])}, times=(-2.0, 3.0), **options)
    return plain, made


def test_an_embedding_of_the_time_is_replaced_by_a_smoother_one():
    plain, told = smooth()
    assert plain.training
    assert plain.norm.num_batches_tracked == 0  # that the network is shown a row leaves nothing behind
    told.eval()
    t, label = torch.linspace(-2, 3, 200).double(), torch.full((200,), 0.5).double()
    x = X0[:1].expand(200, 3)
    with torch.no_grad():
        near, own = told(x, t, label=label), plain(x, t, label=label)
    assert 0 < (near - own).abs().max() < 0.15 * own.std()
    assert 0.001 < told.lost < 0.1

    def rate(net):
        return torch.func.jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))[1].abs().mean()

    assert rate(told) < 0.7 * rate(plain)
    shown = []
    told.time.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    told(x[:3], torch.tensor([-2.0, 0.5, 3.0]).double())
    assert torch.allclose(shown[0], fourier(torch.tensor([0.0, 0.5, 1.0]), 32, 6.0).double())
    assert rate(smooth(highest=300.0)[1].eval()) > rate(told)


def test_a_smoother_embedding_is_what_learns_and_takes_a_second_time():
    plain, told = smooth()
    both = distill.TwoTimes(told, told.time).eval()
    model = ds.adapt(both, "condot", "velocity", jumps="straight")
    assert torch.equal(model(X0, 0.3, 0.8), told(X0, torch.full((len(X0),), 0.3).double()))
    losses, _ = LOSSES["ayf"](model, X0, seed=0, step=0)
    losses.sum().backward()
    assert told.time[0].weight.grad.abs().max() > 0
    assert both.added[2].weight.grad.abs().max() > 0
    assert plain.first.weight.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in plain.time.parameters())


def test_copies_of_networks_that_are_told_more_are_their_own():
    """As the running average of a student is."""
    _, told = smooth()
    both = distill.TwoTimes(told, told.time).eval()
    copied = copy.deepcopy(both)
    t, s = torch.full((len(X0),), 0.5).double(), torch.ones(len(X0)).double()
    before = both(X0, t, s)
    for layer in (copied.net.time[2], copied.added[2]):
        torch.nn.init.normal_(layer.weight)
    assert torch.equal(both(X0, t, s), before)
    assert not torch.equal(copied(X0, t, s), before)
    torch.nn.init.zeros_(both.net.time[2].weight)
    assert not torch.equal(both(X0, t, s), before)


def test_what_a_smoother_embedding_refuses():
    plain = Wobbling()
    with pytest.raises(ValueError, match="embedding must be a module inside the network, got 'Linear'"):
        distill.SmoothTime(plain, torch.nn.Linear(1, 1), X0)
    with pytest.raises(ValueError, match="times must be the lowest and the highest"):
        distill.SmoothTime(plain, plain.time, X0, times=(1.0, 0.0))
    with pytest.raises(ValueError, match="highest must be a finite number > 0"):
        distill.SmoothTime(plain, plain.time, X0, highest=0)
    images = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Unflatten(1, (1, 3)), torch.nn.Flatten())

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = images.double()

        def forward(self, x, t):
            return self.inner(x)

    net = Plain()
    with pytest.raises(ValueError, match=r"embedding must be a module whose output is \(B, width\)"):
        distill.SmoothTime(net, images[1], X0)


def test_teachers_run_over_times_of_each_sample():
    from diffsolve.distill.teacher import Teacher
    from diffsolve.models import Guidance
    from diffsolve.solvers import named

    teacher = ds.reference.mixture_model(ds.reference.ring(), "vp", "noise")
    own = Teacher(teacher, Guidance(1.0))
    x = ds.Key(0).normal((4, 2), dtype=torch.float64)
    nodes = np.array([[0.9, 0.5, 0.1], [0.7, 0.6, 0.2], [0.5, 0.5, 0.5], [0.3, 0.1, 0.0]])
    for solver in ("heun", "dpmpp-2m", "ddim"):
        ends = own.run(named(solver), x, nodes, {})
        for i in (0, 1, 3):
            alone = ds.sample(teacher, noise=x[i : i + 1], solver=solver, grid=nodes[i])
            assert torch.allclose(ends[i], alone[0], rtol=1e-9)
        assert torch.equal(ends[2], x[2])
    with pytest.raises(ValueError, match="solver must be deterministic"):
        own.run(named("ddpm"), x, nodes, {})


def test_refused():
    with pytest.raises(TypeError, match="teacher must be a Model"):
        distill.Distillation(distill.Semigroup("teacher"), distill.Steps())
    with pytest.raises(ValueError, match="teacher.path must be that of the student"):
        distill.ayf(flow_map("vp", "v", "straight"))(student(), X0, seed=0, step=0)
    with pytest.raises(TypeError, match="student must be a Model"):
        LOSSES["ect"](Net(), X0, seed=0, step=0)
    with pytest.raises(ValueError, match="steps must be least=3 times a power of two"):
        distill.Halves(steps=8, least=3)
    loss = distill.Distillation(distill.Eulerian("denoised"), distill.Between(data=1.0))
    with pytest.raises(ValueError, match="frame must be regular at the times drawn"):
        loss(student(), X0, seed=0, step=0)
    with pytest.raises(ValueError, match="x0 must be of shape .B, 4, ...."):
        distill.trajectory(path=paths.CondOT(), nodes=3)(student(), X0, seed=0, step=0)
    states = X0[:, None].expand(-1, 2, -1)
    with pytest.raises(ValueError, match="noise must be left out without a teacher"):
        distill.trajectory(path=paths.CondOT())(student(), states, noise=states, seed=0, step=0)
    with pytest.raises(ValueError, match="noise must be a tensor of the shape of x0"):
        LOSSES["trajectory"](student(), X0, noise=X0[:, :1], seed=0, step=0)
    for name in ("trajectory", "reflow", "distribution"):
        with pytest.raises(TypeError, match="target must be left out for"):
            LOSSES[name](student(), X0, target=student(), seed=0, step=0)
    with pytest.raises(TypeError, match="objective must be left out"):
        distill.fit(LOSSES["ect"], student(), X0, "nowhere", objective={})
    assert math.isclose(distill.Huber().c, 0.00054)


def test_the_best_times_are_found():
    wanted = {"condot": [0.0, 0.3, 0.8, 1.0], "edm": [80.0, 2.0, 0.3, 0.0]}
    for path, times in wanted.items():
        angle = lambda t, p: np.arctan2(*(w.numpy() for w in (p.sigma(t), p.alpha(t))))  # noqa: E731
        where = paths.named(path)

        def score(grid, where=where, times=times, angle=angle):
            return float(((angle(grid, where) - angle(times, where)) ** 2).sum())

        found = distill.best_times(path, 3, score, evaluations=24, rounds=3)
        assert angle(found, where) == pytest.approx(angle(times, where), abs=2e-2)
        assert (found[0], found[-1]) == (where.t_noise, where.t_data)
    assert distill.best_times("condot", 1, lambda grid: 1 / 0) == [0.0, 1.0]
    with pytest.raises(ValueError, match="score must be a number"):
        distill.best_times("condot", 2, lambda grid: math.nan)
