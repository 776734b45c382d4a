"""The node pack of ComfyUI and the extension of the web UI, against stand-ins of the few entry points that they use.

test_comfyui.py runs the pack inside ComfyUI itself.
"""

import importlib.util
import inspect
import math
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from support.comfy import Host

import diffsolve as ds
from diffsolve import grids
from diffsolve.integrations import comfyui, comfyui_models, comfyui_nodes, k_diffusion, webui

ROOT = Path(__file__).parents[2]
SIGMAS = torch.tensor([9.0, 3.0, 1.0, 0.2, 0.0])
X = 9 * ds.Key(3).normal((2, 3, 4))


def stand_in(monkeypatch, name, **entries):
    module = ModuleType(name)
    module.__dict__.update(entries)
    monkeypatch.setitem(sys.modules, name, module)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's lists of samplers and schedulers, its way to run one, and its folders."""
    ksampler = lambda function: SimpleNamespace(sampler_function=function)  # noqa: E731
    lists = {"KSAMPLER_NAMES": ["euler"], "SAMPLER_NAMES": ["euler", "ddim"], "SCHEDULER_NAMES": ["normal"]}
    comfy = stand_in(monkeypatch, "comfy")
    handler = namedtuple("SchedulerHandler", ["handler", "use_ms"], defaults=[True])
    stand_in(monkeypatch, "comfy.samplers", KSAMPLER=ksampler, SCHEDULER_HANDLERS={}, SchedulerHandler=handler, **lists)
    stand_in(monkeypatch, "comfy.k_diffusion")
    stand_in(monkeypatch, "comfy.k_diffusion.sampling")

    def sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, latent, **_):
        assert not noise.any()
        model.cfg = cfg
        return sampler.sampler_function(model.host, latent, sigmas, extra_args={"seed": 0}, callback=None, disable=True)

    stand_in(monkeypatch, "comfy.sample", sample_custom=sample_custom, fix_empty_latent_channels=lambda m, x: x)
    known = {}
    stand_in(
        monkeypatch, "folder_paths", models_dir=str(tmp_path), add_model_folder_path=known.__setitem__,
        get_filename_list=lambda name: sorted(path.name for path in Path(known[name]).glob("*")),
        get_full_path_or_raise=lambda name, file: str(Path(known[name]) / file),
    )  # fmt: skip
    return comfy


def model_of(sampling, host=None):
    return SimpleNamespace(get_model_object=lambda name: {"model_sampling": sampling}[name], host=host)


def sampling_of(*kinds, **entries):
    """A model_sampling whose classes have these names."""
    kind = object
    for name in reversed(kinds):
        kind = type(name, (kind,), {})
    made = kind()
    made.__dict__.update(entries)
    return made


TABLE = ds.paths.Discrete.scaled_linear()
SCALED = torch.tensor([math.exp(-float(TABLE.lam(float(row)))) for row in range(1000)])
DISCRETE = sampling_of("Sampling", "ModelSamplingDiscrete", "EPS", sigmas=SCALED)
FLOW = sampling_of("Sampling", "ModelSamplingDiscreteFlow", "CONST", shift=3.0)
FLUX = sampling_of("Sampling", "ModelSamplingFlux", "CONST", shift=1.15)
EDM = sampling_of(
    "ModelSamplingContinuousEDM",
    "EDM",
    sigma_min=torch.tensor(0.01),
    sigma_max=torch.tensor(50.0),
    sigmas=torch.ones(9),
)


