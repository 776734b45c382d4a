"""Pictures of samples: a grid of images, or a scatter of points; as PNG, NPY or NPZ bytes."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["encoded", "grid_image", "scatter_image"]

SIDE, GAP = 512, 4  # pixels: the approximate width of a picture, and the space around a tile


def encoded(x: np.ndarray, suffix: str) -> bytes:
    """The contents of a file of samples."""
    buffer = io.BytesIO()
    if suffix.lower() == ".npy":
        np.save(buffer, x)
    else:
        image = grid_image(x) if x.ndim == 4 else scatter_image(x)
        image.save(buffer, "png")
    return buffer.getvalue()


def grid_image(x: np.ndarray, columns: int | None = None) -> Image.Image:
    """Grey images in [-1, 1] of shape (B, 1, H, W), enlarged by a whole factor, in rows from the top left."""
    columns = columns or math.ceil(math.sqrt(len(x)))
    scale = max(1, SIDE // (columns * x.shape[-1]))
    tiles = np.rint((x[:, 0].clip(-1, 1) + 1) * 127.5).astype(np.uint8).repeat(scale, 1).repeat(scale, 2)
    height, width = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    canvas = np.full((math.ceil(len(x) / columns) * height + GAP, columns * width + GAP), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height + GAP, i % columns * width + GAP
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return Image.fromarray(canvas)


def scatter_image(x: np.ndarray) -> Image.Image:
    """Points of shape (B, 2) in a square around the origin, with its limits written below."""
    limit = max(1, math.ceil(np.abs(x).max()))
    side, margin, radius = 2 * SIDE, 40, 4  # drawn at twice the size, for smooth edges
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((margin, margin, side - margin, side - margin), outline="grey", width=2)
    for right, up in (x / limit * (side / 2 - margin)).tolist():
        x0, y0 = side / 2 + right - radius, side / 2 - up - radius
        draw.ellipse((x0, y0, x0 + 2 * radius, y0 + 2 * radius), fill="navy")
    image = image.reduce(2)
    ImageDraw.Draw(image).text((margin / 2, SIDE - margin / 2 + 4), f"both axes: -{limit} .. {limit}", fill="grey")
    return image
