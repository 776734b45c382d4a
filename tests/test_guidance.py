import pytest
import torch

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, ring
from diffsolve.solvers import Auto, Multistep


class Net:
    """x pulled to a target that depends on the label; without one, to 0."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, label=None):
        self.calls.append((len(x), label is not None))
        return 0.5 * x if label is None else 0.5 * x + label.view(-1, 1)


@pytest.mark.parametrize("predicts", ["denoised", "noise", "v"])
def test_the_formula(predicts):
    net, label = Net(), torch.tensor([1.0, -2.0, 0.5])
    x = torch.randn(3, 2)
    run = lambda **k: ds.sample(ds.adapt(net, "vp", predicts), noise=x, solver="dpmpp-2m", steps=5, **k)  # noqa: E731
    by_hand = ds.sample(
        ds.adapt(lambda x, t: net(x, t) + 3.0 * (net(x, t, label) - net(x, t)), "vp", predicts),
        noise=x,
        solver="dpmpp-2m",
        steps=5,
    )
    torch.testing.assert_close(run(cond={"label": label}, guidance=3.0), by_hand)
    both = ds.Guidance(3.0, uncond={"label": torch.zeros(3)}, batched=True)
    torch.testing.assert_close(run(cond={"label": label}, guidance=both), by_hand)
    for one in (1.0, ds.Guidance(1.0)):
        net.calls.clear()
        assert torch.equal(run(cond={"label": label}, guidance=one), run(cond={"label": label}))
        assert len(net.calls) == 10
    assert torch.equal(run(cond={"label": label}, guidance=0.0), run())


def test_interval():
    net = Net()
    model, cond = ds.adapt(net, "edm", "denoised"), {"label": torch.ones(2)}
    run = ds.solve(
        model, (2, 2), solver="euler", steps=8, seed=0, cond=cond, guidance=ds.Guidance(2.0, interval=(0.1, 10.0))
    )
    inside = ((run.tableau.calls[:, 2] >= 0.1) & (run.tableau.calls[:, 2] <= 10)).sum()
    assert len(net.calls) == 8 + inside
    assert run.nfe == 8


def test_guided_digits_are_the_class_asked_for():
    model = ds.load("digits")
    x = ds.sample(model, (10, 1, 8, 8), nfe=6, seed=0, cond={"label": torch.arange(10)}, guidance=2.0)
    assert x.isfinite().all()
    assert x.abs().max() < 3


@pytest.mark.parametrize(
    ("scale", "steps", "points", "corrector"),
    [
        *((w, n, p, p + 1) for w in (1.0, 0.0, 0.5) for n, p in ((5, 1), (9, 2), (14, 3), (25, 4), (40, 5), (41, 6))),
        # n / sqrt(w) = 5, 5.5, 20, 20.5, and below two no corrector; from u + w (c - u) and c + (1 - w) (u - c) alike
        *((w, *rule) for w in (4.0, -3.0) for rule in ((10, 1, 2), (11, 2, 3), (50, 4, 5), (81, 6, 7), (3, 1, 0))),
        (7.5, 5, 1, 0), (7.5, 10, 1, 2), (7.5, 20, 2, 3), (7.5, 30, 3, 4), (2.0, 10, 2, 3), (2.0, 20, 4, 5),
    ],
)  # fmt: skip
def test_auto_lowers_its_order_under_guidance(scale, steps, points, corrector):
    found = Auto().guided(scale).method(steps)
    assert found == Multistep(points, "straight", "theta", corrector)


def test_auto_is_told_the_scale():
    model, x = ds.adapt(Net(), "vp", "v"), torch.randn(2, 3)
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
        told, untold = ((run(solver=s, steps=steps) - exact).norm() for s in ("auto", "auto(guidance=1)"))
        assert told < bound * exact.norm()
        assert told < 0.3 * untold


def test_hook_and_guidance(mixture):
    net = mixture_model(mixture, "edm", "noise").net
    model = ds.adapt(lambda x, t, shift=0.0: net(x, t) + shift, "edm", "noise")
    seen = []
    ds.sample(
        model,
        (2, 2),
        solver="euler",
        steps=3,
        seed=0,
        cond={"shift": 1.0},
        guidance=2.0,
        hook=lambda s: seen.append(s.denoised),
    )
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ds.Guidance("2"), "scale='2'"),
        (lambda: ds.Guidance(float("nan")), "scale=nan"),
        (lambda: ds.Guidance(2.0, uncond=3), "uncond=3"),
        (lambda: ds.plan("vp", "auto(guidance='strong')", steps=5), "guidance='strong': a finite number"),
        (lambda: ds.plan("vp", "auto(guidance=True)", steps=5), "guidance=True: a finite number"),
        (lambda: ds.Guidance(2.0, interval=(3.0, 1.0)), r"interval=\(3.0, 1.0\)"),
        (lambda: ds.sample(ds.adapt(Net(), "edm", "noise"), (1, 2), nfe=2, guidance="strong"), "scale='strong'"),
        (
            lambda: ds.sample(
                ds.adapt(Net(), "edm", "noise"),
                (1, 2),
                nfe=2,
                cond={"label": torch.ones(1)},
                guidance=ds.Guidance(2.0, batched=True),
            ),
            r"uncond=\[\]: batched guidance needs the arguments of cond=\['label'\]",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()
