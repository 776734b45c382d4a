"""The rule behind `solver="auto"`: what it depends on, and what not."""

import pytest
import torch
from support.product import shown

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, random_means, ring
from diffsolve.solvers import Auto, Multistep


def net(x, t, label=None):
    return 0.5 * x if label is None else 0.5 * x + label.view(-1, 1)


def test_the_rule():
    rule = [
        *((w, n, p, p + 1) for w in (1.0, 0.0, 0.5) for n, p in ((5, 1), (6, 2), (9, 2), (10, 3), (17, 3), (18, 4))),
        *((1.0, n, 4, 5) for n in (30, 100)),
        # n / sqrt(w) = 5, 5.5, 17, 17.5, and below two no corrector; from u + w (c - u) and c + (1 - w) (u - c) alike
        *((w, *rule) for w in (4.0, -3.0) for rule in ((10, 1, 2), (11, 2, 3), (34, 3, 4), (35, 4, 5), (3, 1, 0))),
        *((7.5, *rule) for rule in ((5, 1, 0), (10, 1, 2), (20, 2, 3), (30, 3, 4))),
        *((2.0, *rule) for rule in ((10, 2, 3), (30, 4, 5))),
    ]
    for scale, steps, points, corrector in shown(rule):
        assert Auto().guided(scale).method(steps) == Multistep(points, "straight", "theta", corrector)


def test_it_is_told_the_scale_of_the_run():
    model, x = ds.adapt(net, "vp", "v"), torch.randn(2, 3)
    expected = ds.plan(model, "auto(guidance=7.5)", steps=20)
    assert expected.solver != ds.plan(model, steps=20).solver
    cond = {"label": torch.ones(2)}
    for guidance in (7.5, ds.Guidance(7.5)):
        assert ds.solve(model, noise=x, steps=20, cond=cond, guidance=guidance).tableau.solver == expected.solver
    assert ds.begin(model, noise=x, steps=20, guidance=7.5).tableau.solver == expected.solver
    explicit = ds.solve(model, noise=x, steps=20, solver="auto(guidance=1)", cond=cond, guidance=7.5).tableau
    assert explicit.solver == ds.plan(model, steps=20).solver
    other = ds.plan(model, "unipc-3", steps=20, guidance=7.5)
    assert other.solver == ds.plan(model, "unipc-3", steps=20).solver
    run = lambda solver: ds.encode(model, x, solver=solver, steps=20, cond=cond, guidance=7.5)  # noqa: E731
    assert torch.equal(run("auto"), run("auto(guidance=7.5)"))
    assert not torch.equal(run("auto"), run("auto(guidance=1)"))


@pytest.mark.parametrize("path", ["edm", "condot"])
def test_strong_guidance(path):
    """The rule with and without guidance, from the same noise: eight modes on a circle, of which two are wanted."""
    everything = ring()
    free = mixture_model(everything, path, "v").net
    one = mixture_model(GaussianMixture.isotropic(everything.means[:2], 0.2), path, "v").net
    model = ds.adapt(lambda x, t, wanted=False: (one if wanted else free)(x, t), path, "v")
    x = torch.randn((32, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * model.path.prior_std()
    stop = None if path == "condot" else 0.01

    def run(**options):
        return ds.sample(model, noise=x, stop=stop, cond={"wanted": True}, guidance=7.5, **options)

    exact = run(solver="dopri8(frame='trig')", steps=80, grid="angle")
    assert (run(solver="dopri8(frame='trig')", steps=40, grid="angle") - exact).norm() < 1e-5 * exact.norm()
    for steps, bound in ((10, 0.03), (20, 0.003)):
        network_time, untold = ((run(solver=s, steps=steps) - exact).norm() for s in ("auto", "auto(guidance=1)"))
        assert network_time < bound * exact.norm()
        assert network_time < 0.3 * untold


@pytest.mark.product({"path": ["edm", "vp", "ddpm", "condot"], "nfe": [5, 10, 30]})
def test_an_exact_network_may_predict_anything(path, nfe):
    """Nothing for the rule to depend on: the runs are equal to rounding."""
    mixture = random_means(16)
    predictions = ["denoised", "v", "velocity", "edm"]
    if path != "condot":  # at alpha = 0 they say nothing of the data
        predictions += ["noise", "score"]
    models = [mixture_model(mixture, path, predicts) for predicts in predictions]
    x = torch.randn((8, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, *others = (ds.sample(model, noise=x * model.path.prior_std(), nfe=nfe) for model in models)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", ["strong", True, float("inf"), float("nan")])
def test_errors_name_what_is_wrong(value):
    with pytest.raises(ValueError, match=f"guidance must be a finite number, got {value!r}"):
        Auto(guidance=value)
