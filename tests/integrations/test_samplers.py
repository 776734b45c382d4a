"""Sampling functions for k-diffusion and ComfyUI on lists of sigmas of every kind, and the names of samplers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import comfy

import diffsolve as ds
from diffsolve import paths
from diffsolve.integrations import k_diffusion
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, anisotropic

MIXTURE = anisotropic(dim=8, modes=4)
MODEL = mixture_model(MIXTURE, paths.EDM(), "denoised")
SOLVERS = ["euler", "heun(frame='noise')", "dpmpp-2m", "unipc-3", "rk4", "ab-3(frame='noise')", "dpm-2s"]
MIXTURE_2 = GaussianMixture.isotropic(torch.tensor([[0.7, -1.3], [-1.0, 1.0]]), 0.5)
X = ds.Key(3).normal((4, 2, 2, 2), dtype=torch.float64)


def denoiser(x, sigma, **extra):
    return MODEL.net(x, sigma)


def sample(solver, sigmas, x, model=denoiser, **options):
    return k_diffusion.sampler(solver, seed=0)(model, x, torch.as_tensor(sigmas), disable=True, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_sigma_is_no_step_and_repeated_ones_are_skipped(solver):
    seen = []
    for sigmas in ([5.0], [5.0, 5.0], [0.0]):
        out = sample(solver, sigmas, X, callback=seen.append)
        assert torch.equal(out, X)
        assert out is not X
    assert not seen
    plain = sample(solver, [9.0, 3.0, 0.5, 0.0], 9 * X)
    again = sample(solver, [9.0, 9.0, 3.0, 3.0, 3.0, 0.5, 0.0, 0.0], 9 * X, callback=seen.append)
    assert torch.equal(again, plain)
    assert [about["i"] for about in seen] == [0, 2, 5]
    assert [float(about["sigma"]) for about in seen] == [9.0, 3.0, 0.5]


@pytest.mark.parametrize("solver", SOLVERS)
def test_rising_sigmas_lead_to_the_noise_and_back(kd, solver):
    fine = np.geomspace(0.02, 20, 161)
    data = MIXTURE.sample(4, seed=0, dtype=torch.float64).view(X.shape)
    noise = sample(solver, fine, data)
    assert 10 < float(noise.std()) < 40
    back = sample(solver, fine[::-1].copy(), noise)
    assert float((back - data).abs().max()) < (0.2 if solver == "euler" else 0.05)
    coarse = torch.tensor([0.02, 0.1, 0.5, 2.0, 10.0], dtype=torch.float64)
    if solver == "euler":
        wanted = kd.sample_euler(denoiser, data, coarse, disable=True)
        torch.testing.assert_close(sample(solver, coarse, data), wanted)
    assert sample(solver, [0.0, 0.02, 1.0, 9.0], data).isfinite().all()


def test_sigmas_that_rise_and_fall_are_refused():
    for bad in ([1.0, 2.0, 1.0], [1.0, -1.0], [], [[1.0, 0.0]], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="sigmas must be >= 0 and falling, or rising, got"):
            sample("euler", bad, X)


class CONST:
    """ComfyUI's mark of a flow."""

    def percent_to_sigma(self, percent):
        return 1 - percent


class Guider:
    inner_model = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: CONST()))

    def __call__(self, x, sigma, **extra):
        return 0.3 * torch.tanh(x) - 0.1 * sigma.view(-1, 1, 1, 1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_flow_s_sigma_above_one(kd, solver):
    """There alpha is negative, which no path has: the steps from such sigmas are Euler's, as in every sampler there."""
    sigmas, seen = torch.tensor([1.3, 1.1, 0.8, 0.4, 0.0], dtype=torch.float64), []
    mine = sample(solver, sigmas, X, model=Guider(), callback=seen.append)
    assert [about["i"] for about in seen] == [0, 1, 2, 3]
    x = X
    for k in range(2):
        d = (x - Guider()(x, sigmas[k].expand(4))) / sigmas[k]
        x = x + d * (sigmas[k + 1] - sigmas[k])
    torch.testing.assert_close(mine, sample(solver, sigmas[2:], x, model=Guider()))
    if solver == "euler":
        torch.testing.assert_close(mine, kd.sample_euler(Guider(), X, sigmas, disable=True))
    assert sample(solver, [1.5, 1.2], X, model=Guider()).isfinite().all()


def test_a_tiny_sigma_counts_as_the_data():
    """Next to it the noise that the denoised implies is rounding, which a method of two stages would multiply."""
    x = torch.tensor([[9.0, 12.0], [-4.0, 3.0]])
    net = mixture_model(MIXTURE_2, paths.EDM(), "denoised").net
    more = [
        "heun", "midpoint", "dopri5", "reversible-heun", "abm-3", "abm-3(frame='noise')", "res-5s", "plms", "res-3m",
        "ab-4", "abm-2(mode='pece')", "ab-3(start='rk4')", "deis-3", "unip-4", "unipc-3(lower_final=4)",
        "unipc-3(bh='bh1')",
    ]  # fmt: skip
    for solver in (*SOLVERS, *more):
        wanted = sample(solver, [14.6, 3.0, 1.0, 0.1, 0.0], x, model=net)
        for tiny in (1e-6, 1e-12):
            found = sample(solver, [14.6, 3.0, 1.0, 0.1, tiny, 0.0], x, model=net)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    for solver in ("euler-maruyama", "stochastic-heun", "reverse-diffusion", "dpmpp-2m-sde", "sa-3", "er-sde-3"):
        assert float(sample(solver, [14.6, 3.0, 1.0, 0.1, 1e-12, 0.0], x, model=net).abs().max()) < 30
    flow = ds.adapt(lambda x, t: (x - 0.7) / t[:, None], "rectified", "velocity")
    for solver in ("heun", "rk4", "dpmpp-2m"):
        out = ds.sample(flow, noise=x, solver=solver, grid=[1.0, 0.5, 0.1, 1e-7, 0.0])
        torch.testing.assert_close(out, torch.full_like(x, 0.7))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "unipc-3", "heun", "abm-3", "ab-3(frame='noise')"])
