"""A tableau bound to a network: what is kept of a call."""

from dataclasses import replace

import torch

import diffsolve as ds
from diffsolve.execute import bind


def test_a_derivative_that_is_the_state_itself_is_kept():
    """d = 2 (alpha x_0 + sigma eps) at one call: the network's output has no share in it, and later rows still use it.

    The state is kept as it is, and what it is multiplied by is in the weights: one pass over memory less.
    """
    model = ds.load("mixture-2d(path='condot', predicts='denoised')")
    tableau = ds.plan("condot", "ab-3(frame='straight')", steps=6)
    d = tableau.d.copy()
    d[2] = 2 * tableau.calls[2, 1:]
    tableau = replace(tableau, d=d)
    assert bind(tableau, model).rows[3].keep == (1.0, 0.0)
    x = ds.Key(0).normal((3, 2), dtype=torch.float64)

    s = y = x
    kept = []
    for (t, alpha, sigma), (a, b), row in zip(tableau.calls, tableau.d, tableau.weights, strict=True):
        x0 = model.net(y, torch.full((3,), t, dtype=torch.float64))
        kept = [a * x0 + b * (y - alpha * x0) / sigma, *kept]
        terms = [s, y, *kept[: tableau.history]]
        s, y = (sum(float(w) * term for w, term in zip(side, terms, strict=False)) for side in row)
    torch.testing.assert_close(ds.sample(model, noise=x, solver=tableau), y, rtol=1e-10, atol=1e-10)


def test_a_resumed_run_scales_the_input_of_its_first_call():
    """A raw EDM network sees c_in x in every call, the first after a break too."""
    seen = []

    def net(x, t):
        seen.append(x.clone())
        return 0.3 * x

    model = ds.adapt(net, "edm", "edm")
    ds.sample(model, (2, 3), solver="euler", steps=4, seed=0)
    whole, seen[:] = list(seen), []
    run = ds.solve(model, (2, 3), solver="euler", steps=4, seed=0, max_calls=2)
    ds.sample(model, solver=run.tableau, state=run.state)
    assert all(torch.equal(a, b) for a, b in zip(whole, seen, strict=True))
