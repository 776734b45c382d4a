"""Inside ComfyUI itself, where DIFFSOLVE_COMFYUI names its folder: `pytest -m comfyui`. Seen with its version 0.3.75.

ComfyUI is under another licence; nothing of it is here.
"""

import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch

import diffsolve as ds
from diffsolve.execute.start import begin
from diffsolve.integrations import k_diffusion
from diffsolve.noise import Stream

pytestmark = [pytest.mark.comfyui, pytest.mark.filterwarnings("ignore")]

FOLDER = os.environ.get("DIFFSOLVE_COMFYUI")
SAME = [
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2s_ancestral", "dpmpp_sde",
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ipndm", "res_multistep", "seeds_2",
    "seeds_3", "ddim", "uni_pc", "uni_pc_bh2",
]  # fmt: skip
OTHERS_ON_FLOWS = {"euler_ancestral", "dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "uni_pc", "uni_pc_bh2"}
KEY = ds.Key(0)
SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def comfy():
    if not FOLDER:
        pytest.skip("DIFFSOLVE_COMFYUI names no folder of ComfyUI")
    sys.path.insert(0, FOLDER)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.sample
    import comfy.samplers

    from diffsolve.integrations.comfyui import register

    register()
    return comfy


def model_for(sampling):
    """What a sampling function there gets: D of N(1/2, 1/2), bent, on the model's sigmas."""
    flow = "CONST" in [base.__name__ for base in type(sampling).__mro__]

    def denoised(x, sigma, **_):
        s = sigma.view(-1, 1, 1, 1).to(x.dtype)
        alpha = 1 - s if flow else torch.ones_like(s)
        share = 0.5 / (0.5 * alpha**2 + s**2)
        return 0.5 + alpha * share * (x - alpha / 2) + 0.1 * torch.tanh(x - alpha) * share

    patcher = SimpleNamespace(get_model_object=lambda name: sampling)
    inner = SimpleNamespace(model_patcher=patcher, inner_model=SimpleNamespace(model_sampling=sampling))
    denoised.inner_model = inner
    return denoised


def drawn(name, plan):
    """What the run draws, as their sampler asks for it: the two of a dpmpp_sde step are of one path from its start."""
    rows = [i for i in range(plan.nfe) if plan.weights[i, :, -1].any()]
    for i in rows:
        z = KEY.normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=torch.float64)
        if name == "dpmpp_sde" and i % 2:
            (q0, q1), q2 = plan.clock[i - 1], plan.clock[i, 1]
            share = (q1 - q0) / (q2 - q0)
            before = KEY.normal(SHAPE, row=i, stream=Stream.ROW, dtype=torch.float64)
            z = math.sqrt(share) * before + math.sqrt(1 - share) * z
        yield z


