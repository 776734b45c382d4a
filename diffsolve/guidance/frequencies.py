"""A rule with a scale for each band of frequencies of an image.

References:
    | Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales (Sadat et al., 2025),
      https://arxiv.org/abs/2506.19713
    | The Laplacian Pyramid as a Compact Image Code (Burt and Adelson, 1983)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsolve.common.checks import number, required
from diffsolve.guidance.base import Rule, Scale, dot, scaled

__all__ = ["FrequencyDecoupled"]

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class FrequencyDecoupled(Rule):
    """FDG: classifier-free guidance in each level of a Laplacian pyramid, with a scale of its own (2506.19713, alg. 2).

    Args:
        factors: on the scale, from the finest level to the coarsest; (1, 0.5) halves it for low frequencies.
        parallel: of each level's difference, the factor on what is parallel to c; 1 is plain. A number or one a level.

    Raises:
        ValueError: if there are fewer than two factors, or another number of `parallel`; in a run, for samples that
            are no images (B, C, H, W), or too small for the levels.
    """

    factors: Sequence[float] = (1.0, 0.5)
    parallel: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        factors = tuple(number("factors", value) for value in self.factors)
        required(len(factors) >= 2, "factors", self.factors, "at least two numbers, one for each level")
        given = [self.parallel] * len(factors) if isinstance(self.parallel, int | float) else self.parallel
        parallel = tuple(number("parallel", value) for value in given)
        required(len(parallel) == len(factors), "parallel", self.parallel, f"a number, or {len(factors)} of them")
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "parallel", parallel)

    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output."""
        levels = len(self.factors)
        fits = c.dim() == 4 and min(c.shape[2:]) >= 3 * 2 ** (levels - 1)
        accepted = f"(B, C, H, W), an image that can be halved {levels - 1} times, for fdg"
        required(fits, "shape", tuple(c.shape), accepted)
        w, image = scaled(scale, c), None
        pyramids = zip(self.factors, self._parallel, pyramid(c, levels), pyramid(u, levels), strict=True)
        for factor, parallel, fine, base in reversed(list(pyramids)):
            change = fine - base
            if parallel != 1:
                along = (dot(change, fine) / dot(fine, fine).clamp(min=1e-300)).to(c.dtype) * fine
                change = change + (parallel - 1) * along
            level = base + factor * w * change
            image = level if image is None else level + _larger(image, level)
        assert image is not None
        return image

    @property
    def _parallel(self) -> Sequence[float]:
        assert not isinstance(self.parallel, int | float)
        return self.parallel


def pyramid(x: Tensor, levels: int) -> list[Tensor]:
    """The Laplacian pyramid of images (B, C, H, W), the finest level first: x is the sum of the enlarged levels."""
    made = []
    for _ in range(levels - 1):
        small = F.interpolate(_blurred(x), (x.shape[2] // 2, x.shape[3] // 2), mode="bilinear", align_corners=False)
        made.append(x - _larger(small, x))
        x = small
    return [*made, x]


def _larger(x: Tensor, like: Tensor) -> Tensor:
    """Enlarged to the size of `like`, and blurred."""
    return _blurred(F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False))


def _blurred(x: Tensor) -> Tensor:
    """Binomial blur, 5 by 5, with reflected borders."""
    line = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device)
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])
