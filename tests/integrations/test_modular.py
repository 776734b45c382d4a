# ruff: noqa: RUF012  (as diffusers has its blocks)
"""diffusers' modular pipelines and their guiders around our Scheduler, with a small untrained network.

Blocks of our own, with what those of Stable Diffusion XL do between text and pictures; its own where transformers is
installed, which they import.
"""

import importlib.util

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PAIRS = {
    "dpm": ("DPMSolverMultistepScheduler", "dpmpp-2m(lower_final=15)"),
    "ddim": ("DDIMScheduler", "ddim"),
    "unipc": ("UniPCMultistepScheduler", "unipc-2"),
}
EMBEDS = {
    f"{prefix}prompt_embeds": sign * torch.linspace(-1, 1, 2 * 4 * 8).view(2, 4, 8)
    for prefix, sign in (("", 1), ("negative_", -1))
}


def own_blocks(df):
    """Set the timesteps, then ask the guider, the network and the scheduler at each of them."""
    from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
    from diffusers.modular_pipelines.modular_pipeline_utils import ComponentSpec, InputParam, OutputParam

    class SetTimesteps(ModularPipelineBlocks):
        expected_components = [ComponentSpec("scheduler", df.DDIMScheduler)]
        inputs = [InputParam("num_inference_steps")]
        intermediate_outputs = [OutputParam("timesteps")]

        def __call__(self, components, state):
            block = self.get_block_state(state)
            components.scheduler.set_timesteps(block.num_inference_steps)
            block.timesteps = components.scheduler.timesteps
            self.set_block_state(state, block)
            return components, state

    class Denoise(ModularPipelineBlocks):
        expected_components = [
            ComponentSpec("scheduler", df.DDIMScheduler),
            ComponentSpec("unet", df.UNet2DConditionModel),
            ComponentSpec("guider", df.ClassifierFreeGuidance),
        ]
        names = ["latents", "timesteps", "num_inference_steps", *EMBEDS]
        inputs = [InputParam(name) for name in names]
        intermediate_outputs = [OutputParam("latents")]

        @torch.no_grad()
        def __call__(self, components, state):
            block, guider = self.get_block_state(state), components.guider
            given = {"prompt_embeds": (block.prompt_embeds, block.negative_prompt_embeds)}
            for i, t in enumerate(block.timesteps):
                guider.set_state(step=i, num_inference_steps=block.num_inference_steps, timestep=t)
                batches = guider.prepare_inputs(given)
                x = components.scheduler.scale_model_input(block.latents, t)
                for batch in batches:
                    guider.prepare_models(components.unet)
                    batch.noise_pred = components.unet(x, t, batch.prompt_embeds, return_dict=False)[0]
                    guider.cleanup_models(components.unet)
                out = guider(batches)[0]
                block.latents = components.scheduler.step(out, t, block.latents, return_dict=False)[0]
            self.set_block_state(state, block)
            return components, state

    return SequentialPipelineBlocks.from_blocks_dict({"set_timesteps": SetTimesteps(), "denoise": Denoise()})


def their_blocks(df):
    from diffusers.modular_pipelines import SequentialPipelineBlocks
    from diffusers.modular_pipelines.stable_diffusion_xl import before_denoise, denoise

    named = {
        "set_timesteps": before_denoise.StableDiffusionXLSetTimestepsStep(),
        "denoise": denoise.StableDiffusionXLDenoiseStep(),
    }
    return SequentialPipelineBlocks.from_blocks_dict(named)


@pytest.fixture(scope="module", params=["own", "sdxl"])
def pipeline(df, request):
    """run(scheduler, guider) -> latents."""
    sdxl = request.param == "sdxl"
    if sdxl and not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed")
    torch.manual_seed(0)
    more = {
        "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": 32,
    }  # fmt: skip
    net = df.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **(more if sdxl else {}),
    ).eval()  # fmt: skip
    blocks, given = their_blocks(df) if sdxl else own_blocks(df), dict(EMBEDS)
    if sdxl:
        for prefix in ("", "negative_"):
            given[f"{prefix}pooled_prompt_embeds"] = EMBEDS[f"{prefix}prompt_embeds"][:, 0]
            given[f"{prefix}add_time_ids"] = torch.full((2, 6), 8.0)
        given = {"denoiser_input_fields": given}
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(scheduler, guider):
        pipe = blocks.init_pipeline()
        pipe.update_components(unet=net, scheduler=scheduler, guider=guider)
        return pipe(latents=latents, num_inference_steps=8, output="latents", **given)

    return run


def guiders(df):
    yield "none", df.ClassifierFreeGuidance(guidance_scale=1.0)
    yield "cfg", df.ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.3)
    yield "zero", df.ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=1)
    yield "apg", df.AdaptiveProjectedGuidance(guidance_scale=3.0)
    yield "tcfg", df.TangentialClassifierFreeGuidance(guidance_scale=3.0)


@pytest.mark.parametrize("pair", list(PAIRS))
def test_with_the_same_method_the_latents_are_the_host_s(df, pipeline, pair):
    """Whatever guides."""
    from diffsolve.integrations.diffusers import Scheduler

    name, solver = PAIRS[pair]
    options = {**SCALED, "clip_sample": False} if name == "DDIMScheduler" else SCALED
    results = {}
    for kind, guider in guiders(df):
        theirs = pipeline(getattr(df, name)(**options), guider)
        ours = pipeline(Scheduler(getattr(df, name)(**options), solver), guider)
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5, kind
        results[kind] = ours
    for kind, one in results.items():
        assert not any(torch.allclose(one, other) for name, other in results.items() if name != kind), kind


def test_a_solver_that_no_host_has(df, pipeline):
    from diffsolve.integrations.diffusers import Scheduler

    for solver in ("auto", "rk4", "sa-3", "res-3m"):
        scheduler = Scheduler(df.EulerDiscreteScheduler(**SCALED), solver, grid="karras", seed=0)
        assert pipeline(scheduler, df.ClassifierFreeGuidance(guidance_scale=2.0)).isfinite().all(), solver
