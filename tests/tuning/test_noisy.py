"""Stochastic runs that are learned: their noise, the losses of whole sets, and what these are worth."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.gaussian import errors
from support.learning import RING, noise

import diffsolve as ds
from diffsolve import metrics
from diffsolve.models.guidance import Guidance
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.solvers.sde import Constant, Interval, Pieces
from diffsolve.tuning import Distribution, Frechet, SlicedWasserstein, fit
from diffsolve.tuning.noisy import NoisyStudent
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.task import Task

ONE = mixture_model(GaussianMixture.isotropic(torch.full((1, 1), 0.7, dtype=torch.float64), 0.4), "condot")
WIDE = "ab-2(frame='denoised', tau=1.0)"


@pytest.mark.parametrize("sizes", [(40, 40, 3), (40, 25, 3), (10, 8, 30)])
def test_the_losses_are_the_metrics(sizes):
    n, m, dim = sizes
    x, y = noise(n, dim), 0.5 + 0.7 * noise(m, dim, seed=2)
    found, wanted = metrics.Statistics.of(x), metrics.Statistics.of(y)
    assert float(Frechet()(x, y)) == pytest.approx(metrics.frechet(found, wanted), rel=1e-9)
    assert float(Frechet(torch.tanh, reference=y)(x, x)) == pytest.approx(
        metrics.frechet(metrics.Statistics.of(x.tanh()), metrics.Statistics.of(y.tanh())), rel=1e-9
    )
    if n == m:
        pytest.importorskip("ot")
        squared = metrics.sliced_wasserstein(found, wanted, projections=128) ** 2
        assert float(SlicedWasserstein()(x, y)) == pytest.approx(squared, rel=1e-6)
    assert float(SlicedWasserstein()(x, x)) == 0
    for loss in (Frechet(), SlicedWasserstein()):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf, y), leaf)
        d, h = noise(n, dim, seed=3), 1e-5
        difference = float(loss(x + h * d, y) - loss(x - h * d, y)) / (2 * h)
        assert float((slope * d).sum()) == pytest.approx(difference, rel=1e-4)


def test_tau_in_pieces():
    path = ds.paths.named("condot")
    at = path.nodes(np.linspace(0.01, 0.99, 400))
    pieces = Pieces((0.5, 2.0, 0.0), (-1.0, 1.5))
    lam, A, square = at.lam, pieces.A(path, at), pieces.square(path, at)
    inside = np.abs(np.diff(square)) == 0  # steps with no jump in them
    np.testing.assert_allclose(np.diff(A)[inside], (np.diff(lam) * square[1:])[inside], atol=1e-12)
    assert set(square) == {0.25, 4.0, 0.0}
    ends = path.nodes(np.array([0.0, 1.0]))
    assert pieces.A(path, ends).tolist() == [-np.inf, -0.25 + 10.0]  # nothing is added up there
    plan = ds.solvers.named("sa-2(tau=1.0)")
    same = ds.solvers.Multistep(**{**vars(plan), "tau": Pieces((1.0, 1.0), (0.3,))})
    times = np.linspace(0, 1, 6)
    np.testing.assert_allclose(same(path, times).weights, plan(path, times).weights, atol=1e-9)
    between = Interval(1.3, 0.1, 2.0)
    low, high = between.breaks
    np.testing.assert_allclose(np.diff(Pieces((0.0, 1.3, 0.0), (low, high)).A(path, at)), np.diff(between.A(path, at)))
    for taus, levels in (((1.0,), (0.0,)), ((1.0, 1.0, 1.0), (1.0, 0.0)), ((1.0, 1.0), (np.inf,))):
        with pytest.raises(ValueError, match="levels must be finite, rising"):
            Pieces(taus, levels)
    assert Constant(1.0) != Pieces((1.0,), ())


@pytest.mark.parametrize("path", ["condot", "edm", "vp"])
def test_whatever_noise_is_learned_the_marginals_stay(path):
    model = mixture_model(GaussianMixture.isotropic(torch.full((1, 1), 0.7, dtype=torch.float64), 0.4), path)
    student = NoisyStudent(model, ds.plan(model, "sa-2", steps=40), ds.solvers.named("sa-2"), True, "moved")
    generator = torch.Generator().manual_seed(0)
    student.log_tau.data += torch.randn(40, generator=generator, dtype=torch.float64)
    table = student.tableau()
    assert table.stochastic
    assert table.solver == "moved"
    mean, variance = errors(table, 0.7, 0.4)
    assert mean < 0.01
    assert variance < 0.03


def test_the_noise_of_a_run_is_learned(tmp_path):
    """Of five steps that end far too wide: in closed form much nearer than before."""
    data = 0.7 + 0.4 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    how = {"loss": Frechet(reference=data), "teacher": 5, "seed": 0, "dtype": torch.float64, "held_out": 0.5}
    tuning = fit(
        ONE, (800, 1), nfe=5, solver=WIDE, iterations=6, lr=0.3, batch=128, times=False, out=tmp_path / "t.json", **how
    )
    assert tuning.improved
    before, after = (errors(table, 0.7, 0.4)[1] for table in (tuning.start, tuning.tableau))
    assert after < 0.5 * before
    table = ds.Tableau.load(tmp_path / "t.json")
    assert table == tuning.tableau
    assert table.solver == f"tuned({WIDE}, nfe=5)"
    assert len(tuning.losses) == 6
    stepper = ds.Stepper(ONE)
    tickets = [stepper.submit(shape=(1,), solver=table, seed=seed) for seed in (3, 4)]
    stepper.run()
    for seed, ticket in zip((3, 4), tickets, strict=True):
        assert torch.equal(stepper.result(ticket).x, ds.sample(ONE, (1, 1), solver=table, seed=seed)[0])


@dataclass(frozen=True)
class Mean(Distribution):
    def between(self, x, y):
        return x.mean() - y.mean() + 1 / len(x)  # a bias of order 1 / n


def test_the_jackknife_takes_the_bias_away_and_gives_the_error():
    x = noise(40, 2)
    task = Task(RING, Noises(x, {}, Guidance(1.0)), torch.zeros_like(x), Mean(), 7, 0, {"held_out": 0.5})
    run = ds.plan(RING, "euler", nfe=2)
    found = task.errors(run, torch.arange(40))
    ends = ds.sample(RING, noise=x, solver=run)
    assert len(found) == 8
    assert float(found.mean()) == pytest.approx(float(ends.mean()), rel=1e-9)
    torch.testing.assert_close(found, torch.stack([part.mean() for part in ends.split(5)]))
    assert task.most(found) == float("inf")


def test_a_noise_gets_the_same_noise_on_the_way_in_every_batch():
    x = noise(6, 2)
    run = ds.plan(RING, "sa-2", nfe=4)
    ends = [
        Task(RING, Noises(x, {}, Guidance(1.0)), x, Mean(), batch, 0, {"held_out": 0.5}).run(run, torch.arange(6))
        for batch in (2, 6)
    ]
    torch.testing.assert_close(*ends)


def test_what_it_does_not_take_is_refused():
    for options, message in (
        ({"solver": "unipc-3"}, "solver must be a stochastic one with tau and one call a step"),
        ({"solver": "ddpm"}, "solver must be a stochastic one with tau"),
        ({"also": "told"}, "also must be left out with method='differences'"),
        ({"history": 2}, "history must be left out with method='differences'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (16, 2), nfe=3, teacher=4, seed=0, **{"loss": Frechet(), "solver": "sa-2", **options})