@pytest.fixture
def double():
    """UniPC there needs it to compute in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both(comfy, sampling, name, sigmas, monkeypatch):
    """(ours, theirs) with the same noise."""
    model, x, made = model_for(sampling), sigmas[0] * KEY.normal(SHAPE, dtype=torch.float64), []
    with monkeypatch.context() as patch:
        patch.setattr(k_diffusion, "begin", lambda *a, **k: made.append(begin(*a, **k)) or made[-1])
        mine = k_diffusion.sampler(name, seed=0)(model, x, sigmas, disable=True)
    plan = made[0].tableau
    noises, theirs = drawn(name, plan), comfy.samplers.sampler_object(name).sampler_function
    noise = {"noise_sampler": lambda *_: next(noises)} if plan.stochastic else {}
    return mine, theirs(model, x, sigmas, extra_args={"seed": 0}, disable=True, **noise)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_a_sampler_of_the_same_name_has_the_same_numbers(comfy, name, flow, monkeypatch):
    bases = ("ModelSamplingDiscreteFlow", "CONST") if flow else ("ModelSamplingDiscrete", "EPS")
    sampling = type("Sampling", tuple(getattr(comfy.model_sampling, base) for base in bases), {})()
    for n in (3, 9):
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if flow else "karras", n).double()
        if flow and name in OTHERS_ON_FLOWS:
            with pytest.raises(ValueError, match="on a flow the sampler is another"):
                both(comfy, sampling, name, sigmas, monkeypatch)
        else:
            mine, theirs = both(comfy, sampling, name, sigmas, monkeypatch)
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


class Tiny(torch.nn.Module):
    """A network of that shape, which looks at its time and its context."""

    def __init__(self):
        super().__init__()
        self.dtype = torch.float32
        self.mix = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, timesteps, context=None, **_):
        about = torch.sin(timesteps / 200)[:, None, None, None] + context.mean((1, 2))[:, None, None, None]
        return torch.tanh(self.mix(x) + about) + 0.3 * x


@pytest.fixture(scope="module", params=["EPS", "V_PREDICTION", "FLOW"])
def patcher(comfy, request):
    config = SimpleNamespace(
        unet_config={"disable_unet_model_creation": True}, latent_format=comfy.latent_formats.SD15(),
        sampling_settings={"shift": 3.0} if request.param == "FLOW" else {}, custom_operations=None,
        manual_cast_dtype=None, optimizations={}, memory_usage_factor=1.0, scaled_fp8=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = comfy.model_base.BaseModel(config, getattr(comfy.model_base.ModelType, request.param), device="cpu")
    model.diffusion_model = Tiny().requires_grad_(False).eval()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def ksampler(comfy, patcher, name, scheduler="normal", image=None, steps=6, **options):
    image = torch.zeros(SHAPE) if image is None else image
    context = [[[torch.full((1, 5, 8), value), {}]] for value in (0.4, -0.2)]
    noise = KEY.normal(SHAPE) if not options.get("disable_noise") else torch.zeros(SHAPE)
    return comfy.sample.sample(
        patcher, noise, steps, 3.0, name, scheduler, *context, image, disable_pbar=True, seed=5, **options
    )


@pytest.mark.parametrize(("theirs", "ours"), [
    ("euler", "euler"), ("heun", "heun(frame='native')"), ("dpmpp_2m", "dpmpp-2m"), ("res_multistep", "res-2m"),
])  # fmt: skip
def test_ksampler(comfy, patcher, theirs, ours):
    """Text to image, image to image, a mask, and a run in two parts with the noise left over between them."""
    from diffsolve.integrations.comfyui import register

    if patcher.model.model_type.name == "FLOW" and "2m" in ours:
        ours += "(variable='log-u')"
    (name,) = register([ours])
    image = KEY.normal(SHAPE, row=9)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    ways = [
        {}, {"scheduler": "karras"}, {"image": image, "denoise": 0.5}, {"image": image, "noise_mask": mask},
        {"image": image, "last_step": 3}, {"image": image, "start_step": 3, "disable_noise": True},
        {"image": image, "start_step": 1, "last_step": 4, "force_full_denoise": True},
    ]  # fmt: skip
    for way in ways:
        wanted = ksampler(comfy, patcher, theirs, **way)
        torch.testing.assert_close(ksampler(comfy, patcher, name, **way), wanted, rtol=1e-4, atol=1e-4)
    half = ksampler(comfy, patcher, name, last_step=3)
    joined = ksampler(comfy, patcher, name, image=half, start_step=3, disable_noise=True)
    if theirs in ("euler", "heun"):  # which keep nothing from one step to the next
        torch.testing.assert_close(joined, ksampler(comfy, patcher, name), rtol=1e-4, atol=1e-4)


def test_all_solvers_are_listed_and_run(comfy, patcher):
    from diffsolve.integrations.comfyui import register

    listed = register()
    assert listed == [f"diffsolve {name}" for name in ds.solvers.names()]
    assert set(listed) < set(comfy.samplers.KSampler.SAMPLERS)
    assert len(set(comfy.samplers.KSampler.SAMPLERS)) == len(comfy.samplers.KSampler.SAMPLERS)
    refused = []
    for name in listed:
        try:
            out = ksampler(comfy, patcher, name, steps=5)
        except ValueError as error:
            refused.append(f"{name}: {error}")
            continue
        assert out.isfinite().all(), name
        assert out.shape == SHAPE
    assert not refused
