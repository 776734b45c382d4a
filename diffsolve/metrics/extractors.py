"""Networks of other libraries as features: Inception for FID and KID, DINOv2 for FDD, CLIP for CMMD.

The network and what is done to an image before it are the library's own: torch-fidelity's, or for Inception
pytorch-fid's where that one is installed alone. Nothing is downloaded: where the weights are not on this machine a
message says what to put where.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import choice
from diffsolve.common.files import reading
from diffsolve.metrics.images import as_bytes

__all__ = ["LibraryFeatures", "clip", "dinov2", "inception"]

DINOV2 = {"small": ("s", 384), "base": ("b", 768), "large": ("l", 1024), "giant": ("g", 1536)}
CLIP = ("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336px")
FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
PYTORCH_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
WEIGHTS = "inception-2015-12-05-6726825d.pth"
"""Inception's, of the TensorFlow graph of FID; torch-fidelity's file has `weights-` before it, pytorch-fid's `pt_`."""


class LibraryFeatures(nn.Module):
    """A library's network on samples from -1 to 1, which it gets as bytes, as published figures are made.

    Args:
        name: what describes it in the settings of a file.
        network: the library's.
        features: (network, uint8 images (B, 3, H, W)) -> (B, F).
    """

    def __init__(self, name: str, network: nn.Module, features: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.network, self._features = name, network.eval().requires_grad_(False), features

    def forward(self, images: Tensor) -> Tensor:
        """(B, F): the features of images (B, C, H, W) from -1 to 1; of one channel, it is given three times."""
        integers = as_bytes(images)
        found: Tensor = self._features(self.network, integers.expand(-1, 3, -1, -1))
        return found


def inception(weights: str = "", library: str = "") -> LibraryFeatures:
    """Inception of FID, 2048 numbers: https://arxiv.org/abs/1706.08500.

    Args:
        weights: their file. If empty, where the library keeps what it downloads.
        library: "torch-fidelity", which resizes as TensorFlow 1 did, or "pytorch-fid". If empty, the first installed.

    Raises:
        ImportError: if neither is installed.
        ValueError: if the weights are not there.
    """
    known = {"torch-fidelity": "torch_fidelity", "pytorch-fid": "pytorch_fid"}
    if library:
        choice("library", library, known)
    installed = [name for name, module in known.items() if find_spec(module) and library in ("", name)]
    if not installed:
        raise ImportError("Inception's features need torch-fidelity or pytorch-fid: pip install torch-fidelity")
    files = {"torch-fidelity": FIDELITY + f"weights-{WEIGHTS}", "pytorch-fid": PYTORCH_FID + f"pt_{WEIGHTS}"}
    if installed[0] == "torch-fidelity":
        file = _file(weights, files["torch-fidelity"], files["pytorch-fid"])
        made = _module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        network = made("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
        return LibraryFeatures("inception (torch-fidelity)", network, _first)
    if weights:
        raise ValueError(f"weights must be left out with pytorch-fid, which looks in {_cache()}, got {weights!r}")
    _file("", files["pytorch-fid"])
    return LibraryFeatures(
        "inception (pytorch-fid)", _module("pytorch_fid.inception").InceptionV3([3]), _of_pytorch_fid
    )


def dinov2(size: str = "large") -> LibraryFeatures:
    """DINOv2 of the Frechet distance FDD, 1024 numbers (Stein et al., 2023): https://arxiv.org/abs/2306.04675.

    Args:
        size: "small", "base", "large" or "giant".

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: if torch.hub has not kept the code and the weights.
    """
    letter, _ = DINOV2[choice("size", size, DINOV2)]
    made = _fidelity("dinov2").FeatureExtractorDinoV2
    code = Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
    if not code.is_dir():
        raise ValueError(
            f"the code of DINOv2 must be in {str(code)!r}, got no such folder; clone facebookresearch/dinov2 there, or "
            'run torch.hub.load("facebookresearch/dinov2", ..) once where there is a network'
        )
    _file("", f"https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{letter}14/dinov2_vit{letter}14_pretrain.pth")
    return LibraryFeatures(f"dinov2 ({size})", made(f"dinov2-vit-{letter}-14", ["dinov2"]), _first)


def clip(size: str = "vit-l-14-336px", weights: str = "") -> LibraryFeatures:
    """CLIP of the kernel distance CMMD, 768 numbers (Jayasumana et al., 2024): https://arxiv.org/abs/2401.09603.

    Args:
        size: "vit-b-32", "vit-b-16", "vit-l-14" or "vit-l-14-336px".
        weights: the file of OpenAI. If empty, where torch-fidelity keeps what it downloads.

    Raises:
        ImportError: if torch-fidelity is not installed.
        ValueError: if the weights are not there.
    """
    choice("size", size, CLIP)
    module, name = _fidelity("clip"), f"clip-{size}"
    kept = f"{name}-{module.MODEL_METADATA[name]['hash']}.pt"
    file = Path(weights) if weights else _cache() / kept
    if not file.is_file():
        raise ValueError(_missing(str(file), module.MODEL_URLS[name]))
    network = module.FeatureExtractorCLIP(name, ["clip"], feature_extractor_weights_path=weights or None)
    return LibraryFeatures(f"clip ({size})", network, _first)


def _first(network: nn.Module, integers: Tensor) -> Tensor:
    found: Tensor = network(integers)[0]
    return found


def _of_pytorch_fid(network: nn.Module, integers: Tensor) -> Tensor:
    found: Tensor = network(integers.float() / 255)[0].flatten(1)
    return found


def _fidelity(name: str) -> Any:
    if not find_spec("torch_fidelity"):
        raise ImportError(f"{name}'s features need torch-fidelity: pip install torch-fidelity")
    return _module(f"torch_fidelity.feature_extractor_{name}")


def _module(name: str) -> Any:
    return import_module(name)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _file(given: str, *addresses: str) -> Path:
    """The file of weights, which is proved to have tensors alone: the libraries would run what a pickle says.

    Args:
        addresses: where it comes from; the last part of each is its name in torch.hub's cache.
    """
    files = [Path(given)] if given else [_cache() / address.rpartition("/")[2] for address in addresses]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise ValueError(_missing(str(files[0]), addresses[0]))
    with reading(file, "a file of weights"):
        torch.load(file, map_location="cpu", weights_only=True)
    return file


def _missing(file: str, address: str) -> str:
    return f"weights must be on this machine, got no file {file!r}; it is {address}, which diffsolve does not download"
