"""A small diffusion transformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsolve.common.checks import integer, required
from diffsolve.reference.embedding import Conditioned, zero

__all__ = ["DiT"]


class Block(nn.Module):
    """Attention and two dense layers, each scaled, shifted and gated by the embedding; the identity at first."""

    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.Linear(width, ratio * width), nn.GELU(approximate="tanh"), nn.Linear(ratio * width, width)
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, N, width), embedding (B, width): the shape of x."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(embedding)[:, None].chunk(6, dim=2)
        x = x + gate1 * self.attend(torch.addcmul(shift1, self.norm(x), 1 + scale1))
        out: Tensor = x + gate2 * self.dense(torch.addcmul(shift2, self.norm(x), 1 + scale2))
        return out

    def attend(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, width))
        return out


class DiT(Conditioned):
    r"""A class-conditional transformer :math:`f(x, t, s, y)` over squares of pixels, with an output like `x`.

    adaLN-zero: in each block the embedding of times and label gives the scale and shift after both norms and the gates
    of both branches, and is zero at first, so that the blocks begin as the identity and the output as zero. Positions
    are fixed cosines and sines of row and column, so that images of any size go in.

    Args:
        in_channels: Channels of the images, in and out.
        width: Numbers of each token, a multiple of 4 and of `heads`.
        depth: Blocks.
        patch: Pixels to a side of a token.
        num_classes: Number of classes; 0 makes the network unconditional.
        heads: Attention heads.
        ratio: Width of the dense layers inside a block, in units of `width`.
        times: 1, or 2 for a flow map that is told where to go.

    References:
        | Scalable Diffusion Models with Transformers (Peebles and Xie, 2022), https://arxiv.org/abs/2212.09748
    """

    def __init__(
        self,
        in_channels: int = 1,
        width: int = 128,
        depth: int = 6,
        *,
        patch: int = 2,
        num_classes: int = 0,
        heads: int = 4,
        ratio: int = 4,
        times: int = 1,
    ) -> None:
        super().__init__()
        required(width % 4 == 0 and width % heads == 0, "width", width, f"a multiple of 4 and of {heads} heads")
        self.patch, self.width = integer("patch", patch, 1), width
        self.embed_with(width, width, num_classes, times)
        self.stem = nn.Linear(in_channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(width, heads, ratio) for _ in range(integer("depth", depth, 1)))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = zero(nn.Linear(width, 2 * width))
        self.head = zero(nn.Linear(width, in_channels * patch**2))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to the same shape, as `Conditioned.forward` says.

        Raises:
            ValueError: if the sides of the images are not divisible by `patch`.
        """
        rows, columns = (side // self.patch for side in x.shape[-2:])
        fits = x.shape[-2] == rows * self.patch and x.shape[-1] == columns * self.patch
        required(fits, "x", tuple(x.shape), f"with sides divisible by {self.patch}")
        embedding = self.embed(t, s, label)
        tokens = F.pixel_unshuffle(x, self.patch).flatten(2).mT
        h = self.stem(tokens) + _positions(rows, columns, self.width).to(x)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulate(embedding)[:, None].chunk(2, dim=2)
        out = self.head(torch.addcmul(shift, self.norm(h), 1 + scale))
        return F.pixel_shuffle(out.mT.unflatten(2, (rows, columns)), self.patch)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width): cosines and sines of the row in the first half, of the column in the second."""
    frequencies = torch.exp(torch.arange(width // 4) * (-math.log(10000.0) / (width // 4)))
    lines = [torch.arange(n)[:, None] * frequencies for n in (rows, columns)]
    down, across = (torch.cat([line.cos(), line.sin()], 1) for line in lines)
    down, across = down[:, None].expand(-1, columns, -1), across.expand(rows, -1, -1)
    return torch.cat([down, across], 2).flatten(0, 1)
