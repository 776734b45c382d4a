"""Networks of older code bases in one line each, equal to their own samplers, written anew here."""

import math

import numpy as np
import pytest
import torch
from support import peers
from torch import nn

import diffsolve as ds
from diffsolve.noise import Stream

SHAPE, SEED = (3, 2, 4, 4), 7
START = ds.Key(1).normal(SHAPE, dtype=torch.float64)


def drawn(i, key=SEED):
    return ds.Key(key).normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=torch.float64)


def eps(x, t, bias=0.0):
    return torch.tanh(1.7 * x + bias) + 0.1 * torch.sin(t / 100).view(-1, 1, 1, 1)


class Six(nn.Module):
    """A network of OpenAI's `learn_sigma=True`: twice the channels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8, dtype=torch.float64))

    def forward(self, x, t, bias=0.0):
        return torch.cat([self.weight * eps(x, t, bias), torch.sin(x + bias)], 1)


# ------------------------------------------------------------------- improved-diffusion and guided-diffusion

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
PRODUCTS = (1 - BETAS).cumprod(0)


def p_sample_loop(net, rows, kind, clip):
    """SpacedDiffusion.p_sample_loop, with model_var_type LEARNED_RANGE or LEARNED."""
    x = START
    for i, row in enumerate(rows):
        product, before = PRODUCTS[row], PRODUCTS[rows[i + 1]] if i + 1 < len(rows) else torch.tensor(1.0)
        beta = 1 - product / before
        out, values = net(x, torch.full((len(x),), float(row), dtype=x.dtype)).split(x.shape[1], 1)
        posterior = beta * (1 - before) / (1 - product)
        if kind == "range":
            share = (values + 1) / 2
            log_variance = share * beta.log() + (1 - share) * posterior.log()
        else:
            log_variance = values
        data = (1 / product).sqrt() * x - (1 / product - 1).sqrt() * out
        data = data.clamp(-1, 1) if clip else data
        mean = beta * before.sqrt() / (1 - product) * data + (1 - before) * (1 - beta).sqrt() / (1 - product) * x
        x = mean + (torch.exp(0.5 * log_variance) * drawn(i) if before < 1 else 0)
    return x.detach()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["range", "log"])
def test_learned_variances(kind, clip):
    net = Six()
    model = ds.adapt(net, "ddpm", "noise", output=ds.models.LearnedVariance(kind))
    assert (model.state_dtype, model.device) == (torch.float64, net.weight.device)
    run = {"noise": START, "steps": 25, "grid": "respaced", "seed": SEED, "hook": ds.Clip() if clip else None}
    grid = ds.grids.named("respaced")(model.path, 25)
    rows = [int(row) for row in grid[:-1]]
    wanted = p_sample_loop(net, rows, kind, clip)
    for solver in ("ddpm", "ddpm(variance='large')"):
        found = ds.sample(model, solver=solver, variance="learned", **run)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(ds.sample(model, solver="ddpm", **run), wanted, atol=1e-2)
    half = ds.adapt(lambda x, t: net(x, t)[:, :2], "ddpm", "noise", dtype=torch.float64)
    for solver in ("ddpm", "unipc-3"):  # which leave the variance alone
        torch.testing.assert_close(ds.sample(model, solver=solver, **run), ds.sample(half, solver=solver, **run))


@pytest.mark.parametrize("batched", [True, False])
def test_the_variance_of_a_guided_step_is_that_with_the_condition(batched):
    net = Six()

    def guided(x, t):
        (c, values), (u, _) = (net(x, t, bias).split(x.shape[1], 1) for bias in (0.4, 0.0))
        return torch.cat([u + 3 * (c - u), values], 1)

    model = ds.adapt(net, "ddpm", "noise", output=ds.models.LearnedVariance())
    bias = torch.full((3, 1, 1, 1), 0.4, dtype=torch.float64)
    guidance = ds.Guidance(3.0, {"bias": 0 * bias}, batched=batched)
    found = ds.sample(model, noise=START, steps=10, grid="respaced", seed=SEED, solver="ddpm", variance="learned",
                      guidance=guidance, cond={"bias": bias})  # fmt: skip
    rows = [int(row) for row in ds.grids.named("respaced")(model.path, 10)[:-1]]
    torch.testing.assert_close(found, p_sample_loop(guided, rows, "range", False), rtol=1e-9, atol=1e-9)


def test_a_run_in_parts_has_the_same_variances():
    model = ds.adapt(Six(), "ddpm", "noise", output=ds.models.LearnedVariance())
    run = {"solver": "ddpm", "variance": "learned"}
    whole = ds.solve(model, noise=START, steps=8, seed=SEED, **run)
    part = ds.solve(model, noise=START, steps=8, seed=SEED, max_calls=3, **run)
    rest = ds.solve(model, solver=part.tableau, state=part.state, variance="learned")
    assert torch.equal(rest.x, whole.x)


def test_what_a_network_returns_beside_its_prediction():
    for net, output in (
        (lambda x, t: (eps(x, t), None), lambda out: out[0]),
        (lambda x, t: {"sample": eps(x, t), "aux": 1}, lambda out: out["sample"]),
    ):
        model = ds.adapt(net, "ddpm", "noise", output=output, dtype=torch.float64)
        plain = ds.adapt(eps, "ddpm", "noise", dtype=torch.float64)
        assert torch.equal(*(ds.sample(m, noise=START, steps=4, solver="ddim") for m in (model, plain)))
    with pytest.raises(TypeError, match="output must be a function of what net returns, got 3"):
        ds.adapt(eps, "ddpm", "noise", output=3)
    with pytest.raises(ValueError, match="with other options, got .*output="):
        ds.adapt(eps, output=lambda out: out)


def test_learned_variances_are_refused_where_there_are_none():
    plain = ds.adapt(eps, "ddpm", "noise", dtype=torch.float64)
    six = ds.adapt(Six(), "ddpm", "noise", output=ds.models.LearnedVariance())
    run = {"noise": START, "steps": 4, "variance": "learned"}
    with pytest.raises(ValueError, match="variance must be left out for a network without"):
        ds.sample(plain, solver="ddpm", **run)
    for solver in ("dpmpp-2m-sde", "edm-heun"):
        with pytest.raises(ValueError, match="solver must be 'ddpm' with variance='learned', got"):
            ds.sample(six, solver=solver, **run)
    with pytest.raises(ValueError, match="variance='learned' cannot be given with parallel"):
        ds.sample(six, solver="ddpm", parallel=ds.Picard(4), **run)
    with pytest.raises(ValueError, match="log_prob=True cannot be given with variance"):
        ds.solve(six, solver="ddpm", log_prob=True, **run)
    odd = ds.adapt(lambda x, t: x[:, :1], "ddpm", "noise", output=ds.models.LearnedVariance())
    with pytest.raises(ValueError, match="output of net must have twice the channels of x"):
        ds.sample(odd, solver="ddpm", noise=START, steps=2)
    with pytest.raises(ValueError, match="kind must be 'range' or 'log', got 'linear'"):
        ds.models.LearnedVariance("linear")


# ---------------------------------------------------------------------------------------------- score_sde


@pytest.mark.parametrize("path", ["vp", "subvp"])
def test_score_sde_ode_sampler(path):
    """get_score_fn with continuous=True (labels 999 t, -out / std), and the probability flow by RK45 down to 1e-3."""
    from scipy.integrate import solve_ivp

    def drift(t, flat):
        x, now = torch.from_numpy(flat).view(SHAPE), torch.full((SHAPE[0],), t, dtype=torch.float64)
        log_mean = -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
        beta = 0.1 + t * 19.9
        square = 1 - math.exp(2 * log_mean)
        std, g2 = (math.sqrt(square), beta) if path == "vp" else (square, beta * (1 - math.exp(4 * log_mean)))
        score = -eps(x, 999 * now) / std
        return (-0.5 * beta * x - 0.5 * g2 * score).flatten().numpy()

    wanted = solve_ivp(drift, (1.0, 1e-3), START.flatten().numpy(), rtol=1e-7, atol=1e-7, method="RK45").y[:, -1]
    model = ds.adapt(eps, path, "noise", clock=lambda t: 999 * t, dtype=torch.float64)
    found = ds.sample(model, noise=START, solver=ds.Adaptive(rtol=1e-7, atol=1e-7), start=1.0, stop=1e-3)
    torch.testing.assert_close(found, torch.from_numpy(wanted).view(SHAPE), rtol=1e-5, atol=1e-5)


def test_score_sde_reverse_diffusion():
    """The predictor on the variance-preserving SDE's own betas, with labels t (N - 1) and its score function."""
    N = 50
    betas = torch.linspace(0.1 / N, 20.0 / N, N, dtype=torch.float64)
    products = (1 - betas).cumprod(0)
    x = START
    for i, row in enumerate(range(N - 1, 0, -1)):
        score = -eps(x, torch.full((3,), float(row), dtype=torch.float64)) / (1 - products[row]).sqrt()
        f = (1 - betas[row]).sqrt() * x - x
        x = x - (f - betas[row] * score) + betas[row].sqrt() * drawn(i)
    model = ds.adapt(eps, ds.paths.Discrete(betas), "noise", clock="index", dtype=torch.float64)
    grid = [float(row) for row in range(N - 1, -1, -1)]
    found = ds.sample(model, noise=START, solver="reverse-diffusion", grid=grid, seed=SEED)
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_score_sde_variance_exploding():
    """Ancestral sampling on the discrete sigmas, of a network that is told sigma and returns the score."""
    N, low, high = 40, 0.01, 50.0
    sigmas = torch.linspace(math.log(low), math.log(high), N, dtype=torch.float64).exp()

    def score(x, sigma):
        return -(x - torch.tanh(x)) / (1 + sigma.view(-1, 1, 1, 1)) ** 2

    x = high * START
    for i, k in enumerate(range(N - 1, -1, -1)):
        sigma, below = sigmas[k], sigmas[k - 1] if k else torch.tensor(0.0)
        mean = x + score(x, sigma.expand(3)) * (sigma**2 - below**2)
        x = mean + (below**2 * (sigma**2 - below**2) / sigma**2).sqrt() * drawn(i) if k else mean
    path = ds.paths.VE(low, high)
    model = ds.adapt(score, path, "score", clock="sigma", dtype=torch.float64)
    grid = [*(float(path.time(-sigma.log())) for sigma in sigmas.flip(0)), path.t_data]
    found = ds.sample(model, noise=high * START, solver="ddpm", grid=grid, seed=SEED)
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------- EDM, its iDDPM, EDM2


