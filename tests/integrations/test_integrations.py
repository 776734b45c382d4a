"""Other libraries' pipelines and denoisers: our solvers inside their loops, and their networks under our solvers."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import peers, tiny

import diffsolve as ds
from diffsolve import paths
from diffsolve.integrations import k_diffusion, recognise
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import anisotropic

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

ULP = 2.0**-24
MIXTURE = anisotropic(dim=8, modes=4)
SHAPE = (6, 2, 2, 2)
NAMES = {"noise": "epsilon", "v": "v_prediction", "denoised": "sample"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def module(df):
    from diffsolve.integrations import diffusers

    return diffusers


def latents(scale=1.0, dtype=torch.float32):
    return ds.Key(3).normal(SHAPE, dtype=torch.float64).to(dtype) * scale


def distance(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def loop(scheduler, net, x, *, edit=None, stop=None, **options):
    """What a pipeline does."""
    for i, t in enumerate(scheduler.timesteps[scheduler.begin_index or 0 : stop]):
        out = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x, _ = scheduler.step(out, t, x, return_dict=False, **options)
        x = x if edit is None else edit(i, x)
    return x


def known(scheduler, clock="t", net_dtype=None):
    """An exact network of the kind that the scheduler is for, as a Model."""
    model = scheduler.model
    net = mixture_model(MIXTURE, model.path, model.predicts).net
    back = {"t": lambda t: t, "1000t": lambda t: t / 1000}[clock]
    return ds.adapt(
        lambda x, t: net(x.float(), back(t)).to(x.dtype), model.path, model.predicts, clock=clock, dtype=net_dtype
    )


# diffusers: our solver as a pipeline's scheduler ---------------------------------------------------------------


@pytest.mark.parametrize(
    "solver",
    [
        "ddim",
        "dpmpp-2m",
        "unipc-3",
        "heun",
        "rk4",
        "dpm-2s",
        "plms",
        "auto",
        "ddim(eta=1)",
        "sa-3",
        "dpmpp-2s-ancestral",
    ],
)
@pytest.mark.parametrize("grid", [None, "karras"])
def test_a_scheduler_is_the_run(df, module, solver, grid):
    """Driven by a pipeline's loop, every solver is `ds.solve` on the same nodes, bit for bit."""
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), solver, grid=grid, seed=5)
    scheduler.set_timesteps(7)
    model, x = known(scheduler), latents()
    run = ds.solve(model, noise=x, solver=scheduler._plan.tableau, seed=5)
    assert len(scheduler.timesteps) == run.nfe
    torch.testing.assert_close(loop(scheduler, model.net, x), run.x, rtol=0, atol=0)
    assert scheduler.step_index == run.nfe
    assert scheduler.num_inference_steps == 7


def theirs_and_ours():
    dpm, flow = "DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    yield "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, "ddim", 1e-5
    yield "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "linspace"}, "ddim", None
    yield dpm, {}, "dpmpp-2m(lower_final=15)", 1e-5
    yield dpm, {"solver_order": 3, "use_karras_sigmas": True}, "dpmpp-3m(lower_final=15)", 1e-5
    yield "UniPCMultistepScheduler", {}, "unipc-2", 1e-5
    yield "DEISMultistepScheduler", {"lower_order_final": False}, "deis-2", 1e-5
    yield "PNDMScheduler", {"skip_prk_steps": True}, "plms", None
    yield "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler", 1e-5
    yield dpm, {**flow, "flow_shift": 3.0}, "dpmpp-2m(lower_final=15)", 1e-5


