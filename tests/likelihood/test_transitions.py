"""Log-probabilities of stochastic transitions: against torch.distributions, replayed, and their gradients."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import diffsolve as ds
from diffsolve import paths

STOCHASTIC = [name for name in ds.solvers.names() if ds.plan("vp", name, steps=12).stochastic]


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, x, t, shift=None):
        out = self.body(torch.cat([x, t[:, None].to(x)], -1))
        return out if shift is None else out + shift


def model(net=None, path="condot"):
    return ds.adapt(net or Net(), path, "velocity" if path == "condot" else "denoised")


@pytest.mark.product({"spec": STOCHASTIC, "path": ["condot", "edm"]})
def test_a_replayed_run_has_the_same_log_probabilities(spec, path):
    net = model(path=path)
    steps = 12 if spec == "restart" else 6  # or no node lies below its interval
    run = ds.solve(net, (5, 3), solver=spec, steps=steps, seed=3, trajectory="calls", log_prob=True)
    assert run.trajectory.shape == (run.tableau.nfe + 1, 5, 3)
    assert run.log_prob.shape == (run.tableau.nfe, 5)
    again = ds.transition_log_prob(net, run.trajectory, run.tableau)
    torch.testing.assert_close(again.detach(), run.log_prob, rtol=1e-7, atol=1e-6)
    noisy = run.tableau.weights[:, 1, -1] != 0
    assert bool((run.log_prob[torch.from_numpy(noisy)] != 0).all())
    assert bool((run.log_prob[torch.from_numpy(~noisy)] == 0).all())


def test_by_hand():
    """DDPM on the variance-preserving path, against the Gaussian of each step written out."""
    net, path = model(path="edm"), paths.EDM()
    run = ds.solve(net, (4, 3), solver="ddpm", steps=5, seed=1, trajectory=True, log_prob=True)
    times = run.times
    for i in range(4):
        s, t, x, after = times[i], times[i + 1], run.trajectory[i], run.trajectory[i + 1]
        D = net.denoised(x, s).detach()
        mean = (t / s) ** 2 * x + (1 - (t / s) ** 2) * D
        std = math.sqrt((s**2 - t**2) * t**2 / s**2)
        expected = Normal(mean, std).log_prob(after).sum(-1)
        torch.testing.assert_close(run.log_prob[i], expected, rtol=1e-9, atol=1e-9)
    assert path.t_noise == times[0]


@pytest.mark.parametrize("spec", ["ddim(eta=1.0)", "sa-2", "seeds-2", "dpmpp-2m-sde"])
def test_gradients_are_those_of_finite_differences(spec):
    net = Net()
    run = ds.solve(model(net), (3, 3), solver=spec, steps=4, seed=0, trajectory="calls")
    ds.transition_log_prob(model(net), run.trajectory, run.tableau).sum().backward()
    weight = net.body[2].weight
    for place in ((0, 0), (2, 5)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
                values.append(float(ds.transition_log_prob(model(net), run.trajectory, run.tableau).sum()))
                weight[place] -= step
        assert float(weight.grad[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_the_score_function_has_mean_zero():
    """E[grad log p] = 0 under the run's own law: what makes the policy gradient unbiased."""
    net = Net()
    run = ds.solve(model(net), (4096, 3), solver="ddim(eta=1.0)", steps=3, seed=0, trajectory="calls")
    shift = torch.zeros(4096, 3, dtype=torch.float64, requires_grad=True)
    logs = ds.transition_log_prob(model(net), run.trajectory, run.tableau, cond={"shift": shift})
    (grad,) = torch.autograd.grad(logs.sum(), shift)
    z = grad.mean(0) / (grad.std(0) / 64)
    assert float(z.abs().max()) < 4
    assert float(grad.std()) > 0.1


def test_some_rows_only():
    class Counts(Net):
        calls = 0

        def forward(self, x, t):
            self.calls += 1
            return super().forward(x, t)

    for spec, needed in (("ddim(eta=1.0)", 2), ("sa-2", 5)):
        net = Counts()
        run = ds.solve(model(net), (3, 3), solver=spec, steps=6, seed=0, trajectory="calls", log_prob=True)
        net.calls = 0
        some = ds.transition_log_prob(model(net), run.trajectory, run.tableau, rows=[1, 4])
        assert net.calls == needed
        torch.testing.assert_close(some.detach(), run.log_prob[[1, 4]], rtol=1e-7, atol=1e-6)
    assert ds.transition_log_prob(model(net), run.trajectory, run.tableau, rows=[]).shape == (0, 3)


def test_images_conditions_and_guidance():
    net = lambda x, t, y=0.0: torch.tanh(x) * (1 + y)  # noqa: E731
    flow = ds.adapt(net, "condot", "velocity")
    options = {"cond": {"y": 0.5}, "guidance": 2.0}
    run = ds.solve(
        flow, (2, 3, 4, 4), solver="ddim(eta=0.7)", steps=5, seed=0, trajectory="calls", log_prob=True, **options
    )
    again = ds.transition_log_prob(flow, run.trajectory, run.tableau, **options)
    torch.testing.assert_close(again, run.log_prob, rtol=1e-5, atol=1e-4)  # in float32
    assert not torch.allclose(again, ds.transition_log_prob(flow, run.trajectory, run.tableau))


@pytest.mark.parametrize(("call", "says"), [
    (lambda m, r: ds.solve(m, (2, 3), solver="heun", steps=3, log_prob=True), "solver must be stochastic with"),
    (
        lambda m, r: ds.solve(m, (2, 3), solver="heun", steps=3, trajectory="nodes"),
        "trajectory must be False, True or 'calls', got 'nodes'",
    ),
    (lambda m, r: ds.transition_log_prob(m, r.trajectory[1:], r.tableau), "the 4 network inputs"),
    (lambda m, r: ds.transition_log_prob(m, None, r.tableau), "trajectory must be the 4 network inputs.*got None"),
    *(
        (lambda m, r, rows=rows: ds.transition_log_prob(m, r.trajectory, r.tableau, rows=rows), "rows must be rising")
        for rows in ([2, 1], [3])
    ),
    (lambda m, r: ds.transition_log_prob(model(path="edm"), r.trajectory, r.tableau), "was written for"),
])  # fmt: skip
def test_errors_name_what_is_wrong(call, says):
    flow = model()
    run = ds.solve(flow, (2, 3), solver="ddpm", steps=3, seed=0, trajectory="calls")
    with pytest.raises((ValueError, TypeError), match=says):
        call(flow, run)
