"""Whole pipelines of several families, small and untrained: with the same method the images are the host's."""

import pytest
import torch
from support import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PAIRS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, "ddim"),
    "dpm": ("DPMSolverMultistepScheduler", {}, "dpmpp-2m(lower_final=15)"),
    "dpm3": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, "dpmpp-3m(lower_final=15)"),
    "unipc": ("UniPCMultistepScheduler", {}, "unipc-2"),
    "v": ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, "dpmpp-2m(lower_final=15)"),
}


@pytest.fixture(scope="module")
def kind(df):
    from diffsolve.integrations.diffusers import Scheduler

    torch.manual_seed(0)
    return Scheduler


def conditional(df, in_channels=4):
    return df.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=in_channels, out_channels=4,
        norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def same(make, host, solver, kind, call, bound=1e-5):
    """The latents of both schedulers, relative to the largest."""
    results = []
    for mine in (False, True):
        pipe = make(kind(host(), solver) if mine else host())
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            results.append(call(pipe, torch.Generator().manual_seed(0)))
    theirs, ours = (torch.as_tensor(result).double() for result in results)
    assert float(theirs.std()) > 1e-3
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < bound


EMBEDS = {
    "prompt_embeds": torch.linspace(-1, 1, 4 * 8).view(1, 4, 8),
    "negative_prompt_embeds": torch.linspace(1, -1, 4 * 8).view(1, 4, 8),
}


def guided(scheduler, net, latents, image=None, mask=None, strength=1.0):
    """What Stable Diffusion's pipelines do between encoders and decoder: from noise, from an image, inpainting."""
    both = torch.cat([EMBEDS["negative_prompt_embeds"], EMBEDS["prompt_embeds"]])
    scheduler.set_timesteps(10)
    skipped = 10 - min(int(10 * strength), 10)
    timesteps = scheduler.timesteps[skipped * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    x = latents if image is None else scheduler.add_noise(image, latents, timesteps[:1])
    for i, t in enumerate(timesteps):
        given = scheduler.scale_model_input(torch.cat([x, x]), t)
        uncond, cond = net(given, t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
        x = scheduler.step(uncond + 3.0 * (cond - uncond), t, x, return_dict=False)[0]
        if mask is not None:
            kept = image
            if i + 1 < len(timesteps):
                kept = scheduler.add_noise(image, latents, timesteps[i + 1 : i + 2])
            x = (1 - mask) * kept + mask * x
    return x


@pytest.mark.parametrize("pair", list(PAIRS))
@pytest.mark.parametrize("name", ["text", "image", "inpaint"])
def test_guided(df, kind, name, pair):
    host, options, solver = PAIRS[pair]
    torch.manual_seed(1)
    net, latents, image = conditional(df), torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16) * 0.4
    mask = torch.ones(1, 1, 16, 16)
    mask[..., :8] = 0
    given = {"text": {}, "image": {"image": image, "strength": 0.6}, "inpaint": {"image": image, "mask": mask}}[name]
    with torch.no_grad():
        theirs = guided(getattr(df, host)(**SCALED, **options), net, latents, **given)
        ours = guided(kind(getattr(df, host)(**SCALED, **options), solver), net, latents, **given)
    assert float(theirs.std()) > 0.1
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


def unconditional(df):
    return df.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("host", "options", "solver"),
    [
        ("DDIMScheduler", {}, "ddim"),
        ("DDIMScheduler", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True,
                           "prediction_type": "v_prediction"}, "ddim"),
        ("DDIMScheduler", {"prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5}, "ddim"),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, "dpmpp-2m(lower_final=15)"),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "beta_schedule": "squaredcos_cap_v2"},
         "dpmpp-2m(lower_final=15)"),
    ],
)  # fmt: skip
def test_unconditional(df, kind, host, options, solver):
    torch.manual_seed(2)
    net = unconditional(df)

    def call(pipe, g):
        return pipe(batch_size=2, generator=g, num_inference_steps=10, output_type="np").images

    # The first step divides by alpha = .006, the float32 rounding of the host's table with it.
    made = lambda: getattr(df, host)(**options)  # noqa: E731
    same(lambda scheduler: df.DDPMPipeline(net, scheduler), made, solver, kind, call, bound=3e-5)


def test_dit(df, kind):
    net = tiny.dit(df, 3)
    decoder = tiny.vae(df)

    def call(pipe, g):
        return pipe([1, 7], guidance_scale=3.0, generator=g, num_inference_steps=8, output_type="np").images

    for host, solver in (("DDIMScheduler", "ddim"), ("DPMSolverMultistepScheduler", "dpmpp-2m(lower_final=15)")):
        options = {"clip_sample": False} if host.startswith("DDIM") else {}
        same(
            lambda scheduler: df.DiTPipeline(net, decoder, scheduler),
            lambda host=host, options=options: getattr(df, host)(**options),
            solver,
            kind,
            call,
        )


@pytest.mark.parametrize("kinds", [("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, "euler"),
                                   ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0,
                                                                "prediction_type": "flow_prediction"}, "unipc-2"),
                                   ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0,
                                                                    "prediction_type": "flow_prediction"},
                                    "dpmpp-2m(lower_final=15)")])  # fmt: skip
def test_a_video_of_a_flow(df, kind, kinds):
    """Wan's, with the embeddings of a prompt."""
    host, options, solver = kinds
    torch.manual_seed(4)
    net = df.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(net.proj_out.weight, std=0.2)
    results = []
    for mine in (False, True):
        scheduler = getattr(df, host)(**options)
        scheduler = kind(scheduler, solver) if mine else scheduler
        scheduler.set_timesteps(8)
        x = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for i, t in enumerate(scheduler.timesteps):
                assert float(scheduler.sigmas[i]) > float(scheduler.sigmas[i + 1])  # as that pipeline reads them
                out = net(x, t.expand(1), EMBEDS["prompt_embeds"], return_dict=False)[0]
                x = scheduler.step(out, t, x, return_dict=False)[0]
        results.append(x)
    assert float((results[1] - results[0]).abs().max() / results[0].abs().max()) < 1e-5


def test_stable_video_s_scheduler(df, kind):
    """v along the angle with the clock c_noise, its state in units of 1 / alpha there."""
    options = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True,
               "sigma_min": 0.002, "sigma_max": 700.0}  # fmt: skip
    torch.manual_seed(5)
    net = unconditional(df)
    theirs, ours = df.EulerDiscreteScheduler(**options), kind(df.EulerDiscreteScheduler(**options), "ddim")
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-4, atol=1e-5)
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x, y = noise * float(theirs.init_noise_sigma), noise
    with torch.no_grad():
        for s, t in zip(theirs.timesteps, ours.timesteps, strict=True):
            x = theirs.step(net(theirs.scale_model_input(x, s), s).sample, s, x).prev_sample
            y = ours.step(net(ours.scale_model_input(y, t), s).sample, t, y).prev_sample
    assert float((x - y).abs().max() / x.abs().max()) < 1e-4