@pytest.mark.parametrize(("name", "options", "solver", "bound"), list(theirs_and_ours()))
def test_in_the_place_of(df, module, name, options, solver, bound):
    """Its timesteps are kept, and where the method is the same so is the result."""
    table = {} if name.startswith("FlowMatch") or "use_flow_sigmas" in options else SCALED
    scheduler = module.Scheduler(getattr(df, name)(**table, **options), solver)
    scheduler.set_timesteps(10)
    theirs = getattr(df, name)(**table, **options)
    theirs.set_timesteps(10)
    mine, wanted = scheduler.timesteps.double(), theirs.timesteps.double()
    if name == "PNDMScheduler":
        wanted = wanted.unique().flip(0)
        mine = mine.unique().flip(0)
    assert torch.equal(mine, wanted)  # rounded, where they round what they tell the network
    assert scheduler.timesteps.dtype == theirs.timesteps.dtype
    if bound is None:
        return
    flow = scheduler.model.predicts == "velocity"
    model, x = known(scheduler, "1000t" if flow else "t"), latents()
    stop = None
    if name.startswith("DEIS"):  # theirs ends at its first row, not on the data
        stop, theirs.timesteps = -1, theirs.timesteps[:-1]
    peer = peers.run_scheduler(theirs, model.net, x, wanted.tolist())
    assert distance(loop(scheduler, model.net, x, stop=stop), peer) < bound


@pytest.mark.parametrize("prediction", list(NAMES))
def test_zero_terminal_snr(df, module, prediction):
    options = {**SCALED, "rescale_betas_zero_snr": True, "prediction_type": NAMES[prediction]}
    scheduler = module.Scheduler(
        df.DDIMScheduler(**options, timestep_spacing="trailing", clip_sample=False), "dpmpp-2m"
    )
    if prediction == "noise":
        scheduler.set_timesteps(8)
        with pytest.raises(ValueError, match="does not determine"):
            loop(scheduler, known(scheduler).net, latents())
        return
    scheduler.set_timesteps(8)
    assert float(scheduler.model.path.alpha(scheduler.timesteps[:1].double())) == 0
    assert loop(scheduler, known(scheduler).net, latents()).isfinite().all()


@pytest.mark.parametrize("solver", ["dpmpp-2m", "heun", "unipc-3"])
def test_image_to_image(df, module, solver):
    """From a begin index on it is the run on the rest of the nodes, from data brought to that noise level."""
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), solver)
    scheduler.set_timesteps(10)
    image, noise = MIXTURE.sample(6, seed=0, dtype=torch.float32).view(SHAPE), latents()
    begin = 4 * scheduler.order
    scheduler.set_begin_index(begin)
    t = scheduler.timesteps[begin]
    x = scheduler.add_noise(image, noise, t[None])
    model, path = known(scheduler), scheduler.model.path
    torch.testing.assert_close(x, image * float(path.alpha(t)) + noise * float(path.sigma(t)))
    times = scheduler._plan.tableau.times[4:]
    assert float(t) == times[0]
    wanted = ds.sample(model, noise=x, solver=solver, grid=times)
    torch.testing.assert_close(loop(scheduler, model.net, x), wanted, rtol=0, atol=0)
    assert scheduler.step_index == len(scheduler.timesteps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_keep_a_float32_state(df, module, dtype):
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "dpmpp-2m")
    scheduler.set_timesteps(20)
    model, x = known(scheduler, net_dtype=dtype), latents(dtype=dtype)
    wanted = ds.sample(model, noise=x.float(), solver=scheduler._plan.tableau)
    mine = loop(scheduler, model.net, x)
    assert mine.dtype == dtype
    assert torch.equal(mine, wanted.to(dtype))


@pytest.mark.parametrize("in_place", [False, True])
def test_edited_latents_are_taken(df, module, in_place):
    """As inpainting and callbacks do: here each latent is drawn half-way to an image at that noise level."""
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "dpmpp-2m")
    scheduler.set_timesteps(6)
    model, x, image = known(scheduler), latents(), latents(0.3)

    def edit(i, x):
        t = scheduler.timesteps[i + 1 : i + 2]
        kept = scheduler.add_noise(image, latents(), t) if len(t) else image
        return x.add_(kept).div_(2) if in_place else (x + kept) / 2

    ex = ds.begin(model, noise=x, solver=scheduler._plan.tableau)
    while not ex.done:
        ex.advance(model.net(*ex.query()))
        ex.correct(edit(ex.call - 1, ex.y.clone()))
    assert torch.equal(loop(scheduler, model.net, x, edit=edit), ex.y)
    untouched = ds.sample(model, noise=x, solver=scheduler._plan.tableau)
    assert distance(ex.y, (untouched + image) / 2) > 0.01  # more than the last edit has an effect


