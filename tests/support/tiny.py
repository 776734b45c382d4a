"""diffusers' models, as small as they go, with random weights."""

from typing import Any

import torch


def dit(df: Any, seed: int) -> Any:
    """A transformer of labelled images with a learned variance, whose output is not zero."""
    torch.manual_seed(seed)
    net = df.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, norm_num_groups=4, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(net.proj_out_2.weight, std=0.1)
    return net


def vae(df: Any, channels: int = 4) -> Any:
    """A decoder of images."""
    return df.AutoencoderKL(
        block_out_channels=(8,), latent_channels=channels, norm_num_groups=2, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    ).eval()  # fmt: skip
