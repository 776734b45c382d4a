"""What parallel runs allow a point to change does not depend on the unit of the state."""

import pytest
import torch

import diffsolve as ds
from diffsolve.parallel.rows import step_variance


@pytest.mark.parametrize("method", [lambda atol: ds.Parareal(blocks=8, tol=0.0, atol=atol),
                                    lambda atol: ds.Picard(window=12, tol=0.0, atol=atol)])  # fmt: skip
def test_atol_is_in_the_unit_of_the_state(method):
    """A linear network, the start and `atol` times 2^8: the same rounds, and 2^8 times the samples, bit for bit."""
    model = ds.adapt(lambda x, t: x * (t / (1 + t))[:, None].cos(), "edm", "noise")
    x = ds.Key(1).normal((5, 4), dtype=torch.float64)
    rounds = set()
    for atol in (1e-2, 0.3, 3.0):
        run, larger = (
            ds.solve(model, noise=c * x, start=5.0, solver="ddim", steps=40, parallel=method(c * atol))
            for c in (1.0, 256.0)
        )
        assert run.parallel.each.tolist() == larger.parallel.each.tolist()
        assert torch.equal(256 * run.x, larger.x)
        rounds.add(run.parallel.rounds)
    assert len(rounds) > 1


def test_one_bad_value_of_a_sample_is_found():
    """In the second call alone, in one of two values."""

    def net(x, t):
        out = -x
        return torch.where((t.view(-1, 1) > 0.2) & (torch.arange(2) == 1), torch.nan, out)

    model = ds.adapt(net, "condot", "velocity")
    with pytest.raises(FloatingPointError, match=r"first in call 1 of 4, at t=0.25"):
        ds.sample(model, (3, 2), solver="euler", grid="uniform-t", steps=4, parallel=ds.Picard(window=4), check=True)


def test_anderson_mixes_as_few_as_its_default_says():
    assert ds.Anderson() == ds.Anderson(memory=2)


def test_tol_is_a_share_of_the_noise_of_a_step():
    """A change of at most tol standard deviations: in one end, what `atol` of that size allows, sample by sample."""
    model = ds.adapt(lambda x, t: x * (t / (1 + t))[:, None].cos(), "edm", "noise")
    x = ds.Key(1).normal((64, 4), dtype=torch.float64) * torch.logspace(-4, 0.5, 64)[:, None]
    plan = ds.plan(model, "ddim", steps=8, start=5.0)
    deviation = float(step_variance(plan)[3]) ** 0.5

    def rounds(**options):
        run = ds.solve(model, noise=x, solver=plan, parallel=ds.Parareal(blocks=2, **options))
        return run.parallel.each.tolist()

    seen = {tol: rounds(tol=tol) for tol in (0.05, 0.2, 0.6)}
    for tol, each in seen.items():
        assert each == rounds(tol=0.0, atol=tol * deviation)
    assert len({tuple(each) for each in seen.values()}) == 3