def test_what_a_pipeline_was_given_is_not_overwritten(df, module):
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "dpmpp-2m")
    scheduler.set_timesteps(4)
    seen = []
    loop(scheduler, known(scheduler).net, latents(), edit=lambda i, x: seen.append((x, x.clone())) or x)
    assert all(torch.equal(x, copy) for x, copy in seen)


def test_inference_mode(df, module):
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "unipc-3")
    scheduler.set_timesteps(6)
    model = known(scheduler)
    with torch.inference_mode():
        mine = loop(scheduler, model.net, latents())
    assert torch.equal(mine, ds.sample(model, noise=latents(), solver=scheduler._plan.tableau))


def test_clipping_and_thresholding(df, module):
    """Against DDIM with its noise estimate from unclipped and from clipped data, and DPM-Solver++ with thresholds."""
    options = {**SCALED, "timestep_spacing": "trailing"}
    x = latents()

    def pair(theirs, solver, **step):
        scheduler = module.Scheduler(type(theirs).from_config(theirs.config), solver)
        scheduler.set_timesteps(10)
        theirs.set_timesteps(10)
        net = known(scheduler).net
        wide = lambda x, t: 3 * net(x, t)  # noqa: E731  so that there is something to clip
        peer = peers.run_scheduler(theirs, wide, x, scheduler._plan.tableau.times, options=lambda i: step)
        return loop(scheduler, wide, x, **step), peer

    for step in ({}, {"use_clipped_model_output": True}):
        mine, peer = pair(df.DDIMScheduler(**options), "ddim", **step)
        assert distance(mine, peer) < 1e-4
    assert float(mine.abs().max()) == pytest.approx(1.0, abs=1e-6)
    theirs = df.DPMSolverMultistepScheduler(**options, thresholding=True, sample_max_value=1.5)
    mine, peer = pair(theirs, "dpmpp-2m(lower_final=15)")
    assert distance(mine, peer) < 1e-4


def test_a_learned_variance_is_left_out(df, module):
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "dpmpp-2m")
    scheduler.set_timesteps(5)
    model = known(scheduler)
    both = lambda x, t: torch.cat([model.net(x, t), torch.full_like(x, torch.nan)], 1)  # noqa: E731
    mine = loop(scheduler, both, latents())
    scheduler.set_timesteps(5)
    assert torch.equal(mine, loop(scheduler, model.net, latents()))


def test_noise_comes_from_the_generator(df, module):
    scheduler = module.Scheduler(df.DPMSolverMultistepScheduler(**SCALED), "ddim(eta=1)")
    model, x = known(scheduler), latents()

    def run(generator, x=x):
        scheduler.set_timesteps(6)
        return loop(scheduler, model.net, x, generator=generator)

    g = torch.Generator().manual_seed(0)
    one, two = run(g), run(g)
    assert distance(one, two) > 0.1
    assert torch.equal(one, run(torch.Generator().manual_seed(0)))
    several = [torch.Generator().manual_seed(i) for i in range(len(x))]
    all_of_them = run(several)
    third = run([torch.Generator().manual_seed(2)], x[2:3])
    torch.testing.assert_close(all_of_them[2:3], third, rtol=0, atol=1e-5)
    before = torch.get_rng_state()
    run(None)
    assert torch.equal(before, torch.get_rng_state())


def test_flow_pipelines(df, module):
    """Sigmas of the pipeline's own, and a shift by the image's size."""
    flux = df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler = module.Scheduler(flux, "dpmpp-2m")
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8).tolist(), mu=0.9)
    theirs = df.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8).tolist(), mu=0.9)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps)
    model = known(scheduler, "1000t")
    x = loop(scheduler, model.net, latents())
    assert torch.equal(x, ds.sample(model, noise=latents(), solver=scheduler._plan.tableau))
    image, noise = latents(0.5), latents()
    wanted = theirs.scale_noise(image, theirs.timesteps[2:3], noise)
    torch.testing.assert_close(scheduler.scale_noise(image, scheduler.timesteps[2:3], noise), wanted)
    for scheduler in (module.Scheduler(flux, "euler", grid="shifted(shift=2)"), module.Scheduler(flux)):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8).tolist(), mu=0.9)
        assert len(scheduler.timesteps) == 8
    with pytest.raises(ValueError, match="sigmas=.* cannot be given with DDPMScheduler"):
        module.Scheduler(df.DDPMScheduler(), "euler").set_timesteps(sigmas=[1.0, 0.5])


