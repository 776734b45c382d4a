"""Every way of running takes states of any layout and rank: channels last, transposed, one number a sample, none."""

import pytest
import torch

import diffsolve as ds

MODEL = ds.adapt(lambda x, t: -torch.tanh(x) - t.view(-1, *[1] * (x.dim() - 1)), "condot", "velocity")


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


STARTS = {
    "channels last": normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": normal(3, 4).t(),
    "one number": normal(5),
    "empty": normal(0, 2),
    "empty of one number": normal(0),
}
FIXED = {"solver": "rk4", "steps": 4}
RUNS = {
    "sequential": FIXED,
    "trajectory": {**FIXED, "trajectory": True},
    "transitions": {"solver": "ddim(eta=1.0)", "steps": 4, "log_prob": True, "check": True},
    "picard": {**FIXED, "parallel": ds.Picard()},
    "parareal": {**FIXED, "parallel": ds.Parareal()},
    "adaptive": {"solver": ds.Adaptive(), "check": True},
    "adaptive sde": {"solver": ds.AdaptiveSDE(), "check": True},
    "density": {**FIXED, "log_prob": "model"},
    "adaptive density": {"solver": ds.Adaptive(), "log_prob": "model"},
    "direct": {**FIXED, "gradient": "direct"},
    "checkpoint": {**FIXED, "gradient": "checkpoint"},
    "adjoint": {**FIXED, "gradient": "adjoint"},
    "adaptive direct": {"solver": ds.Adaptive(), "gradient": "direct"},
    "adaptive checkpoint": {"solver": ds.Adaptive(), "gradient": "checkpoint"},
    "adaptive adjoint": {"solver": ds.Adaptive(), "gradient": "adjoint"},
    "corrector": {**FIXED, "corrector": ds.Langevin(1, snr=0.1)},
    "guided": {**FIXED, "guidance": ds.Guidance(3.0, rescale=0.7)},
    "guided, adaptive": {"solver": ds.Adaptive(), "guidance": ds.Guidance(3.0, rescale=0.7)},
}


def solved(start, options):
    """The result, and the gradient of its sum where one is asked for."""
    start = start.clone(memory_format=torch.preserve_format).requires_grad_("gradient" in options)
    x = ds.solve(MODEL, noise=start, seed=0, **options).x
    return x, torch.autograd.grad(x.sum(), start)[0] if "gradient" in options else None


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("run", RUNS)
def test_a_run_does_not_depend_on_the_layout(run, start):
    given = STARTS[start]
    found = solved(given, RUNS[run])
    if not len(given):
        assert all(part is None or part.shape == given.shape for part in found)
        return
    flat = given.reshape(len(given), -1).contiguous()
    for part, expected in zip(found, solved(flat, RUNS[run]), strict=True):
        if part is not None:
            torch.testing.assert_close(part.reshape(flat.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trace", ["exact", "hutchinson(probes=2)"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", [ds.Adaptive(), "rk4"])
def test_a_density_does_not_depend_on_the_layout(start, trace, solver):
    given, steps = STARTS[start], {"steps": 4} if solver == "rk4" else {}
    found = ds.log_prob(MODEL, given, trace=trace, solver=solver, **steps)
    assert found.value.shape == (len(given),)
    if len(given):
        expected = ds.log_prob(MODEL, given.reshape(len(given), -1), trace=trace, solver=solver, **steps)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_langevin_does_not_depend_on_the_layout(start):
    given = STARTS[start]
    for density in (None, lambda x: -x.square().reshape(len(x), -1).sum(1) if len(x) else x.new_zeros(0)):
        chain = ds.langevin(MODEL, given, 0.5, steps=2, step=0.1, log_density=density, seed=0)
        assert chain.x.shape == given.shape
        assert chain.x.isfinite().all()
