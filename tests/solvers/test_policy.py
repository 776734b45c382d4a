"""The steps of training with rewards, and their log-probabilities, against the recursions of the published codes."""

import math

import pytest
import torch
from torch import nn

import diffsolve as ds
from diffsolve.noise import Stream

SIGMAS = [1.0, 0.9, 0.7, 0.45, 0.2, 0.0]
SHAPE, SEED = (4, 3, 2), 5


class Velocity(nn.Module):
    """eps - x_0 of some data, with a parameter for gradients."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, t):
        return self.scale * torch.tanh(x) + 0.3 * t.view(-1, 1, 1).to(x)


def mean(x):
    return x.flatten(1).mean(1)


def flow_grpo(v, x, after, sigma, below, first, level=0.7):
    """`sde_step_with_logprob` of flow_grpo, sde_type="sde"."""
    dt = below - sigma
    std = math.sqrt(sigma / (1 - (first if sigma == 1 else sigma))) * level
    middle = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    spread = std * math.sqrt(-dt)
    log = -((after - middle) ** 2) / (2 * spread**2) - math.log(spread) - math.log(math.sqrt(2 * math.pi))
    return middle, spread, mean(log)


def cps(v, x, after, sigma, below, first, level=0.7):
    """The same with sde_type="cps", whose log-probability leaves all constants out, 1 / (2 std^2) among them."""
    spread = below * math.sin(level * math.pi / 2)
    data, noise = x - sigma * v, x + v * (1 - sigma)
    middle = data * (1 - below) + noise * math.sqrt(below**2 - spread**2)
    return middle, spread, mean(-((after - middle) ** 2))


def dance(v, x, after, sigma, below, first, eta=0.3):
    """`flux_step` of DanceGRPO, with the two constants that its code computes and does not add."""
    down = below - sigma
    data = x - sigma * v
    score = -(x - data * (1 - sigma)) / sigma**2
    middle = x + down * v - 0.5 * eta**2 * score * down
    spread = eta * math.sqrt(-down)
    log = -((after - middle) ** 2) / (2 * spread**2) - math.log(spread) - math.log(math.sqrt(2 * math.pi))
    return middle, spread, mean(log)


CODES = {"flow-sde": flow_grpo, "cps": cps, "dance-sde": dance}


def run(name, net=None, path="rectified", grid=SIGMAS):
    model = ds.adapt(net or Velocity(), path, "velocity")
    noise = ds.Key(1).normal(SHAPE, dtype=torch.float64)
    return model, ds.solve(model, noise=noise, solver=name, grid=grid, seed=SEED, trajectory="calls", log_prob=True)


@pytest.mark.parametrize("name", CODES)
def test_runs_and_log_probabilities_are_the_published(name):
    net = Velocity()
    model, found = run(name, net)
    now = ds.transition_log_prob(model, found.trajectory, found.tableau)
    x, size = found.trajectory[0], math.prod(SHAPE[1:])
    slopes, wanted = [], []
    for i, (sigma, below) in enumerate(zip(SIGMAS, SIGMAS[1:], strict=False)):
        v = net(x, torch.full((SHAPE[0],), sigma, dtype=torch.float64))
        after = found.trajectory[i + 1]
        middle, spread, log = CODES[name](v, x, after, sigma, below, SIGMAS[1])
        z = ds.Key(SEED).normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=torch.float64)
        torch.testing.assert_close(after, (middle + spread * z).detach(), rtol=1e-12, atol=1e-12)
        if name == "cps":  # with the constants that it leaves out
            log = log / (2 * spread**2) - math.log(spread * math.sqrt(2 * math.pi)) if spread else log * 0
        torch.testing.assert_close(now[i] / size, log, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.log_prob[i] / size, log.detach(), rtol=1e-9, atol=1e-10)
        slopes.append(torch.autograd.grad(now[i].sum() / size, net.scale, retain_graph=True)[0])
        wanted.append(torch.autograd.grad(log.sum(), net.scale)[0] if log.requires_grad else slopes[-1])
        x = after
    torch.testing.assert_close(torch.stack(slopes), torch.stack(wanted), rtol=1e-9, atol=1e-10)
    assert bool((found.log_prob[:-1] != 0).all())
    assert bool((found.log_prob[-1] != 0).all()) == (name != "cps")  # the others' last step adds noise


def test_ddpo_is_ddim_with_eta():
    """`ddim_step_with_logprob` of ddpo-pytorch on a table of betas: a mean over elements, too."""
    net = Velocity()
    path = ds.paths.Discrete.scaled_linear()
    grid = [951.0, 701.0, 451.0, 201.0, 1.0, -1.0]
    model = ds.adapt(net, path, "noise")
    noise = ds.Key(1).normal(SHAPE, dtype=torch.float64)
    found = ds.solve(model, noise=noise, solver="ddim(eta=1)", grid=grid, seed=0, trajectory="calls", log_prob=True)
    products = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    for i in range(4):
        x, after = found.trajectory[i], found.trajectory[i + 1]
        now, before = products[int(grid[i])], products[int(grid[i + 1])]
        eps = net(x, torch.full((SHAPE[0],), grid[i], dtype=torch.float64))
        spread = ((1 - before) / (1 - now) * (1 - now / before)).sqrt()
        middle = before.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - before - spread**2).sqrt() * eps
        log = torch.distributions.Normal(middle, spread).log_prob(after)
        torch.testing.assert_close(found.log_prob[i] / 6, mean(log).detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", CODES)
def test_on_other_paths_it_is_the_same_method(name):
    """The samples of one flow on CondOT's clock, and of the same network on the variance-preserving path."""
    noise = ds.Key(1).normal(SHAPE, dtype=torch.float64)
    u = torch.tensor([0.98, *SIGMAS[1:]], dtype=torch.float64)

    def denoise(alpha, sigma):
        return lambda x, t: torch.tanh(x / (alpha(t) + sigma(t)).view(-1, 1, 1))

    ends = {}
    for name_of_path in ("rectified", "vp", "edm"):
        path = ds.paths.named(name_of_path)
        grid = [float(path.time(float(((1 - v) / v).log()))) for v in u[:-1]] + [path.t_data]
        model = ds.adapt(denoise(path.alpha, path.sigma), path, "denoised")
        p = path.nodes(grid)
        scale = float(p.alpha[0] + p.sigma[0])
        ends[name_of_path] = ds.sample(model, noise=scale * noise, solver=name, grid=grid, seed=0)
    torch.testing.assert_close(ends["vp"], ends["rectified"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ends["edm"], ends["rectified"], rtol=1e-6, atol=1e-7)


def test_levels_are_checked():
    with pytest.raises(ValueError, match="noise_level must be a finite number > 0, got 0"):
        ds.solvers.named("flow-sde(noise_level=0)")
    with pytest.raises(ValueError, match="noise_level must be a finite number >= 0 and <= 1, got 1.5"):
        ds.solvers.named("cps(noise_level=1.5)")
    with pytest.raises(ValueError, match="eta must be a finite number > 0, got -1"):
        ds.solvers.named("dance-sde(eta=-1)")
    with pytest.raises(ValueError, match="from the noise to the data only"):
        ds.plan("rectified", "flow-sde", grid=[0.2, 0.5, 0.9])