class IDDPM(nn.Module):
    """The call and the attributes of EDM's iDDPMPrecond, in small."""

    def __init__(self, M=400, C_1=0.001, C_2=0.008):
        super().__init__()
        self.M = M
        bar = (0.5 * np.pi * torch.arange(M + 1, dtype=torch.float64) / M / (C_2 + 1)).sin() ** 2
        u = torch.zeros(M + 1, dtype=torch.float64)
        for j in range(M, 0, -1):
            u[j - 1] = ((u[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=C_1) - 1).sqrt()
        self.register_buffer("u", u)
        self.sigma_min, self.sigma_max = float(u[M - 1]), float(u[0])

    def round_sigma(self, sigma, return_index=False):
        sigma = torch.as_tensor(sigma)
        index = (sigma.double().reshape(-1, 1) - self.u).abs().argmin(1)
        return (index if return_index else self.u[index].to(sigma.dtype)).reshape(sigma.shape)

    def forward(self, x, sigma, class_labels=None):
        sigma = sigma.reshape(-1, 1, 1, 1)
        row = self.M - 1 - self.round_sigma(sigma, return_index=True).to(x.dtype)
        return x - sigma * eps(x / (sigma**2 + 1).sqrt(), row.flatten())


def edm_sampler(denoise, x, sigmas):
    """EDM's Heun sampler without churn, in float64."""
    x = x * sigmas[0]
    for i, (now, below) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        d = (x - denoise(x, now.expand(3))) / now
        after = x + (below - now) * d
        if i < len(sigmas) - 2:
            slope = (after - denoise(after, below.expand(3))) / below
            after = x + (below - now) * (0.5 * d + 0.5 * slope)
        x = after
    return x


def karras(low, high, n):
    steps = torch.arange(n, dtype=torch.float64) / (n - 1)
    return (high ** (1 / 7) + steps * (low ** (1 / 7) - high ** (1 / 7))) ** 7


def test_iddpm_on_edms_rounded_grid():
    net = IDDPM()
    low, high = max(0.002, net.sigma_min), 50.0
    sigmas = torch.cat([net.round_sigma(karras(low, high, 12)), torch.zeros(1)]).double()
    model = ds.adapt(net)
    grid = [*net.round_sigma(torch.tensor(ds.grids.named("karras")(ds.paths.EDM(low, high), 12)[:-1])).tolist(), 0.0]
    found = ds.sample(model, noise=START * sigmas[0], solver="heun(frame='noise')", grid=grid)
    wanted = edm_sampler(lambda x, s: net(x.float(), s.float()).double(), START, sigmas)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_edm2_with_its_guiding_network():
    """generate_images.py: Heun on Karras' grid, ref.lerp(D, guidance)."""

    def edm2(scale):
        def net(x, sigma, class_labels=None):
            s = sigma.view(-1, 1, 1, 1)
            skip, out, scaled = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt(), x / (s**2 + 0.25).sqrt()
            return skip * x + out * scale * torch.tanh(scaled + (0 if class_labels is None else class_labels))

        return net

    net, weak = edm2(1.0), edm2(0.8)
    labels = torch.linspace(-1, 1, 3, dtype=torch.float64).view(3, 1, 1, 1)
    sigmas = torch.cat([karras(0.002, 80.0, 16), torch.zeros(1).double()])
    wanted = edm_sampler(lambda x, s: weak(x, s, labels).lerp(net(x, s, labels), 1.4), START, sigmas)
    model = ds.adapt(net, "edm", "denoised", learned="edm", dtype=torch.float64)
    found = ds.sample(model, noise=80 * START, solver="heun(frame='noise')", steps=16, grid="karras",
                      cond={"class_labels": labels}, guidance=ds.Guidance(1.4, weak=weak))  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ----------------------------------------------------------------------------------- k-diffusion, torchcfm


def test_v_diffusion_as_k_diffusion_wraps_it():
    """VDenoiser with sample_euler, and the v network itself on the cosine's path."""
    external, sampling = peers.k_diffusion("external"), peers.k_diffusion("sampling")

    def v(x, t):
        return torch.tanh(x) * (1 + t.view(-1, 1, 1, 1))

    class Inner(nn.Module):
        def forward(self, x, t):
            return v(x, t)

    denoiser = external.VDenoiser(Inner())
    sigmas = torch.cat([karras(0.01, 50.0, 10), torch.zeros(1).double()])
    wanted = sampling.sample_euler(denoiser, 50 * START, sigmas, disable=True)
    model = ds.adapt(denoiser, ds.paths.EDM(0.01, 50.0), "denoised", learned="v", dtype=torch.float64)
    found = ds.sample(model, noise=50 * START, solver="euler", grid=sigmas.tolist())
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_torchcfm_by_euler_as_it_samples():
    """torch_wrapper: the network has x and t in one tensor; torchdiffeq's Euler on 20 steps."""
    from torchdiffeq import odeint

    linear = nn.Linear(3, 2).double()

    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, t, x, *args, **kwargs):
            return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    wrapper = type("torch_wrapper", (Wrapper,), {"__module__": "torchcfm.utils"})(linear)
    x = ds.Key(2).normal((5, 2), dtype=torch.float64)
    with torch.no_grad():
        wanted = odeint(wrapper, x, torch.linspace(0, 1, 21).double(), method="euler")[-1]
    torch.testing.assert_close(ds.sample(wrapper, noise=x, solver="euler(frame='native')", steps=20), wanted)
