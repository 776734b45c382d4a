"""The data of the reference models: Fashion-MNIST from its idx files, and sets of points in the plane.

The digits are in `digits.load_data`, Gaussian mixtures in `mixture`.

References:
    | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017),
      https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffsolve.common.checks import integer, required
from diffsolve.common.files import reading

__all__ = ["CLASSES", "FASHION_FOLDER", "fashion", "points", "read_idx"]

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package `dataset-fashion-mnist` puts the files."""
VARIABLE = "DIFFSOLVE_FASHION"
CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
PARTS = {"train": "train", "test": "t10k"}
ACCEPTED = "an idx file of unsigned bytes"


def fashion(part: str = "train", folder: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST: 60 000 images of clothes to train on and 10 000 to test on, of ten classes.

    Args:
        part: "train" or "test".
        folder: with the four idx files, gzipped or not. By default that of the environment variable
            DIFFSOLVE_FASHION, or else where the Debian package `dataset-fashion-mnist` puts them.

    Returns:
        The images in [-1, 1] as float32, with shape (N, 1, 28, 28), and their labels as int64: see `CLASSES`.

    Raises:
        FileNotFoundError: if a file is not there, with what to install.
        ValueError: if part is another word, or a file is no idx file of what it should be.
    """
    required(part in PARTS, "part", part, " or ".join(map(repr, PARTS)))
    where = Path(folder if folder is not None else os.environ.get(VARIABLE, FASHION_FOLDER))
    images, labels = (
        read_idx(_found(where, f"{PARTS[part]}-{kind}-ubyte"), dims)
        for kind, dims in (("images-idx3", 3), ("labels-idx1", 1))
    )
    required(len(images) == len(labels), "labels", len(labels), f"as many as images, {len(images)}")
    return images[:, None].float() / 127.5 - 1, labels.long()


def _found(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.exists():
            return file
    raise FileNotFoundError(
        f"Fashion-MNIST must be in {str(folder)!r}, which has no {name} or {name}.gz: install the Debian package "
        f"dataset-fashion-mnist, or name the folder of the four idx files by folder= or {VARIABLE}"
    )


def read_idx(path: str | Path, dims: int) -> Tensor:
    """The uint8 array of an idx file, gzipped if its name ends in .gz.

    The file is 0, 0, the type (8, unsigned bytes), the number of dimensions, each size as four bytes, most
    significant first, and the numbers.

    Raises:
        ValueError: if it is another kind of file, has another number of dimensions, or is cut off.
    """
    path = Path(path)
    raw = path.read_bytes()
    with reading(path, ACCEPTED):
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        head = 4 + 4 * dims
        required(raw[:4] == bytes((0, 0, 8, dims)), "its first bytes", raw[:4], f"those of {dims} dimensions of bytes")
        sizes = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4)]
        required(len(raw) == head + math.prod(sizes), "its length", len(raw), f"{head + math.prod(sizes)} bytes")
        return torch.frombuffer(bytearray(raw[head:]), dtype=torch.uint8).view(sizes)


def points(name: str, count: int, *, seed: int = 0) -> Tensor:
    """Points of a set in the plane, float32 (count, 2), of about unit size.

    "moons": two half circles of radius 1, with normal noise of 0.05. "checkerboard": uniform on the eight dark squares
    of a board of side 4. "swiss-roll": a spiral of one and a half turns. "spirals": two arms, half a turn apart.

    Raises:
        ValueError: if the name is unknown or count is no integer >= 1.
    """
    required(name in POINTS, "name", name, f"one of {', '.join(map(repr, POINTS))}")
    return POINTS[name](integer("count", count, 1), torch.Generator().manual_seed(integer("seed", seed)))


def _moons(n: int, g: torch.Generator) -> Tensor:
    angle, which = math.pi * torch.rand(n, generator=g), torch.randint(2, (n,), generator=g)
    x = torch.stack([angle.cos() + which - 0.5, angle.sin() * (1 - 2 * which) - 0.25 + 0.5 * which], 1)
    return x + 0.05 * torch.randn(n, 2, generator=g)


def _checkerboard(n: int, g: torch.Generator) -> Tensor:
    column, half = torch.randint(4, (n,), generator=g), torch.randint(2, (n,), generator=g)
    square = torch.stack([column, 2 * half + column % 2], 1)
    return square + torch.rand(n, 2, generator=g) - 2


def _spiral(angle: Tensor, turn: Tensor | float, g: torch.Generator) -> Tensor:
    """An arm of radius angle / 3 pi, with normal noise of 0.02."""
    radius = angle / (3 * math.pi)
    x = torch.stack([radius * (angle + turn).cos(), radius * (angle + turn).sin()], 1)
    return x + 0.02 * torch.randn(len(angle), 2, generator=g)


def _swiss_roll(n: int, g: torch.Generator) -> Tensor:
    return _spiral(1.5 * math.pi * (1 + 2 * torch.rand(n, generator=g)), 0.0, g)


def _spirals(n: int, g: torch.Generator) -> Tensor:
    angle = 3 * math.pi * torch.rand(n, generator=g).sqrt()  # as dense at every radius
    return _spiral(angle, math.pi * torch.randint(2, (n,), generator=g), g)


POINTS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "moons": _moons, "checkerboard": _checkerboard, "swiss-roll": _swiss_roll, "spirals": _spirals,
}  # fmt: skip