def test_a_run_out_of_a_tiny_sigma_is_one_out_of_the_data(solver):
    """There the noise is told by a network that predicts it, and is rounding of one that predicts the denoised."""
    x = torch.tensor([[0.8, -1.2]])
    for path, levels in (("rectified", [0.1, 0.3, 0.6, 0.9]), ("edm", [0.1, 0.5, 2.0, 8.0])):
        noise = mixture_model(MIXTURE_2, path, "noise")
        wanted = ds.sample(noise, noise=x, solver=solver, grid=[1e-7, *levels])
        for tiny in (1e-9, 1e-12):
            torch.testing.assert_close(ds.sample(noise, noise=x, solver=solver, grid=[tiny, *levels]), wanted)
        with pytest.raises(ValueError, match="does not determine"):
            ds.sample(mixture_model(MIXTURE_2, path, "denoised"), noise=x, solver=solver, grid=[1e-12, *levels])
    net = mixture_model(MIXTURE_2, paths.EDM(), "denoised").net
    wanted = sample(solver, [0.0, *levels], x, model=net)
    torch.testing.assert_close(sample(solver, [1e-12, *levels], x, model=net), wanted)


def plain(step, sigmas, x, model):
    """A method of k-diffusion: step(x, D, the last D, sigma before, sigma, sigma after), and D at the end."""
    before = None
    for k in range(len(sigmas) - 1):
        D = model(x, sigmas[k].expand(len(x)))
        x = D if sigmas[k + 1] == 0 else step(x, D, before, sigmas[max(k - 1, 0)], sigmas[k], sigmas[k + 1])
        before = D
    return x


def heun(model):
    def step(x, D, _, __, s, t):
        d = (x - D) / s
        y = x + (t - s) * d
        return x + (t - s) / 2 * (d + (y - model(y, t.expand(len(x)))) / t)

    return step


def two_values(exact):
    """dpmpp_2m and res_multistep, with -log sigma for lambda on a flow too."""

    def step(x, D, before, r, s, t):
        h = (s / t).log()
        if before is None:
            return t / s * x + (1 - t / s) * D
        share = h / (r / s).log() * ((torch.exp(-h) - 1 + h) / h / (1 - t / s) if exact else 0.5)
        return t / s * x + (1 - t / s) * (D + share * (D - before))

    return step


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "res_multistep"])
def test_samplers_on_both_kinds_of_sigmas(name, flow):
    """By hand what ComfyUI has by these names: steps in sigma, or -log sigma, on a flow as elsewhere."""
    model = Guider() if flow else denoiser
    sigmas = torch.tensor([1.0, 0.8, 0.55, 0.2, 0.05, 0.0] if flow else [9.0, 3.0, 1.0, 0.5, 0.1, 0.0]).double()
    step = {"heun": heun(model), "dpmpp_2m": two_values(False), "res_multistep": two_values(True)}[name]
    mine = sample(name, sigmas, sigmas[0] * X, model=model)
    torch.testing.assert_close(mine, plain(step, sigmas, sigmas[0] * X, model), rtol=1e-10, atol=1e-10)
    if name == "heun":
        mine, ours = (sample(f"heun(frame={frame!r})", sigmas, X, model=model) for frame in ("native", "straight"))
        assert torch.allclose(mine, ours) == flow


def test_samplers_with_noise_begin_next_to_one_on_a_flow():
    seen = []
    sample("dpmpp_sde", [1.0, 0.5, 0.0], X, model=Guider(), callback=lambda info: seen.append(float(info["sigma"])))
    assert seen == [1.0, 0.5]
    asked = []

    class Listening(Guider):
        def __call__(self, x, sigma, **extra):
            asked.append(float(sigma[0]))
            return super().__call__(x, sigma, **extra)

    sample("dpmpp_sde", [1.0, 0.5, 0.0], X, model=Listening())
    middle = 1 / (1 + math.sqrt((1 - 0.9999) / 0.9999))  # half-way in lambda
    assert asked == pytest.approx([0.9999, middle, 0.5])


