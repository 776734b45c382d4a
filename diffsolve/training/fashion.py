"""Training of the reference networks of Fashion-MNIST: `fit` with the options that `reference.fashion.RECIPES` has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import required
from diffsolve.common.files import match, read_tensors
from diffsolve.models import adapt
from diffsolve.reference import autoencoder as autoencoders
from diffsolve.reference import fashion
from diffsolve.reference.autoencoder import Autoencoder, Latent
from diffsolve.reference.data import fashion as fashion_data
from diffsolve.reference.fashion import Straightened
from diffsolve.training.fit import fit

__all__ = ["train"]

AUTOENCODER = {"steps": 1200, "batch": 32, "lr": 2e-3, "ema": 0.998}
OBJECTIVES = (*fashion.RECIPES, "autoencoder")


def train(
    objective: str,
    out: str | Path,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    autoencoder: str | Path | None = None,
    start: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train a reference network of Fashion-MNIST on the CPU, in about half an hour of one core, and write its weights.

    Args:
        objective: "flow", "noise", "edm", "latent" or "autoencoder".
        out: the file, in float16.
        seed: of the initial weights and of the training.
        folder: where the images are, as in `diffsolve.reference.data.fashion`.
        autoencoder: for "latent", a file that was trained as "autoencoder"; by default the one in the package.
        start: a file of another objective's weights to begin with, in place of random ones.
        options: of `ds.training.fit`, in place of the recipe's.

    Returns:
        The report of `fit`.

    Raises:
        ValueError: if there is no such objective, or the autoencoder is not of its network or not of use.
        FileNotFoundError: if the data are not there.
    """
    required(objective in OBJECTIVES, "objective", objective, f"one of {', '.join(map(repr, OBJECTIVES))}")
    alone = autoencoder is None or objective == "latent"
    required(alone, "autoencoder", autoencoder, "None but for objective='latent'")
    images, labels = fashion_data("train", folder)
    fixed: dict[str, Any] = {"seed": seed, "dtype": torch.float16}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if objective == "autoencoder":
            return _train_autoencoder(images, out, {**AUTOENCODER, **fixed, **options})
        recipe = fashion.RECIPES[objective]
        net = recipe.build()
    if start is not None:
        inside = net.body if isinstance(net, Straightened | Latent) else net
        _fill(inside, start)
    data = images
    if isinstance(net, Latent):
        if autoencoder is None:
            net.autoencoder.load_state_dict(fashion.load("latent").net.autoencoder.state_dict())  # type: ignore[attr-defined]
        else:
            _fill(net.autoencoder, autoencoder)
            net.autoencoder.measure(images[:10_000])
        with torch.no_grad():
            data = torch.cat([net.encode(chunk) for chunk in torch.split(images, 500)])
    given = {
        "steps": recipe.steps, "batch": recipe.batch, "lr": recipe.lr, "ema": recipe.ema,
        "objective": {**recipe.objective, **fashion.LABELS},
    }  # fmt: skip
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third more updates a second on a CPU
    model = fashion.adapted(objective, net)
    return fit(model, (data, {"label": labels}), out, **{**given, **fixed, **options})


def _train_autoencoder(images: Tensor, out: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """The autoencoder by `fit` with a loss of its own. What it is told as a model, path and prediction, is not used."""
    model = adapt(Autoencoder(), "condot", "denoised")
    return fit(model, images, out, objective=autoencoders.loss, **options)


def _fill(net: nn.Module, file: str | Path) -> None:
    """Load the weights of a file, or of the network inside that it has."""
    weights, _ = read_tensors(file, fashion.KEY)
    weights = {name.removeprefix("body."): value for name, value in weights.items()}
    match(file, weights, net.state_dict())
    net.load_state_dict({name: value.float() for name, value in weights.items()})
