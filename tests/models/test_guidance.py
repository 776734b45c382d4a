import pytest
import torch

import diffsolve as ds
from diffsolve.reference import mixture_model


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
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
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
        (lambda: ds.Guidance("2"), "scale must be a finite number, got '2'"),
        (lambda: ds.Guidance(float("nan")), "scale must be a finite number, got nan"),
        (
            lambda: ds.Guidance(-3.5e38),
            r"scale must be of size at most 3.40282e\+38, which float32 holds, got -3.5e\+38",
        ),
        (lambda: ds.Guidance(2.0, uncond=3), "uncond must be a mapping .*, got 3"),
        (lambda: ds.Guidance(2.0, interval=(3.0, 1.0)), r"interval must be .*, got \(3.0, 1.0\)"),
        (
            lambda: ds.sample(ds.adapt(Net(), "edm", "noise"), (1, 2), nfe=2, guidance="strong"),
            "scale must be a finite number, got 'strong'",
        ),
        (
            lambda: ds.sample(
                ds.adapt(Net(), "edm", "noise"),
                (1, 2),
                nfe=2,
                cond={"label": torch.ones(1)},
                guidance=ds.Guidance(2.0, batched=True),
            ),
            r"uncond must have the arguments of cond for batched guidance, \['label'\], got \[\]",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, says):
    with pytest.raises((ValueError, TypeError), match=says):
        make()


def test_rescaled_guidance_has_the_conditional_deviation():
    """With phi = 1 the guided output of each sample has the standard deviation of the conditional one."""
    outputs = {"a": torch.randn(3, 2, 40, dtype=torch.float64), None: torch.randn(3, 2, 40, dtype=torch.float64)}
    model = ds.adapt(lambda x, t, label=None: outputs[label], "edm", "denoised")
    for phi in (0.0, 0.4, 1.0):
        seen = []
        ds.sample(
            model, (3, 2, 40), solver="euler", steps=1, seed=0, cond={"label": "a"}, dtype=torch.float64,
            guidance=ds.Guidance(6.0, rescale=phi), hook=lambda step, seen=seen: seen.append(step.denoised),
        )  # fmt: skip
        plain = outputs[None] + 6 * (outputs["a"] - outputs[None])
        ratio = outputs["a"].flatten(1).std(1) / plain.flatten(1).std(1)
        torch.testing.assert_close(seen[0], plain * (1 - phi + phi * ratio)[:, None, None])
    with pytest.raises(ValueError, match="rescale must be .*, got 2"):
        ds.Guidance(6.0, rescale=2)


@pytest.mark.parametrize("solver", [{"solver": "euler", "steps": 2}, {"solver": ds.Adaptive()}])
@pytest.mark.parametrize("shape", [(3, 2), (3, 1), (3,)])
def test_rescaling_leaves_an_output_without_a_spread_as_it_is(shape, solver):
    """A constant over a sample, and a sample of one number, have no deviation to divide by."""

    def constant(x, t, k=0.0):
        return torch.zeros_like(x) + k

    def run(phi):
        guidance = ds.Guidance(5.0, rescale=phi)
        model = ds.adapt(constant, "condot", "velocity")
        return ds.sample(model, shape, seed=0, cond={"k": 0.2}, guidance=guidance, **solver)

    assert torch.equal(run(0.7), run(0.0))
    assert run(0.7).isfinite().all()


def test_rescaling_has_a_finite_gradient_where_there_is_no_spread():
    k = torch.tensor(0.2, requires_grad=True)
    model = ds.adapt(lambda x, t, k=0.0: torch.zeros_like(x) + k, "condot", "velocity")
    x = ds.sample(
        model, (3, 2), solver="euler", steps=2, seed=0, cond={"k": k}, guidance=ds.Guidance(5.0, rescale=0.7),
        gradient="direct",
    )  # fmt: skip
    assert torch.autograd.grad(x.sum(), k)[0] == pytest.approx(30.0)
