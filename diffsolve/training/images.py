"""A folder of images as data, read by pillow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from diffsolve.common.checks import integer, required

__all__ = ["Images"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Images(Dataset[Any]):
    """The images of a folder, in [-1, 1] as float32 (C, H, W); its subfolders, by the order of names, are classes.

    Args:
        folder: looked through with all that is in it.
        size: side in pixels, to which the largest middle square is scaled; None for images that agree in size.

    Raises:
        NotADirectoryError: if there is no such folder.
        ValueError: if it has no images.
    """

    def __init__(self, folder: str | os.PathLike[str], size: int | None = None) -> None:
        self.folder, self.size = Path(folder), None if size is None else integer("size", size, 1)
        if not self.folder.is_dir():
            raise NotADirectoryError(f"data must be a folder of images, got {os.fspath(folder)!r}, which is no folder")
        found = sorted(file for file in self.folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
        required(bool(found), "data", os.fspath(folder), f"a folder with images ({', '.join(EXTENSIONS)})")
        self.files = [file.relative_to(self.folder) for file in found]
        self.classes = sorted({file.parts[0] for file in self.files if len(file.parts) > 1})
        with _opened(found[0]) as image:
            self.mode, self.first = ("L" if image.mode in ("1", "L") else "RGB"), image.size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        file = self.files[i]
        with _opened(self.folder / file) as image:
            picture = image.convert(self.mode)
        if self.size is not None:
            side, (w, h) = min(picture.size), picture.size
            box = ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)
            picture = picture.resize((self.size, self.size), box=box)
        elif picture.size != self.first:
            raise ValueError(
                f"images must be of one size, got {self.first} and {picture.size} of {str(file)!r}: give "
                "ds.training.Images(folder, size=..)"
            )
        pixels = torch.from_numpy(np.array(picture)).float().div(127.5).sub(1)
        x = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()
        return (x, self.classes.index(file.parts[0])) if len(file.parts) > 1 else x

    def __fingerprint__(self) -> Any:
        return ["images", len(self), self.size, self.mode, self.classes]


def _opened(file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("images are read by pillow: pip install 'diffsolve[cli]'") from error
    return Image.open(file)
