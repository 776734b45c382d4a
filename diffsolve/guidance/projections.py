r"""Rules that project one output onto the other.

References:
    | Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models (Sadat et al., 2024),
      https://arxiv.org/abs/2410.02416 (APG)
    | CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models (Fan et al., 2025),
      https://arxiv.org/abs/2503.18886
    | TCFG: Tangential Damping Classifier-free Guidance (Kwon et al., 2025), https://arxiv.org/abs/2503.18137
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import choice, integer, number
from diffsolve.guidance.base import Rule, Scale, dot, scaled

__all__ = ["AdaptiveProjected", "Tangential", "ZeroStar"]


@dataclass(frozen=True)
class AdaptiveProjected(Rule):
    r"""APG: the part of the difference along c, which oversaturates, is taken less, and its size is bounded.

    .. math::
        \Delta = (c - u) + \beta \Delta_{before}, \quad
        \Delta \leftarrow \min(1, r / |\Delta|) \Delta, \quad
        \Delta \leftarrow \Delta_\perp + \eta \Delta_\parallel, \qquad c + (w - 1) \Delta

    with the parts orthogonal and parallel to c, sample by sample (2410.02416, section 4 and algorithm 1). The paper
    projects denoised predictions, as a network has them that predicts the denoised.

    Args:
        eta: the share of the parallel part; 1 keeps it.
        momentum: beta, negative to damp; 0 carries nothing from call to call.
        threshold: r; 0 for no bound.
        base: what the difference is added to: "cond" as above, or "uncond" for u + w Delta.
        after: calls 0 to `after` have classifier-free guidance, those beyond it APG; None for APG in all.
        scale: the scale of APG, if it is not that of the Guidance, which is then that of the calls before.
    """

    eta: float = 0.0
    momentum: float = 0.0
    threshold: float = 0.0
    base: str = "cond"
    after: int | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        number("eta", self.eta)
        number("momentum", self.momentum, above=-1, below=1)
        number("threshold", self.threshold, low=0)
        choice("base", self.base, ("cond", "uncond"))
        if self.after is not None:
            integer("after", self.after, 0)
        if self.scale is not None:
            number("scale", self.scale)

    @property
    def by_call(self) -> bool:
        """Whether the first calls have another rule."""
        return self.after is not None

    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output."""
        if self.after is not None and call <= self.after:
            return u + scaled(scale, c) * (c - u)
        w = scaled(scale if self.scale is None else self.scale, c)
        wide = difference.double()
        if self.threshold:
            size = dot(difference, difference).sqrt()
            wide = wide * torch.where(size > self.threshold, self.threshold / size, 1.0)
        # Of a c of zero there is no direction, and nothing lies along it.
        along = dot(wide, c) / dot(c, c).clamp(min=torch.finfo(torch.float64).tiny) * c.double()
        change = (wide - along + self.eta * along).to(c.dtype)
        return c + (w - 1) * change if self.base == "cond" else u + w * change


@dataclass(frozen=True)
class ZeroStar(Rule):
    r"""CFG-Zero*: u is scaled to fit c before it is left, :math:`s u + w (c - s u)` with
    :math:`s = c \cdot u / |u|^2` of each sample (2503.18886, eq. 9), and the first calls give zero.

    Args:
        zero: so many calls give an output of zero, at which a flow stands still (section 3.3).
    """

    zero: int = 1

    def __post_init__(self) -> None:
        integer("zero", self.zero, 0)

    @property
    def forced(self) -> int:  # type: ignore[override]
        """The calls that give zero."""
        return self.zero

    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output."""
        if call < self.zero:
            return torch.zeros_like(c)
        fit = (dot(c, u) / (dot(u, u) + 1e-8)).to(c.dtype) * u
        return fit + scaled(scale, c) * (c - fit)


@dataclass(frozen=True)
class Tangential(Rule):
    """TCFG: u is projected onto the first right singular vector v of the two outputs as rows, v (v . u), and what is
    tangential to it is dropped; then classifier-free guidance (2503.18137, section 4.2)."""

    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output."""
        cc, cu, uu = dot(c, c), dot(c, u), dot(u, u)
        # v = a c + b u, with (a, b) the first eigenvector of the rows' Gram matrix.
        angle = torch.atan2(2 * cu, cc - uu) / 2
        a, b = angle.cos(), angle.sin()
        v = a * c.double() + b * u.double()
        kept = (dot(v, u) / dot(v, v).clamp(min=torch.finfo(torch.float64).tiny) * v).to(c.dtype)
        return kept + scaled(scale, c) * (c - kept)
