r"""A small flow-matching model of handwritten digits; `diffsolve.training.digits` trains it.

The data are scikit-learn's 1797 digits of 8 by 8 pixels. The path is CondOT,
:math:`x_t = t \, x_0 + (1 - t) \, \epsilon` with noise at `t = 0` and data at `t = 1`, and the network
predicts the velocity :math:`v = dx_t/dt = x_0 - \epsilon` of the labelled class, or of all classes
without a label, as classifier-free guidance needs.

References:
    | Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    | Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from diffsolve.common.files import match, read_tensors
from diffsolve.reference.unet import UNet

__all__ = ["load", "load_data", "network"]

KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object


def load_data() -> tuple[Tensor, Tensor]:
    """Read the digits from scikit-learn.

    Returns:
        The images in [-1, 1] as float32, with shape (1797, 1, 8, 8), and their labels as int64.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come from scikit-learn: pip install 'diffsolve[train]'") from error
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.as_tensor(data.target, dtype=torch.int64)


def network() -> UNet:
    """The architecture of the packaged weights, freshly initialised."""
    return UNet(in_channels=1, channels=24, multipliers=(1, 2), num_classes=10, dropout=0.1)


def load(path: str | Path | None = None, *, build: Callable[[], UNet] = network) -> UNet:
    """The trained network in float32, in evaluation mode, its parameters frozen.

    Args:
        path: A file written by `diffsolve.training.digits.train`; by default the weights in the package.
        build: Makes the network that the weights belong to.

    Raises:
        ValueError: if the file is not a safetensors file, or not of this network.
    """
    packaged = resources.files(__package__) / "weights" / "digits.safetensors"
    with resources.as_file(packaged) if path is None else nullcontext(Path(path)) as file:
        weights, _ = read_tensors(file, KEY)
    with torch.random.fork_rng(devices=[]):
        net = build()
    match(file, weights, net.state_dict())
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    return net.eval().requires_grad_(False)