def test_the_pack_lists_everything_and_leaves_the_rest(comfy):
    spec = importlib.util.spec_from_file_location("pack", ROOT / "comfyui" / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    samplers = comfy.samplers
    once = list(samplers.SAMPLER_NAMES)
    assert comfyui.register() == once[2:]  # again, which changes nothing
    assert once == samplers.SAMPLER_NAMES
    assert {f"diffsolve {name}" for name in ds.solvers.names()} < set(once)
    assert "diffsolve unipc-3 cfg++" in once
    assert ["euler", *once[2:]] == samplers.KSAMPLER_NAMES
    assert ["normal", *(f"diffsolve {grid}" for grid in grids.names())] == samplers.SCHEDULER_NAMES
    assert set(pack.NODE_CLASS_MAPPINGS) == set(pack.NODE_DISPLAY_NAME_MAPPINGS)
    for node in pack.NODE_CLASS_MAPPINGS.values():  # as ComfyUI calls it
        required = node.INPUT_TYPES() if node is not comfyui_nodes.DiffsolveTable else {"required": {"file": ([],)}}
        names = [name for kind in required.values() for name in kind]
        assert list(inspect.signature(getattr(node(), node.FUNCTION)).parameters) == names
    listed = comfy.k_diffusion.sampling.__dict__
    for name in ("diffsolve dpmpp-2m", "diffsolve dpmpp-2m cfg++"):
        mine = listed[f"sample_{name}"](Host(False), X, SIGMAS, extra_args={"seed": 1}, disable=True)
        wanted = k_diffusion.sampler("dpmpp-2m", plus=name.endswith("++"))(Host(False), X, SIGMAS, disable=True)
        assert torch.equal(mine, wanted)
    for handler in samplers.SCHEDULER_HANDLERS.values():
        assert handler.use_ms
        assert len(handler.handler(DISCRETE, 7)) == 8
    with pytest.raises(ValueError, match="solver must be one of"):
        comfyui.register(["no-such"])


def test_the_pack_has_the_version_of_the_library():
    versions = [re.search(r'^version = "(.*)"$', path.read_text(), re.M)[1] for path in ROOT.glob("*/pyproject.toml")]
    assert versions == re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_path_of_a_model():
    path = comfyui_models.path_of(DISCRETE)
    rows = np.arange(0.0, 1000, 100)
    np.testing.assert_allclose(path.lam(rows), TABLE.lam(rows), rtol=1e-4)
    assert comfyui_models.path_of(FLOW) == ds.paths.Rectified(3.0)
    assert comfyui_models.path_of(FLUX) == ds.paths.Rectified(math.exp(1.15))
    assert comfyui_models.path_of(EDM) == ds.paths.EDM(float(EDM.sigma_min), 50.0)


@pytest.mark.parametrize("sampling", [DISCRETE, FLOW, EDM])
def test_a_grid_as_sigmas(sampling):
    node, model = comfyui_nodes.DiffsolveScheduler(), model_of(sampling)
    for grid in grids.names():
        (sigmas,) = node.sigmas(model, grid, "", 9, 1.0)
        assert sigmas.dtype == torch.float32
        assert len(sigmas) == 10
        assert sigmas[-1] == 0
        assert (sigmas.diff() < 0).all()
    (whole,), (half,) = node.sigmas(model, "karras", "rho=5", 10, 1.0), node.sigmas(model, "karras", "rho=5", 5, 0.5)
    assert torch.equal(half, whole[-6:])
    assert not torch.equal(whole, node.sigmas(model, "karras", "", 10, 1.0)[0])
    assert len(node.sigmas(model, "karras", "", 10, 0.0)[0]) == 0
    with pytest.raises(ValueError, match="has no option 'nu'"):
        node.sigmas(model, "karras", "nu=5", 10, 1.0)
    with pytest.raises(ValueError, match="denoise must be"):
        node.sigmas(model, "karras", "", 10, 1.5)


def test_karras_and_trailing_are_those_of_comfyui():
    """Karras et al. between the model's own ends; "simple" there, rows of the table from the end."""
    low, high = float(EDM.sigma_min), 50.0
    ramp = torch.linspace(0, 1, 8, dtype=torch.float64)
    wanted = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    sigmas = comfyui_models.sigmas_of(EDM, "karras", 8)
    torch.testing.assert_close(sigmas[:-1].double(), wanted, rtol=1e-5, atol=0)
    rows = comfyui_models.sigmas_of(DISCRETE, "trailing", 8)
    torch.testing.assert_close(rows[:-1], SCALED[torch.arange(999, 0, -125)], rtol=1e-4, atol=0)


def test_the_sampler_node(comfy):
    node = comfyui_nodes.DiffsolveSampler()
    (made,) = node.sampler("ddim", "eta=0.5")
    options = {"extra_args": {"seed": 1}, "callback": None, "disable": True}
    mine = made.sampler_function(Host(False), X, SIGMAS, **options)
    assert torch.equal(mine, k_diffusion.sampler("ddim(eta=0.5)", seed=1)(Host(False), X, SIGMAS, disable=True))
    assert not torch.equal(mine, k_diffusion.sampler("ddim")(Host(False), X, SIGMAS, disable=True))
    with pytest.raises(ValueError, match="has no option 'nu'"):
        node.sampler("ddim", "nu=0.5")
    (plus,) = node.sampler("dpmpp-3m", "", cfg_pp=True)
    wanted = k_diffusion.sampler("dpmpp-3m", plus=True)(Host(False), X, SIGMAS, disable=True)
    assert torch.equal(plus.sampler_function(Host(False), X, SIGMAS, **options), wanted)


@pytest.mark.parametrize("student", comfyui_nodes.STUDENTS)
def test_the_student_node(comfy, student):
    gamma = 1.0 if student == "consistency" else 0.5
    made, sigmas = comfyui_nodes.DiffsolveStudent().student(model_of(DISCRETE), student, f"gamma={gamma}", 4)
    assert len(sigmas) == 5
    solver = ds.solvers.named(f"{student}(gamma={gamma})")
    mine = made.sampler_function(Host(False), X, sigmas, extra_args={"seed": 1}, callback=None, disable=True)
    assert torch.equal(mine, k_diffusion.sampler(solver, seed=1)(Host(False), X, sigmas, disable=True))


def test_the_table_node(comfy, tmp_path):
    table = ds.plan("edm", "dpmpp-2m", steps=4)
    (tmp_path / "diffsolve").mkdir()
    table.save(tmp_path / "diffsolve" / "mine.json")
    node = comfyui_nodes.DiffsolveTable()
    assert node.INPUT_TYPES() == {"required": {"file": (["mine.json"],)}}
    made, sigmas = node.table("mine.json")
    mine = made.sampler_function(Host(False), 9 * X, sigmas, extra_args={"seed": 1}, callback=None, disable=True)
    torch.testing.assert_close(mine, k_diffusion.sampler("dpmpp-2m")(Host(False), 9 * X, sigmas, disable=True))


class Exact(Host):
    """Whose noise is that of Gaussian data at every sigma."""

    def pair(self, x, sigma):
        alpha = 1 - sigma if self.flow else 1.0
        return (0.5 + alpha * 0.5 / (0.5 * alpha**2 + sigma**2) * (x - alpha / 2),) * 2


@pytest.mark.parametrize("sampling", [DISCRETE, FLOW])
def test_the_unsampler_node_and_back(comfy, sampling):
    """To the noise and back again is the picture, to the accuracy of the steps."""
    flow = sampling is FLOW
    host = Exact(flow)
    model = model_of(sampling, host)
    sigmas = comfyui_models.sigmas_of(sampling, "uniform-u" if flow else "karras", 60)
    (sampler,) = comfyui_nodes.DiffsolveSampler().sampler("heun", "frame='straight'")
    picture = 0.5 + 0.7 * ds.Key(1).normal((2, 3, 4))
    given = {"samples": picture, "batch_index": [3]}
    node = comfyui_nodes.DiffsolveUnsampler()
    made, back = node.unsample(model, [], [], 1.5, sampler, sigmas, given)
    assert made["batch_index"] == [3]
    assert model.cfg == 1.5
    assert torch.equal(back, sigmas.clamp(max=node.MOST) if flow else sigmas)
    again = sampler.sampler_function(host, made["samples"], back, extra_args={}, callback=None, disable=True)
    assert float((again - picture).abs().max()) < 0.02
    assert float((made["samples"] - picture).abs().max()) > 0.2


def test_the_plan_node(comfy):
    node = comfyui_nodes.DiffsolvePlan()
    shown = node.plan(model_of(DISCRETE), "unipc-3", "", SIGMAS)
    (text,) = shown["result"]
    assert shown["ui"]["text"] == [text]
    model = ds.adapt(lambda x, t: x, ds.paths.EDM(float(SIGMAS[-2]), 9.0), "denoised")
    assert text == str(ds.plan(model, "unipc-3", grid=SIGMAS))
    with pytest.raises(ValueError, match="solver must be one that is planned before it is run"):
        node.plan(model_of(DISCRETE), "dpm_adaptive", "", SIGMAS)
    with pytest.raises(ValueError, match="sigmas must be two that differ, or more"):
        node.plan(model_of(DISCRETE), "ddim", "", SIGMAS[:1])


def test_the_extension_of_the_web_ui(monkeypatch):
    stand_in(monkeypatch, "modules")
    data = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])
    stand_in(monkeypatch, "modules.sd_samplers_common", SamplerData=data)
    stand_in(monkeypatch, "modules.sd_samplers_kdiffusion", KDiffusionSampler=lambda function, model: function)
    shown = []
    euler = data("Euler", None, [], {})
    samplers = stand_in(monkeypatch, "modules.sd_samplers", all_samplers=[euler], all_samplers_map={"Euler": euler})
    samplers.set_samplers = lambda: shown.append(len(samplers.all_samplers))
    spec = importlib.util.spec_from_file_location("extension", ROOT / "webui" / "scripts" / "diffsolve_samplers.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    listed = [one.name for one in samplers.all_samplers]
    assert listed == ["Euler", *(f"diffsolve {name}" for name in ds.solvers.names())]
    assert webui.register(["ddim(eta=1)", "unipc-3"]) == ["diffsolve ddim(eta=1)", "diffsolve unipc-3"]
    assert shown == [len(listed), len(listed) + 1]

    host = Host(False)
    function = samplers.all_samplers_map["diffsolve ddim(eta=1)"].constructor(None)
    host.p = SimpleNamespace(seeds=[7, 8])
    mine = function(host, X, sigmas=SIGMAS, extra_args={}, callback=None, disable=True)
    wanted = k_diffusion.sampler("ddim(eta=1)", seed=[7, 8])(host, X, SIGMAS, disable=True)
    assert torch.equal(mine, wanted)
    host.p = SimpleNamespace(seeds=[8, 7])
    assert not torch.equal(mine, function(host, X, sigmas=SIGMAS, extra_args={}, disable=True))


def test_what_forge_s_predictor_says():
    """Forge names the prediction in place of a class; A1111's denoiser is inside its guider."""
    for kind, learned in (("const", "velocity"), ("v_prediction", "v"), ("epsilon", "noise"), ("edm", "denoised")):
        predictor = SimpleNamespace(prediction_type=kind)
        unet = SimpleNamespace(model=SimpleNamespace(predictor=predictor))
        guider = SimpleNamespace(inner_model=SimpleNamespace(forge_objects=SimpleNamespace(unet=unet)))
        assert k_diffusion._learned(guider) == learned
        assert k_diffusion._flow(guider) == (kind == "const")
    inner = type("CompVisVDenoiser", (type("DiscreteVDDPMDenoiser", (), {}),), {})()
    assert k_diffusion._learned(SimpleNamespace(inner_model=inner)) == "v"
