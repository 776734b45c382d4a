"""Images from anywhere, as batches: a folder, an .npz of guided-diffusion (ADM), a tensor, a loader; and back.

Values are those of samples, from -1 to 1: byte v of a file is v / 127.5 - 1.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import described, integer, required
from diffsolve.common.files import in_folder, reading, write_whole
from diffsolve.common.imports import named_object

__all__ = ["SUFFIXES", "as_bytes", "batches", "is_statistics", "save_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
IMAGES = "arr_0"
"""The array of images in an ADM .npz: bytes (N, H, W, C)."""

NPZ = "an .npz of images, bytes (N, H, W, C) as arr_0"


def batches(source: Any, batch: int = 250) -> Iterator[Tensor]:
    """The images of a source, (B, C, H, W) in float32 from -1 to 1, batch by batch; only one is held at a time.

    Args:
        source: a folder, all of whose images (.png, .jpg, ..) are taken, in the order of their names, subfolders too;
            an .npz file of images; "package.module:loader", a function without arguments; or what that may return: a
            tensor, which is used as it is, a DataLoader or other iterable of batches, the first entry of a tuple.
        batch: images at a time, of a folder, a file or a tensor.

    Raises:
        ValueError: if there is no image, one cannot be read, or they differ in size.
        ImportError: if a folder needs Pillow and it is not installed.
    """
    integer("batch", batch, 1)
    if isinstance(source, str) and not Path(source).exists() and ":" in source:
        loaded = named_object("data", source)
        source = loaded() if callable(loaded) else loaded
    if isinstance(source, Tensor):
        yield from torch.split(source, batch)
    elif isinstance(source, str | Path):
        yield from _of_folder(Path(source), batch) if Path(source).is_dir() else _of_archive(Path(source), batch)
    else:
        required(isinstance(source, Iterable), "data", source, "a folder, a file, a tensor or batches", TypeError)
        for entry in source:
            yield entry[0] if isinstance(entry, tuple | list) else entry


def is_statistics(source: Any) -> bool:
    """Whether a source is an .npz of mu and sigma, not of images."""
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz" or not Path(source).is_file():
        return False
    with reading(source, "an .npz"), np.load(source, allow_pickle=False) as file:
        return {"mu", "sigma"} <= set(file.files)


def save_images(path: str | Path, images: Tensor | Iterable[Tensor]) -> None:
    """Write samples, (N, C, H, W) from -1 to 1, as ADM's .npz; or, into a folder that exists, as 00000.png and so on.

    Raises:
        ValueError: if they are not images of 1 or 3 channels.
    """
    parts = [images] if isinstance(images, Tensor) else images
    if Path(path).is_dir():
        count = 0
        for part in parts:
            for one in as_bytes(part).permute(0, 2, 3, 1).cpu().numpy():
                write_whole(Path(path) / f"{count:05d}.png", _png(one))
                count += 1
        return
    required(Path(path).suffix == ".npz", "path", str(path), "a folder that exists, or a file ending in .npz")
    buffer, whole = io.BytesIO(), [as_bytes(part).permute(0, 2, 3, 1).cpu().numpy() for part in parts]
    np.savez(buffer, np.concatenate(whole))
    write_whole(in_folder(path), buffer.getvalue())


def as_bytes(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) of images from -1 to 1; what is beyond is cut off."""
    fits = images.dim() == 4 and images.shape[1] in (1, 3)
    required(fits, "images", images, "of shape (B, C, H, W) with 1 or 3 channels")
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = _pillow().fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    image.save(buffer, "png")
    return buffer.getvalue()


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("image files need Pillow: pip install 'diffsolve[cli]'") from error
    return Image


def _floats(array: np.ndarray) -> Tensor:
    """(B, C, H, W) from -1 to 1, of bytes (B, H, W, C)."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def _of_folder(folder: Path, batch: int) -> Iterator[Tensor]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    required(bool(files), "data", str(folder), f"a folder with images ({', '.join(SUFFIXES)})")
    first: tuple[int, ...] | None = None
    for start in range(0, len(files), batch):
        arrays = []
        for file in files[start : start + batch]:
            array = _read(file)
            first = array.shape if first is None else first
            if array.shape != first:
                raise ValueError(
                    f"data must be images of one size and kind, got {files[0].name!r} of {first} and {file.name!r} of "
                    f"{array.shape}"
                )
            arrays.append(array)
        yield _floats(np.stack(arrays))


def _read(file: Path) -> np.ndarray:
    """(H, W, 1) of a grey image, (H, W, 3) of others, transparency left out."""
    with open(file, "rb") as raw, reading(file, "an image"):
        try:
            with _pillow().open(raw) as image:
                array = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except OSError as error:  # Pillow's, of what is in the file
            raise ValueError(str(error)) from error
    return array[..., None] if array.ndim == 2 else array


def _of_archive(file: Path, batch: int) -> Iterator[Tensor]:
    required(file.suffix == ".npz", "data", str(file), "a folder, an .npz file, or package.module:loader")
    with open(file, "rb"), reading(file, NPZ):
        with np.load(file, allow_pickle=False) as archive:
            array = archive[IMAGES]
        fits = array.ndim == 4 and array.dtype == np.uint8 and array.shape[-1] in (1, 3) and len(array) > 0
        if not fits:
            raise ValueError(f"{IMAGES} is {described(array)}")
    for start in range(0, len(array), batch):
        yield _floats(array[start : start + batch])
