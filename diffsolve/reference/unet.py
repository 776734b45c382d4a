"""A small class-conditional U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsolve.common.checks import integer
from diffsolve.reference.embedding import Conditioned, zero

__all__ = ["UNet"]


class Block(nn.Module):
    """Two convolutions with a residual connection; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x` of shape (B, inputs, H, W), `embedding` of shape (B, embedding): (B, outputs, H, W)."""
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(3, 4).unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, h, w)
        out: Tensor = x + self.out(mixed)
        return out


class UNet(Conditioned):
    r"""A class-conditional U-Net :math:`f(x, t, s, y)` with an output like `x`.

    Level `i` works at :math:`1 / 2^i` of the resolution with `channels * multipliers[i]` channels and
    has `blocks` residual blocks in the encoder and `blocks` in the decoder; there is one self-attention
    layer, between two more blocks at the lowest resolution. The output layer is initialised to zero.

    Args:
        in_channels: Channels of the images, in and out.
        channels: Channels of the first level, even and a multiple of `groups`.
        multipliers: One factor for each level.
        blocks: Residual blocks of each level, in the encoder and in the decoder.
        num_classes: Number of classes; 0 makes the network unconditional.
        heads: Attention heads.
        groups: Groups of every group normalisation.
        dropout: Probability of dropping an activation inside each block while training.
        patch: Pixels to a side of the squares that become channels before the first level, and pixels again at the end:
            a network of `patch` 2 has its first level at half the resolution, at a quarter of the cost.
        times: 1, or 2 for a flow map that is told where to go.
        highest: The highest frequency, in radians, at which it is told the time.
        until: That at which it is told where to go; by default the same.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
        | Diffusion Models Beat GANs on Image Synthesis (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2),
        *,
        blocks: int = 1,
        num_classes: int = 0,
        heads: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
        patch: int = 1,
        times: int = 1,
        highest: float = 100.0,
        until: float | None = None,
    ) -> None:
        super().__init__()
        self.patch = integer("patch", patch, 1)
        self.stride = patch * 2 ** (len(multipliers) - 1)
        width = 4 * channels
        self.embed_with(channels, width, num_classes, times, highest, until)

        widths = [channels * m for m in multipliers]
        self.stem = nn.Conv2d(in_channels * patch**2, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        c, skips = channels, []
        for level, size in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
            for _ in range(blocks):
                self.down.append(Block(c, size, width, groups, dropout))
                c = size
                skips.append(c)
        self.middle1 = Block(c, c, width, groups, dropout)
        self.attention = Attention(c, heads, groups)
        self.middle2 = Block(c, c, width, groups, dropout)
        for level, size in reversed(list(enumerate(widths))):
            for _ in range(blocks):
                self.up.append(Block(c + skips.pop(), size, width, groups, dropout))
                c = size
            if level > 0:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c, 3, padding=1)))
        last = zero(nn.Conv2d(c, in_channels * patch**2, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(groups, c), nn.SiLU(), last)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to the same shape, as `Conditioned.forward` says.

        Raises:
            ValueError: if the sides of the images are not divisible by the network's stride.
        """
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"x must have sides divisible by {self.stride}, got {tuple(x.shape)}")
        embedding = self.embed(t, s, label)

        h, skips = self.stem(x if self.patch == 1 else F.pixel_unshuffle(x, self.patch)), []
        for layer in self.down:
            if isinstance(layer, Block):
                h = layer(h, embedding)
                skips.append(h)
            else:
                h = layer(h)
        h = self.middle2(self.attention(self.middle1(h, embedding)), embedding)
        for layer in self.up:
            h = layer(torch.cat([h, skips.pop()], 1), embedding) if isinstance(layer, Block) else layer(h)
        out: Tensor = self.head(h)
        return out if self.patch == 1 else F.pixel_shuffle(out, self.patch)