def test_edm_and_continuous(df, module):
    """Raw EDM networks, and those of v along the angle: input scale, clock and result are the peer's."""

    def raw(x, c_noise, sigma_data=0.5):
        sigma = (4 * c_noise).exp().view(-1, 1, 1, 1)
        norm = (sigma**2 + sigma_data**2).sqrt()
        denoised, _ = MIXTURE.expectations(x * norm, 1.0, sigma.flatten())
        return (denoised - (sigma_data / norm) ** 2 * x * norm) / (sigma * sigma_data / norm)

    theirs = df.EDMEulerScheduler()
    scheduler = module.Scheduler(df.EDMEulerScheduler(), "ddim")
    scheduler.set_timesteps(12)
    theirs.set_timesteps(12)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps.float(), rtol=1e-5, atol=1e-6)
    assert scheduler.init_noise_sigma == 80.0
    x = latents(80.0)
    peer = peers.run_scheduler(theirs, lambda x, t: raw(x, t.log() / 4), x, scheduler._plan.tableau.times)
    assert distance(loop(scheduler, raw, x), peer) < 1e-5

    # x of the peer is x / alpha here.
    options = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    options |= {"sigma_min": 0.002, "sigma_max": 700.0}
    theirs = df.EulerDiscreteScheduler(**options)
    scheduler = module.Scheduler(df.EulerDiscreteScheduler(**options), "ddim")
    scheduler.set_timesteps(12)
    theirs.set_timesteps(12)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps, rtol=1e-4, atol=1e-5)
    exact = mixture_model(MIXTURE, scheduler.model.path, "v").net
    net = lambda x, c: exact(x, torch.atan((4 * c).exp()))  # noqa: E731
    peer = peers.run_scheduler(theirs, lambda x, t: exact(x, t), latents(700.0), scheduler._plan.tableau.times)
    mine = loop(scheduler, net, latents(float(torch.sin(torch.tensor(math.atan(700.0))))))
    assert distance(mine, peer) < 1e-3
    t = scheduler.timesteps[3:4]
    a = math.atan(float((4 * t.double()).exp()))
    torch.testing.assert_close(scheduler.add_noise(x, x, t), x * (math.cos(a) + math.sin(a)))


def test_what_a_scheduler_refuses(df, module):
    for other in (df.FlowMatchLCMScheduler(scale_factors=[2.0]), df.ScoreSdeVeScheduler()):
        with pytest.raises(ValueError, match=type(other).__name__):
            module.Scheduler(other)
    with pytest.raises(ValueError, match="v_prediction"):
        module.Scheduler(df.EDMEulerScheduler(prediction_type="v_prediction"))
    scheduler = module.Scheduler(df.DDPMScheduler(), "edm-heun(s_churn=40.0)")
    with pytest.raises(ValueError, match="solver must add no noise before its first call"):
        scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="set_timesteps first"):
        module.Scheduler(df.FlowMatchEulerDiscreteScheduler(), "dpmpp-2m").step(latents(), 0, latents())
    scheduler = module.Scheduler(df.DDPMScheduler(clip_sample=False), "dpmpp-2m")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="model_output must have the shape of sample"):
        scheduler.step(latents()[:, :1], 0, latents())
    with pytest.raises(ValueError, match="solver must be one of .*, got 'no-such'"):
        module.Scheduler(df.DDPMScheduler(), "no-such")


# diffusers: whole pipelines ------------------------------------------------------------------------------------