@pytest.mark.parametrize("name", ["lms", "ipndm"])
def test_a_step_to_zero_is_of_first_order_on_a_flow_too(name):
    seen = []
    out = sample(
        name, [1.0, 0.7, 0.4, 0.1, 0.0], X, model=Guider(), callback=lambda step: seen.append(step["denoised"])
    )
    torch.testing.assert_close(out, seen[-1])


def test_unipc_ends_at_a_thousandth_as_there():
    plain_end = sample("unipc-3", [9.0, 3.0, 0.5, 1e-3], 9 * X)
    torch.testing.assert_close(sample("uni_pc_bh2", [9.0, 3.0, 0.5, 0.0], 9 * X), plain_end)
    assert not torch.equal(sample("unipc-3", [9.0, 3.0, 0.5, 0.0], 9 * X), plain_end)


COMFYUI = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]


@pytest.mark.parametrize("name", COMFYUI)
def test_every_sampler_name_of_comfyui_runs(name):
    """As that sampler in the sampling function, on both kinds of sigmas; elsewhere it stands for a solver, or the error
    names the nearest."""
    for flow in (False, True):
        host, sigmas = comfy.Host(flow), torch.tensor([0.9, 0.5, 0.1, 0.0] if flow else [9.0, 3.0, 0.5, 0.0])
        out = k_diffusion.sampler(name, seed=0)(host, sigmas[0] * X.float(), sigmas, disable=True)
        assert out.isfinite().all()
        assert not torch.equal(out, sigmas[0] * X.float())
    different = {"heunpp2", "dpm_fast", "dpm_adaptive", "gradient_estimation", "res_multistep_ancestral"}
    if name in different or name.endswith("cfg_pp"):
        with pytest.raises(ValueError, match=f"solver='{name}' is not offered; the nearest that is: "):
            ds.plan("edm", name, steps=4)
    else:
        assert len(ds.plan("edm", name, steps=4, grid="karras").times) == 5


def test_the_gpu_names_and_the_heun_kind():
    for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2m_sde_heun"):
        assert ds.solvers.named(f"{name}_gpu") == ds.solvers.named(name)
    # Tested against k-diffusion's solver_type="heun" under this name.
    exact = ds.solvers.Multistep(2, "denoised", "lambda", tau=1.0)
    assert ds.solvers.named("dpmpp_2m_sde_heun") == ds.solvers.named("DPM++ 2M SDE Heun") == exact


def test_denoisers_without_sigmas_are_refused_by_name():
    from support import peers

    external = peers.k_diffusion("external")
    denoiser = external.VDenoiser(torch.nn.Identity())
    for call in (ds.adapt, lambda thing: ds.sample(thing, (1, 2), nfe=1)):
        with pytest.raises(TypeError, match=r"got VDenoiser, which has no sigma_min .* learned='v'\)"):
            call(denoiser)
    inner = lambda x, t: torch.zeros_like(x)  # noqa: E731
    model = ds.adapt(external.VDenoiser(inner), paths.EDM(0.01, 50.0), "denoised", learned="v")
    assert ds.sample(model, (2, 3), solver="dpmpp-2m", steps=4, seed=0).isfinite().all()


def test_the_wrapper_of_torchcfm():
    """A class of that name in that package; the network has x and t in one tensor."""

    def forward(self, t, x, *args, **kwargs):
        return self.model(torch.cat([x, t.repeat(x.shape[0])[:, None]], 1))

    def init(self, model):
        torch.nn.Module.__init__(self)
        self.model = model

    made = {"__init__": init, "forward": forward, "__module__": "torchcfm.utils"}
    wrapper = type("torch_wrapper", (torch.nn.Module,), made)(torch.nn.Linear(3, 2))
    model = ds.adapt(wrapper)
    assert (model.path, model.predicts) == (paths.CondOT(), "velocity")
    x = ds.Key(0).normal((5, 2))
    with torch.no_grad():
        torch.testing.assert_close(model.velocity(x, 0.3), wrapper(torch.tensor(0.3), x))
        y = x
        for k in range(4):
            y = y + wrapper(torch.tensor(k / 4), y) / 4
        torch.testing.assert_close(ds.sample(wrapper, noise=x, solver="euler", grid=[0, 0.25, 0.5, 0.75, 1.0]), y)


def test_a_network_with_a_learned_variance_is_told_how():
    net = lambda x, t: torch.cat([x, x], 1)  # noqa: E731
    with pytest.raises(ValueError, match=r"shape of x, \(2, 3, 4, 4\), got shape \(2, 6, 4, 4\); a network that also"):
        ds.sample(ds.adapt(net, "ddpm", "noise"), (2, 3, 4, 4), solver="ddim", steps=2, seed=0)
    half = ds.adapt(lambda x, t: net(x, t)[:, :3], "ddpm", "noise")
    assert ds.sample(half, (2, 3, 4, 4), solver="ddim", steps=2, seed=0).isfinite().all()
