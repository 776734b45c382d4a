"""Second order: the derivative carried along a run, the equations made of it, and what their solutions are worth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.learning import RING, Net, moved, noise

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import random_means
from diffsolve.tuning import Distance, fit
from diffsolve.tuning.least_squares import LeastSquares
from diffsolve.tuning.losses import scaled
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.tangents import differences, linearised
from diffsolve.tuning.task import Task

SMALL = {"teacher": 20, "seed": 0, "dtype": torch.float64, "iterations": 6}


def ends_moved(student, noises, h=1e-5):
    """The derivative of the executor's ends by every parameter, from differences on both sides: (P, B, ...)."""
    slopes = []
    for p in student.parameters.values():
        for place in np.ndindex(*p.shape):
            kept, found = float(p.data[place]), []
            for side in (h, -h):
                p.data[place] = kept + side
                table = student.tableau()
                found.append(ds.sample(student.model, noise=noises.x, solver=table, cond=noises.cond,
                                       guidance=noises.guidance))  # fmt: skip
            p.data[place] = kept
            slopes.append((found[0] - found[1]) / (2 * h))
    return torch.stack(slopes)


@pytest.mark.parametrize(
    ("path", "predicts", "history", "times", "more"),
    [
        ("condot", "v", 2, True, {}),
        ("edm", "edm", 4, True, {"also": ("told",)}),
        ("ddpm", "noise", 4, False, {"also": ("told", "guides")}),
        ("vp", "score", 3, True, {}),
        ("condot", "velocity", 5, True, {"also": ("told", "guides"), "together": 2}),
        ("edm", "denoised", 4, False, {"also": ("guides",), "together": 3}),
    ],
)
def test_the_derivative_carried_along_is_that_of_the_executors_run(path, predicts, history, times, more):
    model = ds.adapt(Net(), path, predicts)
    student = moved(model, nfe=3 if more.get("together") else 4, history=history, times=times, **more)
    shift = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    guidance = Guidance(3.0, {"shift": 0.5}, rescale=0.3)
    noises = Noises(noise() * model.path.prior_std(), {"shift": shift}, guidance)
    x, J = linearised(student, noises)
    wanted = ds.sample(model, noise=noises.x, solver=student.tableau(), cond=noises.cond, guidance=guidance)
    torch.testing.assert_close(x, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(J, ends_moved(student, noises), rtol=2e-4, atol=2e-5 * float(J.abs().max()))


def test_networks_that_have_no_derivative_of_their_own_are_learned():
    nets = {
        "plain": lambda x, t: -torch.tanh(x) * t[:, None],
        "closed": torch.no_grad()(lambda x, t: -torch.tanh(x) * t[:, None]),
        "numpy": lambda x, t: torch.from_numpy(np.tanh(-x.numpy())) * t[:, None],
    }
    options = {**SMALL, "nfe": 3, "solver": "unipc-3", "iterations": 2}
    plain, *others = (fit(ds.adapt(net, "condot", "velocity"), (16, 3), **options) for net in nets.values())
    assert plain.improved
    for tuning in others:
        assert tuning.losses == pytest.approx(plain.losses, rel=1e-6)


def test_differences_in_half_precision_take_steps_that_it_sees():
    net, x = Net(dtype=torch.bfloat16).requires_grad_(False), noise(64)
    tangents = noise(64 * 5, seed=2).view(5, 64, 3)
    times = torch.full((64,), 0.5, dtype=torch.float64)

    def f(x, copies=1):
        return net(x.bfloat16(), times.repeat(copies).bfloat16()).double()

    _, slopes = differences(f, (x,), (tangents,), torch.bfloat16)
    net64, h = Net().requires_grad_(False), 1e-6
    wanted = torch.stack([(net64(x + h * d, times) - net64(x - h * d, times)) / (2 * h) for d in tangents])
    assert float((slopes - wanted).norm() / wanted.norm()) < 0.1
    _, blind = differences(f, (x,), (tangents,))
    assert float((blind - wanted).norm() / wanted.norm()) > 0.9


@pytest.mark.parametrize("features", [None, lambda x: torch.tanh(x @ torch.ones(2, 5, dtype=x.dtype))])
def test_the_equations_are_those_of_weighted_least_squares(features):
    """Against residuals and derivatives written out, in two batches."""
    x = noise(12, 2)
    noises, ends = Noises(x, {}, Guidance(1.0)), ds.sample(RING, noise=x, nfe=20)
    loss = scaled(Distance(features), ends)
    task = Task(RING, noises, ends, loss, 5, 0, {"held_out": 0.25})
    student = moved(RING, nfe=4)
    learner = LeastSquares(task, student, SimpleNamespace(moments=LeastSquares.moments(student)))
    A, g, distances = learner.equations()
    seen = features or (lambda x: x)
    size = float(seen(ends).square().sum(1).mean()) ** 0.5
    index = torch.arange(9)
    some, J = linearised(student, noises.some(index))
    r = (seen(some) - seen(ends[index])) / size
    if features is not None:
        J = torch.stack([(features(some + 1e-6 * j) - features(some - 1e-6 * j)) / 2e-6 for j in J])
    far = r.norm(dim=1)
    torch.testing.assert_close(distances, far)
    parts = [(part.clamp(min=0.01 * float(part.median())), 50 * float(part.median())) for part in far.split(5)]
    weight = torch.cat([torch.where(part > most, most**2 / part**3, 1 / part) for part, most in parts]) / 9
    torch.testing.assert_close(A, torch.einsum("pbm,b,qbm->pq", J / size, weight, J / size), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(g, torch.einsum("pbm,b,bm->p", J / size, weight, r), rtol=1e-4, atol=1e-7)


def test_every_iteration_is_nearer_and_the_best_on_other_noises_is_returned():
    tuning = fit(RING, (96, 2), nfe=5, **SMALL, solver="unipc-3")
    assert tuning.improved
    assert len(tuning.losses) == 6
    assert tuning.after.value < 0.5 * tuning.before.value
    best = min(loss for _, loss in tuning.validation)
    x = ds.Key(0).normal((96, 2), row=1, dtype=torch.float64)
    ends = ds.sample(RING, noise=x, nfe=20)
    size = float(ends.square().sum(1).mean()) ** 0.5
    far = (ds.sample(RING, noise=x, solver=tuning.tableau) - ends).norm(dim=1) / size
    chosen = far[72:84]
    assert best == pytest.approx(float(chosen.clamp(max=50 * float(chosen.median())).mean()), rel=1e-9)
    assert tuning.after.value == pytest.approx(float(far[84:].mean()), rel=1e-9)
    assert tuning.after.stderr == pytest.approx(float(far[84:].std()) / 12**0.5, rel=1e-9)
    assert tuning.learning == pytest.approx(float(far[:72].mean()), rel=1e-9)
    old = (ds.sample(RING, noise=x[84:], solver=tuning.start) - ends[84:]).norm(dim=1) / size
    assert tuning.gain.value == pytest.approx(float((old - far[84:]).mean()), rel=1e-9)


@pytest.mark.slow
def test_second_order_is_nearer_than_first_with_as_many_calls():
    options = {"nfe": 4, "solver": "unipc-3", "teacher": 30, "seed": 0, "dtype": torch.float64}
    second = fit(RING, (32, 2), method="least-squares", iterations=4, **options)
    first = fit(RING, (32, 2), method="adam", iterations=16, **options)
    assert second.calls < 1.5 * first.calls
    assert second.after.value < first.after.value


def test_it_ends_once_other_noises_get_no_nearer():
    tuning = fit(RING, (16, 2), nfe=4, solver="unipc-3", **{**SMALL, "iterations": 200})
    assert len(tuning.losses) < 60
    losses = [loss for _, loss in tuning.validation]
    assert min(losses[:-10]) < min(losses[-10:]) or losses[-1] == losses[-2]


def test_a_learning_cut_off_goes_on_to_the_same_bits(tmp_path):
    left = [60]

    class Short(torch.nn.Module):
        def forward(self, x, t):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return RING.net(x, t)

    model = ds.adapt(Short(), "condot", "velocity")
    how = {**SMALL, "solver": "unipc-3", "checkpoint": tmp_path / "c", "nfe": 3}
    left[0] = 10**6
    whole = fit(model, (24, 2), **{**how, "checkpoint": None})
    left[0] = (10**6 - left[0]) // 2
    with pytest.raises(KeyboardInterrupt):
        fit(model, (24, 2), **how)
    left[0] = 10**6
    went_on = fit(model, (24, 2), **how)
    assert went_on.tableau == whole.tableau
    assert (went_on.losses, went_on.validation, went_on.calls) == (whole.losses, whole.validation, whole.calls)


def test_what_it_does_not_take_is_refused():
    for options, message in (
        ({"loss": lambda x, ends: (x - ends).abs().mean()}, "loss must be a tuning.Distance"),
        ({"lr": 0.1}, "lr must be left out"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (8, 2), nfe=3, method="least-squares", **options)
    with pytest.raises(ValueError, match="method must be 'least-squares', 'adam', .* or 'dpm-v3', got 'newton'"):
        fit(RING, (8, 2), nfe=3, method="newton")
    rows = ds.adapt(RING.net, "ddpm", "noise", clock="index")
    with pytest.raises(ValueError, match="in its time, got none with clock='index'; times=False"):
        fit(rows, (8, 2), nfe=3)
    infinite = ds.adapt(lambda x, t: x * torch.inf, "condot", "velocity")
    with pytest.raises(FloatingPointError, match="in iteration 0: another solver"):
        fit(infinite, noise=noise(8), nfe=3, solver="ddim", teacher=noise(8), seed=0)


@pytest.mark.slow
def test_near_in_64_dimensions():
    model = mixture_model(random_means(64), "condot")
    tuning = fit(model, (256, 64), nfe=5, **{**SMALL, "iterations": 20, "teacher": 60})
    assert tuning.after.value < 0.01
