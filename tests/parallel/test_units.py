"""What parallel runs allow a point to change does not depend on the unit of the state."""

import pytest
import torch

import diffsolve as ds


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
