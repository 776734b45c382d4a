"""Inside ComfyUI itself, where DIFFSOLVE_COMFYUI names its folder: `pytest -m comfyui`. Seen with its version 0.3.75.

ComfyUI is under another licence; nothing of it is here.
"""

import math
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from support.comfy import Host

import diffsolve as ds
from diffsolve.execute.start import begin
from diffsolve.integrations import k_diffusion
from diffsolve.noise import Stream

pytestmark = [pytest.mark.comfyui, pytest.mark.filterwarnings("ignore")]

FOLDER = os.environ.get("DIFFSOLVE_COMFYUI")
ALMOST = {
    "deis": 1e-4,  # whose integrals are sums of 10,000 rectangles there
    "er_sde": 1e-5,  # which has them in float32
    "ipndm_v": None,  # which here is as it was meant
    "dpm_fast": 1e-5, "dpm_adaptive": 1e-5,
}  # fmt: skip
"""How far the numbers of a sampler may be from theirs where that is more than rounding."""
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
    """What a sampling function there gets: D of N(1/2, 1/2), bent, on the model's sigmas, and an unconditional one."""
    host = Host("CONST" in [base.__name__ for base in type(sampling).__mro__])
    host.inner_model.inner_model = SimpleNamespace(model_sampling=sampling)
    host.sampling = sampling
    return host


def drawn(name, plan):
    """What the run draws, as their sampler asks for it: the two of a dpmpp_sde step are of one path from its start."""
    rows = [i for i in range(plan.nfe) if plan.weights[i, :, -1].any()]
    for i in rows:
        z = KEY.normal(SHAPE, row=i + 1, stream=Stream.ROW, dtype=torch.float64)
        if name.startswith("dpmpp_sde") and i % 2:
            (q0, q1), q2 = plan.clock[i - 1], plan.clock[i, 1]
            share = (q1 - q0) / (q2 - q0)
            before = KEY.normal(SHAPE, row=i, stream=Stream.ROW, dtype=torch.float64)
            z = math.sqrt(share) * before + math.sqrt(1 - share) * z
        yield z
    while True:  # some draw what they multiply by 0
        yield torch.zeros(SHAPE, dtype=torch.float64)


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
    theirs, options = comfy.samplers.sampler_object(name).sampler_function, {}
    if made and made[0].tableau.stochastic:
        noises = drawn(name, made[0].tableau)
        options["noise_sampler"] = lambda *_: next(noises)
    arguments = {"extra_args": {"seed": 0}, "callback": None, "disable": True, **options}
    return mine, theirs(model, x.clone(), sigmas.clone(), **arguments)


def distances(comfy, name, monkeypatch):
    """The largest difference, in units of the largest number, on each kind of sigmas and of length."""
    for flow in (False, True):
        bases = ("ModelSamplingDiscreteFlow", "CONST") if flow else ("ModelSamplingDiscrete", "EPS")
        sampling = type("Sampling", tuple(getattr(comfy.model_sampling, base) for base in bases), {})()
        for n in (3, 9):
            sigmas = comfy.samplers.calculate_sigmas(sampling, "simple" if flow else "karras", n).double()
            mine, theirs = both(comfy, sampling, name, sigmas, monkeypatch)
            yield float((mine - theirs).abs().max() / theirs.abs().max())


@pytest.mark.usefixtures("double")
def test_each_sampler_name_has_their_numbers(comfy, monkeypatch, capsys):
    """The table of agreement, which is printed: `pytest -m comfyui -s`."""
    lines, wrong = [], []
    for name in comfy.samplers.SAMPLER_NAMES:
        if name.startswith("diffsolve "):
            continue
        found, bound = max(distances(comfy, name, monkeypatch)), ALMOST.get(name, 1e-9)
        lines.append(f"{name:32} {found:.1e}")
        wrong += [name] if bound is not None and not found <= bound else []
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert not wrong


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