def unet(df):
    return df.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def test_an_unconditional_pipeline(df, module):
    torch.manual_seed(0)
    net = unet(df)
    theirs = df.DDPMPipeline(net, df.DPMSolverMultistepScheduler(thresholding=True))
    ours = df.DDPMPipeline(net, module.Scheduler(theirs.scheduler, "dpmpp-2m(lower_final=15)"))
    images = []
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
        g = torch.Generator().manual_seed(0)
        images.append(pipe(batch_size=2, generator=g, num_inference_steps=8, output_type="pt").images)
    assert float(images[0].std()) > 0.05
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-4)

    model = ds.adapt(theirs)
    assert model.path == paths.Discrete(theirs.scheduler.betas)
    with torch.no_grad():
        x = ds.Key(0).normal((2, 1, 8, 8))
        assert torch.equal(model.net(x, torch.tensor([5.0, 5.0])), net(x, 5).sample)
    a = ds.sample(theirs, (2, 1, 8, 8), solver="ddim", steps=4, seed=0)
    assert torch.equal(a, ds.sample(model, (2, 1, 8, 8), solver="ddim", steps=4, seed=0))


def test_a_guided_pipeline_with_a_learned_variance(df, module):
    """DiT's pipeline hands the scheduler a new tensor each time, cut out of a batch for both guidance halves."""
    net, vae = tiny.dit(df, 0), tiny.vae(df)
    images = []
    for mine in (False, True):
        scheduler = df.DPMSolverMultistepScheduler()
        pipe = df.DiTPipeline(net, vae, module.Scheduler(scheduler, "dpmpp-2m(lower_final=15)") if mine else scheduler)
        pipe.set_progress_bar_config(disable=True)
        g = torch.Generator().manual_seed(0)
        images.append(pipe([1, 7], guidance_scale=3.0, generator=g, num_inference_steps=6, output_type="np").images)
    assert images[0].std() > 0.01
    np.testing.assert_allclose(images[1], images[0], atol=1e-4)
    out = ds.sample(pipe, (2, 4, 8, 8), nfe=4, seed=0, cond={"class_labels": torch.tensor([1, 7])})
    assert out.isfinite().all()


def test_networks_of_flow_pipelines(df, module):
    class Net(torch.nn.Module):
        def forward(self, hidden_states, timestep, return_dict=True):
            return (hidden_states * timestep.view(-1, 1, 1, 1),)

    flow = df.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="clock must be .* for Net, got None"):
        module.model_of(Net(), flow)
    x = latents()
    out = module.model_of(Net(), flow, clock="1000t")(x, 0.25)
    assert torch.equal(out, x * 250)
    sd3 = type("SD3Transformer2DModel", (Net,), {})
    assert module.model_of(sd3(), flow).clock == "1000t"
    with pytest.raises(ValueError, match="pipe must have a unet"):
        module.pipeline(SimpleNamespace(scheduler=flow))


# k-diffusion and ComfyUI ---------------------------------------------------------------------------------------


