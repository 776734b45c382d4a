"""Inside ComfyUI itself, where DIFFSOLVE_COMFYUI names its folder: `pytest -m comfyui`. Seen with its version 0.3.75.

ComfyUI is under another licence; nothing of it is here.
"""

import asyncio
import math
import os
import sys
from pathlib import Path
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
PACK = Path(__file__).parents[2] / "comfyui"
ALMOST = {
    "deis": 1e-4,  # whose integrals are sums of 10,000 rectangles there
    "er_sde": 1e-6,  # some of its numbers are float32 there
    "ipndm_v": None,  # which here is as it was meant
}  # fmt: skip
"""How far the numbers of a sampler may be from theirs where that is more than rounding."""
KEY = ds.Key(0)
SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI, with the pack loaded by its own loader."""
    if not FOLDER:
        pytest.skip("DIFFSOLVE_COMFYUI names no folder of ComfyUI")
    sys.path.insert(0, FOLDER)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(PACK)))
    comfy.nodes = nodes
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


CONTEXT = [[[torch.full((1, 5, 8), value), {}]] for value in (0.4, -0.2)]
IMAGE = KEY.normal(SHAPE, row=9)


def ksampler(comfy, patcher, name, scheduler="normal", image=None, steps=6, denoise=1.0, mask=None, cfg=3.0):
    """The node KSampler."""
    latent = {"samples": torch.zeros(SHAPE) if image is None else image}
    if mask is not None:
        latent["noise_mask"] = mask
    node = comfy.nodes.NODE_CLASS_MAPPINGS["KSampler"]()
    return node.sample(patcher, 5, steps, cfg, name, scheduler, *CONTEXT, latent, denoise)[0]["samples"]


def advanced(comfy, patcher, name, image=None, noise="enable", start=0, stop=10000, leftover="disable"):
    """The node KSampler (Advanced): a part of the steps."""
    latent = {"samples": torch.zeros(SHAPE) if image is None else image}
    node = comfy.nodes.NODE_CLASS_MAPPINGS["KSamplerAdvanced"]()
    made = node.sample(patcher, noise, 5, 6, 3.0, name, "normal", *CONTEXT, latent, start, stop, leftover)
    return made[0]["samples"]


MASK = torch.zeros(1, 1, 8, 8)
MASK[..., :4] = 1
WAYS = {
    "text to image": (ksampler, {}), "karras": (ksampler, {"scheduler": "karras"}),
    "image to image": (ksampler, {"image": IMAGE, "denoise": 0.5}),
    "inpainting": (ksampler, {"image": IMAGE, "mask": MASK}),
    "the first steps": (advanced, {"image": IMAGE, "stop": 3}),
    "the first steps, with leftover noise": (advanced, {"image": IMAGE, "stop": 3, "leftover": "enable"}),
    "the last steps": (advanced, {"image": IMAGE, "start": 3}),
    "the last steps, without noise": (advanced, {"image": IMAGE, "start": 3, "noise": "disable"}),
    "steps in the middle": (advanced, {"image": IMAGE, "start": 1, "stop": 4}),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), [
    ("euler", "euler"), ("heun", "heun(frame='native')"), ("dpmpp_2m", "dpmpp-2m"), ("res_multistep", "res-2m"),
    ("euler_cfg_pp", "ddim cfg++"),
])  # fmt: skip
def test_ksampler(comfy, patcher, theirs, ours):
    """Both nodes, end to end: what the same method gives there."""
    from diffsolve.integrations.comfyui import register

    if patcher.model.model_type.name == "FLOW" and "2m" in ours:
        ours += "(variable='log-u')"
    (name,) = register([ours])
    for way, (node, options) in WAYS.items():
        wanted, mine = node(comfy, patcher, theirs, **options), node(comfy, patcher, name, **options)
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, way=way: f"{way}: {text}")
        if way == "inpainting":
            torch.testing.assert_close(mine[..., 4:], IMAGE[..., 4:])
    if theirs in ("euler", "heun"):  # which keep nothing from one step to the next
        half = advanced(comfy, patcher, name, stop=3, leftover="enable")
        joined = advanced(comfy, patcher, name, image=half, start=3, noise="disable")
        torch.testing.assert_close(joined, advanced(comfy, patcher, name), rtol=1e-4, atol=1e-4)


def test_all_solvers_and_grids_are_listed_and_run(comfy, patcher):
    kinds = comfy.nodes.NODE_CLASS_MAPPINGS["KSampler"].INPUT_TYPES()["required"]
    samplers, schedulers = kinds["sampler_name"][0], kinds["scheduler"][0]
    listed = [name for name in samplers if name.startswith("diffsolve ")]
    assert {f"diffsolve {name}" for name in ds.solvers.names()} < set(listed)
    assert len(set(samplers)) == len(samplers)
    for name in listed:
        out = ksampler(comfy, patcher, name, steps=5, cfg=1.1 if "++" in name else 3.0)
        assert out.isfinite().all(), name
        assert out.shape == SHAPE
    ours = [name for name in schedulers if name.startswith("diffsolve ")]
    assert ours == [f"diffsolve {grid}" for grid in ds.grids.names()]
    for scheduler in ours:
        assert ksampler(comfy, patcher, "euler", scheduler, steps=5).isfinite().all(), scheduler


def test_the_nodes_of_the_pack(comfy, patcher, tmp_path, monkeypatch):
    """Sampler, scheduler, student, table and plan into ComfyUI's SamplerCustom; unsampling and back."""
    import folder_paths
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    known = comfy.nodes.NODE_CLASS_MAPPINGS

    def node(name, *given):
        made = known[f"Diffsolve{name}"]()
        return getattr(made, made.FUNCTION)(*given)

    def custom(sampler, sigmas, latent=IMAGE, noise=True, cfg=3.0):
        return SamplerCustom.execute(patcher, noise, 5, cfg, *CONTEXT, sampler, sigmas, {"samples": latent})[0][
            "samples"
        ]

    (sampler,), (sigmas,) = node("Sampler", "dpmpp-2m", ""), node("Scheduler", patcher, "karras", "rho=5", 8, 1.0)
    plain = custom(sampler, sigmas)
    assert plain.isfinite().all()
    (plus,) = node("Sampler", "dpmpp-2m", "", True)
    assert not torch.allclose(custom(plus, sigmas), plain)
    for student in ("lcm", "tcd"):
        assert custom(*node("Student", patcher, student, "", 4)).isfinite().all()

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    (tmp_path / "diffsolve").mkdir()
    flow = patcher.model.model_type.name == "FLOW"
    times = node("Scheduler", patcher, "karras", "", 6, 1.0)[0].double().numpy()
    table = ds.plan("rectified" if flow else ds.paths.EDM(float(times[-2]), float(times[0])), "dpmpp-2m", grid=times)
    file = f"{patcher.model.model_type.name}.json"  # ComfyUI keeps the folders of earlier calls
    table.save(tmp_path / "diffsolve" / file)
    assert file in known["DiffsolveTable"].INPUT_TYPES()["required"]["file"][0]
    torch.testing.assert_close(custom(*node("Table", file)), custom(sampler, torch.tensor(times).float()))

    text = node("Plan", patcher, "dpmpp-2m", "", sigmas)["result"][0]
    assert text.startswith("DPMpp(points=2, frame='denoised', lower_final=False) on ")
    assert "8 steps, 8 network calls" in text

    (heun,), (fine,) = node("Sampler", "heun", "frame='straight'"), node("Scheduler", patcher, "uniform-u", "", 80, 1.0)
    noise, back = node("Unsampler", patcher, *CONTEXT, 1.0, heun, fine, {"samples": IMAGE})
    again = custom(heun, back, noise["samples"], noise=False, cfg=1.0)
    assert float((again - IMAGE).abs().max()) < 0.05
    assert float((noise["samples"] - IMAGE).abs().max()) > 0.2
