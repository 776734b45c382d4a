"""`ds.choose`: the world it measures, the order on paper, the race, and what it promises."""

import math

import pytest
import torch

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.tableau.theory import distance
from diffsolve.tuning import choosing
from diffsolve.tuning.linear import FLAT, World, measured
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.space import OWN, space

AMONG = [("ddim", None), ("heun", None), ("unipc-3", None), ("ab-3(frame='straight', corrector=4)", "uniform-u")]
SMALL = {"held_out": 0.5, "nfe": 6, "teacher": 40, "seed": 0, "among": AMONG}


@pytest.fixture(scope="module")
def found():
    return ds.choose(ds.load("mixture-2d"), (24, 2), **SMALL)


MEAN, STD = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)


def world(path, predicts, error=None, n=400):
    """The world of the exact network of Gaussian data, which may err by error(lambda); the ends have its moments."""
    mixture = GaussianMixture.diagonal(MEAN[None], STD[None])
    model = ds.reference.mixture_model(mixture, path, predicts)
    if error is not None:
        net = model.net
        model = ds.adapt(lambda x, t: net(x, t) + error(model.path.lam(t))[:, None], model.path, predicts)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.linalg.qr(z - z.mean(0)).Q * (n - 1) ** 0.5
    return measured(model, Noises(z, {}, Guidance.of(None)), z * STD + MEAN, ds.Key(0))


@pytest.mark.parametrize(
    ("path", "predicts"),
    [
        ("condot", "velocity"),
        ("condot", "v"),
        ("ddpm", "noise"),
        ("ddpm", "score"),
        ("edm", "edm"),
        ("edm", "denoised"),
    ],
)
def test_the_world_of_an_exact_gaussian_network_does_not_err(path, predicts):
    found = world(path, predicts)
    assert found.spectrum == pytest.approx([1.0, 0.09])
    assert found.counts == (1, 1)
    assert max(found.delta) < 1e-6
    assert found.predicts == predicts


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("ddpm", "noise"), ("edm", "denoised")])
def test_the_world_sees_how_much_a_network_errs(path, predicts):
    """An error known in closed form; that of neighbouring levels is all one, so that it hardly varies."""
    found = world(path, predicts, lambda lam: 0.1 * torch.exp(-(lam**2) / 8))
    assert found.delta == pytest.approx([0.1 * math.exp(-(lam**2) / 8) for lam in found.lam], rel=1e-5)
    assert found.rate < 1e-3
    assert (sorted(found.lam), len(found.lam)) == (list(found.lam), 12)


def test_the_world_sees_how_fast_an_error_varies():
    found = world("condot", "velocity", lambda lam: torch.cos(1.3 * lam + torch.arange(400) * 2.4))
    apart = found.lam[1] - found.lam[0]
    assert found.rate == pytest.approx(math.sqrt(-2 * math.log(math.cos(1.3 * apart))) / apart, rel=0.02)


def test_the_error_on_paper_is_the_theorys():
    run, path = ds.plan("condot", "heun", nfe=6), ds.paths.named("condot")
    flat = World((1.0, 0.09), (1, 3), (-2.0, 2.0), (0.1, 0.1), 0.5, "velocity")
    far = distance(run, path, "velocity", (1.0, 0.09), 0.1, 0.5) ** 2
    assert flat.expected(run, path) == pytest.approx(math.sqrt((far[0] + 3 * far[1]) / 1.27))
    late = World((1.0, 0.09), (1, 3), (-2.0, 2.0), (1e-9, 0.1), 0.5, "velocity")
    assert late.expected(run, path) < flat.expected(run, path)


def test_directions_beyond_the_ends_are_flat():
    noises = Noises(torch.randn(5, 30), {}, Guidance.of(None))
    model = ds.adapt(lambda x, t: -x, "condot", "velocity")
    found = measured(model, noises, torch.randn(5, 30, generator=torch.Generator().manual_seed(1)), ds.Key(0))
    assert sum(found.counts) == 30
    assert found.counts[-1] == 30 - 4
    assert found.spectrum[-1] == pytest.approx(FLAT * sum(found.spectrum[:-1]) / 4)
    with pytest.raises(ValueError, match="must be finite and differ"):
        measured(model, noises, torch.zeros(5, 30), ds.Key(0))


def test_a_trial_is_what_its_parts_say(found):
    """Against the library called by hand on the same noises."""
    model, choice = ds.load("mixture-2d"), found[6]
    x = ds.Key(0).normal((24, 2), row=1) * model.path.prior_std(0.0)
    ends = ds.sample(model, noise=x, nfe=40)
    size = float(ends.square().sum() / 24) ** 0.5

    def errors(solver, grid, rows):
        y = ds.sample(model, noise=x, solver=solver, grid=grid, nfe=6)[rows]
        return (y - ends[rows]).norm(dim=1) / size

    assert {(trial.solver, trial.grid) for trial in choice.trials} == {OWN, *AMONG}
    for trial in choice.trials:
        expected = errors(trial.solver, trial.grid, slice(0, trial.noises))
        assert trial.error.value == pytest.approx(float(expected.mean()), rel=1e-3)
        assert trial.error.stderr == pytest.approx(float(expected.std()) / trial.noises**0.5, rel=1e-3)
        assert trial.calls <= 6
    held = errors(choice.solver, choice.grid, slice(12, 24))
    assert choice.error.value == pytest.approx(float(held.mean()), rel=1e-3)
    assert choice.auto.value == pytest.approx(float(errors("auto", None, slice(12, 24)).mean()), rel=1e-3)
    half = (ds.sample(model, noise=x, nfe=20) - ends).norm(dim=1).mean() / size
    assert found.floor == pytest.approx(float(half), rel=1e-2)
    runs = sum(trial.noises * trial.calls for trial in choice.trials)
    assert found.calls == 24 * 60 + 12 * 12 + runs + sum(t.calls * 8 for t in choice.trials) + 12 * (
        6 + choice.tableau.nfe
    )