CASES = {"heun": "heun(frame='noise')", "dpmpp_2m": "dpmpp-2m", "euler": "euler", "dpm_2": "dpm-2s"}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("to_zero", [True, False])
def test_a_sampling_function(kd, name, to_zero):
    """Called as k-diffusion calls its own, with the same result; the callback sees the same calls."""
    model = mixture_model(MIXTURE, paths.EDM(), "denoised")
    sigmas = kd.get_sigmas_karras(9, 0.01, 30.0).double()
    sigmas = sigmas if to_zero else sigmas[:-1]

    def denoiser(x, sigma, scale):
        assert sigma.dtype == torch.float64
        assert sigma.shape == (len(x),)
        return scale * model.net(x, sigma)

    seen, theirs = [], []
    x = latents(30.0, torch.float64)
    arguments = {"extra_args": {"scale": 1.0}, "disable": True}
    mine = k_diffusion.sampler(CASES[name])(denoiser, x, sigmas, callback=seen.append, **arguments)
    peer = getattr(kd, f"sample_{name}")(denoiser, x, sigmas, callback=theirs.append, **arguments)
    assert distance(mine, peer) < 1e-12
    assert len(seen) == len(theirs) == len(sigmas) - 1
    for mine, peer in zip(seen, theirs, strict=True):
        assert mine["i"] == peer["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(mine[key], peer[key], rtol=1e-9, atol=1e-9)


def test_seeds_of_a_sampling_function():
    model = mixture_model(MIXTURE, paths.EDM(), "denoised")
    sigmas, x = torch.tensor([30.0, 10.0, 3.0, 1.0, 0.0]), latents(30.0)
    denoiser = lambda x, sigma, seed=None: model.net(x, sigma)  # noqa: E731
    run = k_diffusion.sampler("ddim(eta=1)")
    one = run(denoiser, x, sigmas, extra_args={"seed": 4}, disable=True)
    assert torch.equal(one, run(denoiser, x, sigmas, extra_args={"seed": 4}, disable=True))
    assert torch.equal(one, k_diffusion.sampler("ddim(eta=1)", seed=4)(denoiser, x, sigmas, disable=True))
    assert not torch.equal(one, run(denoiser, x, sigmas, extra_args={"seed": 5}, disable=True))
    wanted = ds.sample(
        ds.adapt(model.net, paths.EDM(1.0, 30.0), "denoised"), noise=x, solver="ddim(eta=1)", grid=sigmas, seed=4
    )
    assert torch.equal(one, wanted)
    half = run(lambda x, s, seed=None: model.net(x.float(), s).half(), x.half(), sigmas, disable=True)
    assert half.dtype == torch.float16
    assert run(denoiser, x, torch.tensor([30.0, 0.0]), disable=True).isfinite().all()


def test_a_flow_model_of_comfyui():
    """There x = (1 - sigma) x_0 + sigma eps, which the model tells by the class of its sampling."""
    exact = mixture_model(MIXTURE, paths.Rectified(), "denoised")

    class CONST:
        pass

    class ModelSampling(CONST):
        pass

    patcher = SimpleNamespace(get_model_object=lambda name: {"model_sampling": ModelSampling()}[name])

    class Guider:
        inner_model = SimpleNamespace(model_patcher=patcher)

        def __call__(self, x, sigma, seed=None):
            return exact.net(x, sigma)

    sigmas, x = torch.linspace(1, 0, 9), latents()
    mine = k_diffusion.sampler("dpmpp-2m")(Guider(), x, sigmas, extra_args={"seed": 0}, disable=True)
    assert torch.equal(mine, ds.sample(exact, noise=x, solver="dpmpp-2m", grid=sigmas))


def test_a_denoiser_of_k_diffusion(kd):
    external = peers.k_diffusion("external")
    path = paths.Discrete.scaled_linear()
    eps = mixture_model(MIXTURE, path, "noise").net
    denoiser = external.DiscreteEpsDDPMDenoiser(eps, (path.alpha(np.arange(1000.0)) ** 2).float(), quantize=False)
    model = ds.adapt(denoiser)
    assert model.path == paths.EDM(float(denoiser.sigma_min), float(denoiser.sigma_max))
    sigmas = kd.get_sigmas_karras(12, 0.03, 14.0)
    x = latents(14.0)
    assert model.predicts == "denoised"
    assert model.learned == "noise"
    assert ds.plan(model, nfe=6).solver == ds.plan(model, "auto(predicts='noise')", nfe=6).solver
    mine = ds.sample(denoiser, noise=x, solver="dpmpp-2m", grid=sigmas)
    assert distance(mine, kd.sample_dpmpp_2m(denoiser, x, sigmas, disable=True)) < 1e-5


@pytest.mark.parametrize(
    ("classes", "learned"),
    [
        (("DiscreteEpsDDPMDenoiser",), "noise"), (("VDenoiser",), "v"), (("Denoiser",), "edm"), (("Mine",), "denoised"),
        # In ComfyUI v derives from eps.
        (("V_PREDICTION", "EPS"), "v"), (("EPS",), "noise"), (("CONST",), "velocity"),
    ],
)  # fmt: skip
def test_the_sampler_tells_auto_what_the_network_inside_predicts(classes, learned):
    exact = mixture_model(MIXTURE, paths.Rectified() if learned == "velocity" else paths.EDM(0.1, 9.0), "denoised")
    kind = object
    for name in reversed(classes):
        kind = type(name, (kind,), {"__call__": lambda self, x, sigma, seed=None: exact.net(x, sigma)})
    denoiser = kind()
    if classes[0] in ("V_PREDICTION", "EPS", "CONST"):  # ComfyUI's, which the model's sampling tells
        inner = SimpleNamespace(model_patcher=SimpleNamespace(get_model_object=lambda name: kind()))
        denoiser = type("Guider", (), {"inner_model": inner, "__call__": lambda s, x, t, seed=None: exact.net(x, t)})()
    sigmas, x = torch.linspace(0.9, 0.1, 6), latents(1.0)
    if learned != "velocity":
        sigmas = sigmas * 10
    mine = k_diffusion.sampler("auto")(denoiser, x, sigmas, disable=True)
    path = exact.path if learned == "velocity" else paths.EDM(1.0, 9.0)
    same = ds.adapt(exact.net, path, "denoised", dtype=x.dtype)
    for predicts in ("noise", "v", "edm", "denoised", *(["velocity"] if learned == "velocity" else [])):
        wanted = ds.sample(same, noise=x, solver=f"auto(predicts={predicts!r})", grid=sigmas)
        assert torch.equal(mine, wanted) == (predicts == learned), predicts


# EDM, flow_matching, and what is nobody's -----------------------------------------------------------------------


class Precond(torch.nn.Module):
    """With the attributes and the call of an EDM network; its table is that of an iDDPM in small."""

    sigma_min, sigma_max, sigma_data = 0.0, math.inf, 0.5

    def __init__(self, half=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float16 if half else torch.float32))
        self.u = torch.tensor([0.01, 0.1, 0.5, 1.0, 5.0, 80.0])

    def round_sigma(self, sigma):
        return self.u.double()[(sigma.double()[:, None] - self.u).abs().argmin(1)]

    def forward(self, x, sigma, class_labels=None):
        assert x.dtype == torch.float32
        assert all(float(s) in self.u.tolist() for s in sigma)
        return MIXTURE.expectations(x, 1.0, sigma)[0] + class_labels.view(-1, 1, 1, 1)


