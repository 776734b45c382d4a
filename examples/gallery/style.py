"""What the pictures share: the package's look for matplotlib, and panels of images and of points."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

plt.style.use("diffsolve.common.look")
torch.set_num_threads(1)


def subplots(rows: int = 1, columns: int = 1, width: float = 3.2, height: float = 2.6) -> tuple[Figure, list[Axes]]:
    """A figure, and its axes in a list."""
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    return figure, list(axes.flat)


def images(axis: Axes, rows: list[Tensor], titles: list[str] | None = None, size: int = 9) -> None:
    """Rows of grey images in [-1, 1], each row (B, 1, H, W), with a word before it."""
    side = rows[0].shape[-1]
    canvas = torch.ones(len(rows) * (side + 1), max(map(len, rows)) * (side + 1))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            canvas[i * (side + 1) :, j * (side + 1) :][:side, :side] = image[0].clamp(-1, 1)
    axis.imshow(canvas, cmap="gray", interpolation="nearest", vmin=-1, vmax=1)
    axis.set(xticks=[])
    axis.set_yticks([(i + 0.5) * (side + 1) for i in range(len(rows))], titles or [""] * len(rows), fontsize=size)
    axis.tick_params(length=0)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def points(axis: Axes, x: Tensor, title: str = "", side: float = 5.5, **options: object) -> None:
    """Points in the plane."""
    axis.scatter(*x.T, **{"s": 2, "linewidths": 0, **options})
    axis.set(title=title, xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")


def save(figure: Figure, script: str) -> None:
    """Write the picture that a script is named after, in the folder where it is run."""
    figure.savefig(Path(script).with_suffix(".png").name)
    plt.close(figure)
