r"""A small variational autoencoder of images, and a flow in its latent space.

The encoder makes a Gaussian :math:`q(z | x) = N(\mu(x), \mathrm{diag}(s(x)^2))` of a quarter of the numbers, the
decoder an image of it; they are trained together on

.. math:: |x - \hat x(z)|^2 / D + |x - \hat x(z)|_1 / D + \beta \, \mathrm{KL}(q(z | x) \,\|\, N(0, I)) / D

with a small :math:`\beta`, which only keeps the latent space bounded and smooth: the flow models its distribution.

References:
    | Auto-Encoding Variational Bayes (Kingma and Welling, 2013), https://arxiv.org/abs/1312.6114
    | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021),
      https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.models import Model
from diffsolve.noise import Key

__all__ = ["Autoencoder", "Latent", "loss"]

BETA = 1e-3
LOGVAR = (-12.0, 6.0)  # bounds of log s^2


class Residual(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        out: Tensor = x + self.layers(x)
        return out


class Autoencoder(nn.Module):
    """Images (B, C, H, W), with sides divisible by 4, and latents (B, `latents`, H / 4, W / 4) of about unit size.

    Args:
        in_channels: of the images.
        channels: at half the resolution; twice as many at a quarter of it.
        latents: channels of the latents.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, in_channels: int = 1, channels: int = 32, latents: int = 4) -> None:
        super().__init__()
        wide = 2 * channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * in_channels, channels, 3, padding=1), Residual(channels),
            nn.Conv2d(channels, wide, 4, stride=2, padding=1), Residual(wide),
            nn.GroupNorm(8, wide), nn.SiLU(), nn.Conv2d(wide, 2 * latents, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(latents, wide, 3, padding=1), Residual(wide), Residual(wide),
            nn.Conv2d(wide, 4 * channels, 3, padding=1), nn.PixelShuffle(2), Residual(channels),
            nn.GroupNorm(8, channels), nn.SiLU(), nn.Conv2d(channels, 4 * in_channels, 3, padding=1),
            nn.PixelShuffle(2),
        )  # fmt: skip
        # Set once it is trained (`measure`): what makes each channel of the means one of mean 0 and variance 1.
        self.register_buffer("shift", torch.zeros(latents))
        self.register_buffer("scale", torch.ones(latents))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """mu and s of q(z | x), before shift and scale."""
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, (logvar.clamp(*LOGVAR) / 2).exp()

    def encode(self, x: Tensor) -> Tensor:
        """The mean of the latents of images, of about unit size."""
        return (self.posterior(x)[0] - self.shift[:, None, None]) / self.scale[:, None, None]

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents of about unit size."""
        images: Tensor = self.decoder(z * self.scale[:, None, None] + self.shift[:, None, None])
        return images

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set shift and scale by the latents of these images."""
        means = torch.cat([self.posterior(chunk)[0] for chunk in torch.split(images, 500)])
        self.shift.copy_(means.mean((0, 2, 3)))
        self.scale.copy_(means.std((0, 2, 3)))


def loss(
    model: Model, x0: Tensor, *, cond: Any = None, seed: int = 0, step: int = 0, index: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss above, for `ds.training.fit(model, images, out, objective=loss)`.

    Args:
        model: whose network is an `Autoencoder`.
        x0: images.
        seed, step, index: what the draw of z depends on, as in `ds.training.objective`.

    Returns:
        (B,); and the reconstructions.
    """
    net = model.net
    assert isinstance(net, Autoencoder)
    mean, std = net.posterior(x0)
    z = mean + std * Key.of(seed, index).normal(mean.shape, row=step, device=mean.device, dtype=mean.dtype)
    again = net.decoder(z)
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).flatten(1).sum(1) / x0[0].numel()
    error = again - x0
    return error.square().flatten(1).mean(1) + error.abs().flatten(1).mean(1) + BETA * kl, again


class Latent(nn.Module):
    """A network on the latents of an autoencoder, together with it.

    The network of a model on latents: `ds.sample` makes latents of it, `decode` images of these. The autoencoder's
    parameters are frozen.
    """

    def __init__(self, body: nn.Module, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.body, self.autoencoder = body, autoencoder.requires_grad_(False)

    def forward(self, z: Tensor, *times: Tensor, **cond: Any) -> Tensor:
        """The network's output at latents."""
        out: Tensor = self.body(z, *times, **cond)
        return out

    def encode(self, x: Tensor) -> Tensor:
        """Latents of images."""
        return self.autoencoder.encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Images of latents."""
        return self.autoencoder.decode(z)