def test_a_network_of_edm():
    for half in (False, True):
        net = Precond(half)
        model = ds.adapt(net)
        assert (model.path, model.predicts) == (paths.EDM(0.002, 80.0), "denoised")
        labels = torch.arange(6.0)
        x = ds.sample(net, SHAPE, solver="heun(frame='noise')", steps=5, seed=0, cond={"class_labels": labels})
        assert x.isfinite().all()
    assert ds.plan(ds.adapt(net), nfe=6).solver == "Designed(guidance=1.0, predicts='edm')"
    noise = type("VPPrecond", (Precond,), {})()
    assert ds.plan(ds.adapt(noise), nfe=6).solver == "Designed(guidance=1.0, predicts='noise')"
    net.sigma_min, net.sigma_max = 0.01, 50.0
    assert ds.adapt(net).path == paths.EDM(0.01, 50.0)


def test_a_flow_matching_model():
    wrapper = pytest.importorskip("flow_matching.utils").ModelWrapper
    solver = pytest.importorskip("flow_matching.solver").ODESolver
    net = mixture_model(MIXTURE, "condot", "velocity").net

    class Wrapped(wrapper):
        def forward(self, x, t, scale, **extras):
            return scale * self.model(x, t.expand(len(x)))

    model = Wrapped(net)
    assert ds.adapt(model).path == paths.CondOT()
    x, grid = latents(dtype=torch.float64), torch.linspace(0, 1, 9, dtype=torch.float64)
    mine = ds.sample(model, noise=x, solver="midpoint(frame='native')", grid=grid, cond={"scale": 1.0})
    peer = solver(velocity_model=model).sample(x_init=x, method="midpoint", step_size=None, time_grid=grid, scale=1.0)
    assert distance(mine, peer) < 1e-12


def test_what_is_not_recognised():
    assert recognise(torch.nn.Linear(1, 1)) is None
    assert recognise(3) is None
    for call in (ds.adapt, lambda thing: ds.sample(thing, (1, 2), nfe=1), lambda thing: ds.log_prob(thing, latents())):
        with pytest.raises(TypeError, match="model must be a Model .* got one of type Linear"):
            call(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="path='edm', predicts=None"):
        ds.adapt(lambda x, t: x, "edm")
    with pytest.raises(ValueError, match="path and predicts must be given with other options"):
        ds.adapt(Precond(), clock="sigma")
