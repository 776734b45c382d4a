r"""Linear operators A of observations y = A x_0 + noise, with their transposes.

An operator takes a batch of states (B, ...) to a batch of observations (B, ...), sample by sample. Its transpose is
autograd's unless a class knows a shorter way; `check_transpose` compares the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.guidance.base import dot
from diffsolve.models.derivative import pullback

__all__ = ["Blur", "Downscale", "Linear", "Mask", "Operator", "check_transpose"]


class Operator(ABC):
    """A linear A, applied to each sample of a batch. Immutable."""

    @property
    def gram(self) -> float | None:
        """c, if A A^T is c times the identity on all that A x may be; None if it is not, or not known."""
        return None

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x of states (B, ...)."""

    def transpose(self, y: Tensor, like: Tensor) -> Tensor:
        """A^T y, of the shape of the states `like`."""
        return pullback(self.__call__, torch.zeros_like(like), "where an operator is given without its transpose")[1](y)


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """Any linear function of a batch: a projection, a Fourier transform's real part, a renderer.

        A = ds.conditioning.Linear(lambda x: x @ matrix.T)

    Args:
        forward: (B, ...) -> (B, ...), linear and sample by sample, with a derivative.
        backward: its transpose, where it is cheaper than autograd's, or `forward` has no derivative.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        required(callable(self.forward), "forward", self.forward, "a linear function of a batch", TypeError)
        fits = self.backward is None or callable(self.backward)
        required(fits, "backward", self.backward, "the transpose of forward, a function of a batch", TypeError)

    def __call__(self, x: Tensor) -> Tensor:
        """A x."""
        return self.forward(x)

    def transpose(self, y: Tensor, like: Tensor) -> Tensor:
        """A^T y."""
        return super().transpose(y, like) if self.backward is None else self.backward(y)


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """What is known of an image: A x = mask x, zero where nothing is known.

    Args:
        mask: ones (known) and zeros, or booleans, of the shape of one sample or one that expands to it, as (H, W).
    """

    mask: Tensor

    def __post_init__(self) -> None:
        instance("mask", self.mask, Tensor, "a tensor")
        flags = bool(((self.mask == 0) | (self.mask == 1)).all())
        required(flags, "mask", self.mask, "of ones, where a sample is known, and zeros")

    @property
    def gram(self) -> float:
        """1."""
        return 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """mask x."""
        return x * self.mask.to(x)

    def transpose(self, y: Tensor, like: Tensor) -> Tensor:
        """mask y: it is its own transpose."""
        return self(y)


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """Convolution of each channel of images (B, C, H, W) with one kernel, zeros beyond the border.

    Args:
        kernel: (h, w), both odd; it is applied as `conv2d` does, unflipped.
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        instance("kernel", self.kernel, Tensor, "a tensor")
        odd = self.kernel.dim() == 2 and all(size % 2 for size in self.kernel.shape)
        required(odd, "kernel", self.kernel, "of shape (h, w), both odd")

    def __call__(self, x: Tensor) -> Tensor:
        """The blurred images."""
        required(x.dim() == 4, "shape", tuple(x.shape), "(B, C, H, W), for a blur")
        high, wide = self.kernel.shape
        kernel = self.kernel.to(x).expand(x.shape[1], 1, high, wide)
        return F.conv2d(x, kernel, padding=(high // 2, wide // 2), groups=x.shape[1])


@dataclass(frozen=True)
class Downscale(Operator):
    """Means of blocks of pixels, whose inverse problem is super-resolution: (B, C, H, W) -> (B, C, H/f, W/f).

    Args:
        factor: f, by which both sides can be divided.
    """

    factor: int

    def __post_init__(self) -> None:
        integer("factor", self.factor, 1)

    @property
    def gram(self) -> float:
        """1 / f^2."""
        return 1 / self.factor**2

    def __call__(self, x: Tensor) -> Tensor:
        """The smaller images."""
        fits = x.dim() == 4 and not (x.shape[2] % self.factor or x.shape[3] % self.factor)
        required(fits, "shape", tuple(x.shape), f"(B, C, H, W) with sides that {self.factor} divides")
        return F.avg_pool2d(x, self.factor)


def check_transpose(operator: Operator, like: Tensor, tolerance: float = 1e-4) -> None:
    """Check on random numbers that the transpose is one: (A x) . y = x . (A^T y).

    Args:
        like: states (B, ...), for their shape, dtype and device.
        tolerance: of the difference, relative to the size of the terms.

    Raises:
        ValueError: if it is not.
    """
    generator = torch.Generator(like.device).manual_seed(0)

    def normal(of: Tensor) -> Tensor:
        return torch.randn(of.shape, generator=generator, dtype=of.dtype, device=of.device)

    x = normal(like)
    forward = operator(x)
    y = normal(forward)
    back = operator.transpose(y, x)
    required(back.shape == x.shape, "transpose", back, f"of the shape of the states, {tuple(x.shape)}")
    apart = (dot(forward, y) - dot(x, back)).abs()
    size = (dot(forward, forward) * dot(y, y)).sqrt() + (dot(x, x) * dot(back, back)).sqrt()
    worst = float((apart / size.clamp(min=torch.finfo(torch.float64).tiny)).detach().max())
    required(worst <= tolerance, "transpose", worst, "that of forward: (A x) . y - x . (A^T y), relative, of 0")
