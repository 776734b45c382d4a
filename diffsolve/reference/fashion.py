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
from diffsolve.reference.autoencoder import Autoencoder, Latent
from diffsolve.reference.unet import UNet

__all__ = ["RECIPES", "Recipe", "adapted", "load"]

KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object


def network() -> UNet:
    """The U-Net of the pixels, freshly initialised."""
    return UNet(1, 32, (1, 2), num_classes=10, patch=2)


def latent_network() -> Latent:
    """The U-Net of the latents with its autoencoder, freshly initialised."""
    return Latent(UNet(4, 48, (1,), blocks=2, num_classes=10), Autoencoder())


def thousandth(t: Tensor) -> Tensor:
    """t / 1000: the rows of a table of a thousand as times in [0, 1]."""
    return t / 1000


def quarter_log(sigma: Tensor) -> Tensor:
    """EDM's c_noise, log(sigma) / 4, of sigma from 0.002 to 80, moved into [0, 1]."""
    return (sigma.log() / 4 + 2) / 4


@dataclass(frozen=True)
class Recipe:
    """How a network was made."""

    path: str
    predicts: str
    build: Callable[[], nn.Module] = network
    clock: str | Clock = "t"
    steps: int = 5000
    batch: int = 32
    lr: float = 2e-3
    ema: float = 0.998
    objective: Mapping[str, Any] = field(default_factory=dict)
    """Options of `ds.training.objective`, besides those for labels."""


RECIPES = {
    "flow": Recipe("condot", "velocity", objective={"times": "logit-normal"}),
    "noise": Recipe("ddpm", "noise", clock=thousandth),
    "edm": Recipe("edm", "edm", clock=quarter_log, objective={"times": "log-normal"}),
    "latent": Recipe("condot", "velocity", latent_network, objective={"times": "logit-normal"}),
}
LABELS = {"drop": 0.1, "uncond": {"label": -1}}
"""Options of `ds.training.objective` for labels, of which a tenth is left out, as guidance needs."""


def adapted(objective: str, net: nn.Module) -> Model:
    """A network of a recipe as a model."""
    required(objective in RECIPES, "objective", objective, f"one of {', '.join(map(repr, RECIPES))}")
    recipe = RECIPES[objective]
    return adapt(net, recipe.path, recipe.predicts, clock=recipe.clock)


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
