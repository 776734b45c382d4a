r"""Networks of Fashion-MNIST: a flow, a noise prediction, an EDM network and a flow on latents, all class-conditional.

One U-Net of half a million parameters, whose first level works at 14 x 14 by taking squares of 2 x 2 pixels as
channels, with three paths and predictions, and a smaller one on 4 x 7 x 7 latents. `RECIPES` says how each was trained;
`diffsolve.training.fashion` runs a recipe.

References:
    | Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020), https://arxiv.org/abs/2006.11239
    | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022),
      https://arxiv.org/abs/2206.00364
    | High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021),
      https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import required
from diffsolve.common.files import match, read_tensors
from diffsolve.models import Model, adapt
from diffsolve.models.model import Clock
from diffsolve.paths import named as path_named
from diffsolve.reference.autoencoder import Autoencoder, Latent
from diffsolve.reference.unet import UNet

__all__ = ["RECIPES", "Recipe", "adapted", "load"]

KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object


def network() -> UNet:
    """The U-Net of the pixels, freshly initialised."""
    return UNet(1, 32, (1, 2), num_classes=10, patch=2)


def noise_network() -> Straightened:
    """The same, to predict the noise."""
    return Straightened(network())


def latent_network() -> Latent:
    """The U-Net of the latents with its autoencoder, freshly initialised."""
    return Latent(UNet(4, 48, (1,), blocks=2, num_classes=10), Autoencoder())


def straight(sigma: Tensor) -> Tensor:
    """1 / (1 + sigma): the time on the straight path at which data and noise are in this ratio, on the path "edm"."""
    return 1 / (1 + sigma)


def straight_of_row(t: Tensor) -> Tensor:
    """alpha / (alpha + sigma): the same on the table "ddpm"."""
    p = path_named("ddpm").at(t)
    return p.alpha / (p.alpha + p.sigma)


class Straightened(nn.Module):
    r"""A prediction of the noise by a network of the straight velocity inside.

    With :math:`\tau = \alpha / (\alpha + \sigma)` and :math:`\alpha^2 + \sigma^2 = 1` the state is
    :math:`z = x / (\alpha + \sigma) = \tau x_0 + (1 - \tau) \varepsilon`, and

    .. math:: \hat\varepsilon = z - \tau f(z, \tau), \qquad f \to x_0 - \varepsilon.

    A plain network's error of the noise is multiplied by 1 / alpha, up to 160, when the data are estimated of it, and
    short trainings leave much of it; this one's vanishes where alpha does, and it can begin with the weights of a flow.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, tau: Tensor, *until: Tensor, **cond: Any) -> Tensor:
        """The noise at x (B, C, H, W) and tau (B,)."""
        wide = tau[:, None, None, None].to(x.dtype)
        z = x * (wide**2 + (1 - wide) ** 2).sqrt()
        out: Tensor = z - wide * self.body(z, tau, *until, **cond)
        return out


@dataclass(frozen=True)
class Recipe:
    """How a network was made."""

    path: str
    predicts: str
    build: Callable[[], nn.Module] = network
    clock: str | Clock = "t"
    learned: str | None = None
    """What the network inside predicts, as far as its error is concerned: see `ds.adapt`."""
    steps: int = 5000
    batch: int = 32
    lr: float = 2e-3
    ema: float = 0.998
    objective: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ds.training.objective`, besides those for labels."""


RECIPES = {
    "flow": Recipe("condot", "velocity", steps=13000, batch=64, ema=0.999, objective={"times": "logit-normal"}),
    "noise": Recipe("ddpm", "noise", noise_network, clock=straight_of_row, learned="v", steps=500, lr=5e-4),
    "edm": Recipe("edm", "edm", clock=straight, steps=2600, lr=1.5e-3, objective={"times": "log-normal"}),
    "latent": Recipe("condot", "velocity", latent_network, steps=1600, objective={"times": "logit-normal"}),
}
LABELS = {"drop": 0.1, "uncond": {"label": -1}}
"""Options of `ds.training.objective` for labels, of which a tenth is left out, as guidance needs."""


def adapted(objective: str, net: nn.Module) -> Model:
    """A network of a recipe as a model."""
    required(objective in RECIPES, "objective", objective, f"one of {', '.join(map(repr, RECIPES))}")
    recipe = RECIPES[objective]
    return adapt(net, recipe.path, recipe.predicts, clock=recipe.clock, learned=recipe.learned)


def load(objective: str = "flow", path: str | Path | None = None) -> Model:
    """A trained network in float32, in evaluation mode, its parameters frozen.

    Args:
        objective: "flow", "noise", "edm" or "latent".
        path: a file of weights of its recipe; by default those in the package.

    Raises:
        ValueError: if there is no such objective, or the file is not of its network.
    """
    required(objective in RECIPES, "objective", objective, f"one of {', '.join(map(repr, RECIPES))}")
    packaged = resources.files(__package__) / "weights" / f"fashion-{objective}.safetensors"
    with resources.as_file(packaged) if path is None else nullcontext(Path(path)) as file:
        weights, _ = read_tensors(file, KEY)
    with torch.random.fork_rng(devices=[]):
        net = RECIPES[objective].build()
    match(file, weights, net.state_dict())
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return adapted(objective, net.eval().requires_grad_(False))