def test_the_best_of_those_tried_is_chosen(found):
    choice = found[6]
    assert choice.error.value <= choice.auto.value
    final = [trial for trial in choice.trials if trial.noises == 12]
    if choice.solver != "auto":
        assert (choice.solver, choice.grid) == (choice.trials[0].solver, choice.trials[0].grid)
        assert choice.trials[0].error.value == min(trial.error.value for trial in final)
    assert eval(choice.code, {"ds": ds, "model": ds.load("mixture-2d"), "shape": (3, 2)}).shape == (3, 2)


def test_auto_is_kept_where_nothing_is_better():
    found = ds.choose(ds.load("mixture-2d"), (24, 2), **{**SMALL, "among": [("ddim", None)]})
    assert (found[6].solver, found[6].grid) == OWN
    assert found[6].error == found[6].auto


def test_the_order_on_paper_is_near_that_of_the_network():
    """Ranks over a twentieth of the space, most of which is far from good."""
    model, pairs = ds.load("mixture-2d"), space()[::21]
    trials = ds.choose(model, (16, 2), nfe=8, teacher=60, seed=1, among=pairs, trials=len(pairs))[8].trials
    expected, error = (
        torch.tensor(numbers).argsort().argsort().double()
        for numbers in ([t.expected for t in trials], [t.error.value for t in trials])
    )
    assert torch.corrcoef(torch.stack([expected, error]))[0, 1] > 0.4  # 0 +- 0.19 of a random order
    few = ds.choose(model, (16, 2), nfe=8, teacher=60, seed=1, among=pairs, trials=4)[8].trials
    nearest = sorted((t for t in trials if (t.solver, t.grid) != OWN), key=lambda t: t.expected)[:4]
    assert {(t.solver, t.grid) for t in few} == {OWN, *((t.solver, t.grid) for t in nearest)}


def test_conditions_guidance_and_budgets_reach_the_runs():
    seen = set()

    def net(x, t, k=0.0):
        seen.add(len(x))
        return -x + (k[:, None] if isinstance(k, torch.Tensor) else k)

    model = ds.adapt(net, "condot", "velocity")
    cond = {"k": torch.arange(12.0)}
    found = ds.choose(model, (12, 2), nfe=[4, 3], cond=cond, guidance=2.0, teacher=20, seed=0, batch=5, among=AMONG)
    assert list(found) == [3, 4]
    assert max(seen) <= 9  # 5 at once, and the 9 of the pilot for the world
    assert len(found) == 2
    assert all(text in str(found) for text in ("| NFE | solver |", "network calls", "nfe=4)"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nfe": 0}, ValueError, "nfe must be an integer >= 1, got 0"),
        ({"nfe": []}, ValueError, "nfe must be at least one budget"),
        ({"trials": 0}, ValueError, "trials must be an integer >= 1, got 0"),
        ({"held_out": 1.0}, ValueError, "held_out must be a finite number > 0 and < 1, got 1.0"),
        ({"among": [("unipc3", None)]}, ValueError, "did you mean 'unipc-3'"),
        ({"nfes": 3}, TypeError, r"choose\(\) got an unknown option 'nfes'; did you mean 'nfe'"),
    ],
)
def test_errors_name_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        ds.choose(ds.load("mixture-2d"), (8, 2), **{**SMALL, **options})


def test_ends_that_are_not_finite_are_told():
    model = ds.adapt(lambda x, t: x * math.inf, "condot", "velocity")
    with pytest.raises(ValueError, match="ends of the accurate runs must be finite"):
        ds.choose(model, (8, 2), **SMALL)


def test_all_of_the_space_can_be_planned():
    pairs = space()
    assert len(set(pairs)) == len(pairs)
    assert pairs[0] == OWN
    for solver, grid in pairs[::7]:
        assert ds.plan("condot", solver, grid=grid, nfe=8).nfe <= 8


def test_the_search_says_what_is_tried_after_the_first(monkeypatch):
    """It is told the errors so far; here it asks for the last on paper, one after another."""
    told = []

    class Last(choosing.Search):
        def next(self, errors):
            told.append(dict(errors))
            return max(set(range(len(self.covariance))) - set(errors))

    monkeypatch.setattr(choosing, "ORDERED", 1)
    every = ds.choose(ds.load("mixture-2d"), (16, 2), **{**SMALL, "trials": 100})[6].trials
    monkeypatch.setattr(choosing, "Search", Last)
    some = ds.choose(ds.load("mixture-2d"), (16, 2), **{**SMALL, "trials": 3})[6].trials
    order = sorted((t for t in every if (t.solver, t.grid) != OWN), key=lambda t: t.expected)
    pairs = [(t.solver, t.grid) for t in (order[0], *order[-2:])]
    assert {(t.solver, t.grid) for t in some} == {OWN, *pairs}
    assert [len(errors) for errors in told] == [2, 3]
    assert all(math.isfinite(error) for error in told[-1].values())
