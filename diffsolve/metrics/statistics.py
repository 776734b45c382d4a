"""The mean and covariance of features, accumulated batch by batch in float64, and the features themselves.

Why no package: torchmetrics' Frechet distance takes no precomputed statistics, accumulates uncentred moments, which
cancel where the mean is large, and rounds its result to float32; pytorch-fid and clean-fid are scripts around one
Inception network. The formulas needed are the two short ones here and those in `distances`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.common.files import read_tensors, reading, write_tensors, write_whole
from diffsolve.common.fingerprint import describe, rounded
from diffsolve.common.tensors import flat
from diffsolve.models.hints import warn_training

__all__ = ["Features", "Statistics", "pixels"]

Features = Callable[[Tensor], Tensor]
"""Images (B, ...) -> features (B, F): any callable, such as an nn.Module on the images' device."""

SUFFIXES = (".npz", ".safetensors")
ENTRIES = 2**20  # of a matrix between two sets of rows, at once


def pixels(images: Tensor) -> Tensor:
    """The images themselves as features."""
    return flat(images)


@dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """The statistics of a set of images; immutable. Build with `of` or `load`; `a + b` are those of both sets."""

    count: int | None
    """Number of images; None if the file does not have it."""
    mean: Tensor
    """(F,), float64."""
    cov: Tensor
    """(F, F), float64: the unbiased covariance, divided by count - 1 (zero for one image)."""
    rows: Tensor | None = None
    """(K, F): the features of the first images, for the distances that need them; None if none were kept."""
    features: Features = pixels
    """The function from images to features; `sweep` applies it to samples."""

    @classmethod
    def of(
        cls,
        images: Tensor | Iterable[Any],
        features: Features = pixels,
        *,
        batch: int = 250,
        keep: int | None = None,
    ) -> Statistics:
        """The statistics of images.

        Args:
            images: a tensor (N, ...); or batches of any sizes, such as a DataLoader, where the first entry of a tuple
                or list is used. Only one batch is held at a time.
            features: images (B, ...) -> (B, F). Called without gradients.
            batch: images of a tensor processed at once. Results depend on it only by rounding.
            keep: number of images whose features are kept; all if None. They take 4 F bytes each, in memory and in a
                file.

        Raises:
            ValueError: if there are no images, or the features are not finite or not of shape (B, F).
            TypeError: if images or features are not tensors of the right kind.
        """
        room = math.inf if keep is None else integer("keep", keep, 0)
        batch = integer("batch", batch, 1)
        whole, rows = None, []
        for chunk in torch.split(images, batch) if isinstance(images, Tensor) else images:
            part = extract(features, chunk[0] if isinstance(chunk, tuple | list) else chunk)
            if len(part):
                statistics = cls(len(part), *_moments(part))
                whole = statistics if whole is None else whole + statistics
                rows.append(part[: int(min(room, len(part)))].clone())
                room -= len(rows[-1])
        if whole is None:
            raise ValueError("images must be at least one, got none")
        kept = torch.cat(rows)
        return cls(whole.count, whole.mean, whole.cov, kept if len(kept) else None, features)

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of images (Chan, Golub and LeVeque, 1983), with rows if both have them.

        Raises:
            ValueError: if the features differ in size, or a count is None.
        """
        if not isinstance(other, Statistics):
            return NotImplemented
        n, m = self.count, other.count
        if n is None or m is None:
            raise ValueError("count must be known of both statistics that are added, got None")
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features must be of the same size, got {len(self.mean)} and {len(other.mean)} numbers")
        shift = other.mean - self.mean
        scatter = self.cov * (n - 1) + other.cov * (m - 1)
        scatter.addr_(shift, shift, alpha=n * m / (n + m))
        rows = None if self.rows is None or other.rows is None else torch.cat([self.rows, other.rows])
        mean = self.mean + shift * (m / (n + m))
        return Statistics(n + m, mean, scatter.div_(n + m - 1), rows, self.features)

    @cached_property
    def root(self) -> Tensor:
        """(F, rank): A with A A^T = cov, without the directions whose variance is 0 to rounding."""
        variances, basis = torch.linalg.eigh(self.cov)
        kept = variances > len(variances) * torch.finfo(torch.float64).eps * variances[-1].clamp(min=0)
        root: Tensor = basis[:, kept] * variances[kept].sqrt()
        return root

    @cached_property
    def within(self) -> Tensor:
        """(K,): for each row the sum of `kid`'s kernel with the other rows."""
        rows = self.numbers
        return kernel_sums(rows, rows)[0] - ((rows * rows).sum(1) / rows.shape[1] + 1) ** 3

    @property
    def numbers(self) -> Tensor:
        """The rows, in float64.

        Raises:
            ValueError: if none were kept.
        """
        if self.rows is None:
            raise ValueError(f"rows must be kept for this distance (see keep= of Statistics.of), got {self!r}")
        return self.rows.double()

    def __fingerprint__(self) -> Any:
        moments = [rounded(numbers.numpy()) for numbers in (self.mean, self.cov.diagonal())]
        return [len(self.mean), *moments, describe(self.features)]

    def __repr__(self) -> str:
        kept = 0 if self.rows is None else len(self.rows)
        return f"Statistics(count={self.count}, features={len(self.mean)}, rows={kept})"

    def save(self, path: str | Path) -> None:
        """Write a file, atomically.

        Args:
            path: ending in .safetensors, or in .npz, with `mu` and `sigma` as pytorch-fid, clean-fid and EDM read it.
        """
        tensors = {"mu": self.mean, "sigma": self.cov.contiguous()}
        if self.count is not None:
            tensors["count"] = torch.tensor(self.count)
        if self.rows is not None:
            tensors["rows"] = self.rows.contiguous()
        if _suffix(path) == ".npz":
            buffer, arrays = io.BytesIO(), {name: tensor.numpy() for name, tensor in tensors.items()}
            np.savez(buffer, **arrays)  # type: ignore[arg-type]
            write_whole(path, buffer.getvalue())
        else:
            write_tensors(path, tensors)

    @classmethod
    def load(cls, path: str | Path, features: Features = pixels) -> Statistics:
        """Read a file of `save`, or an .npz of pytorch-fid, clean-fid, EDM or guided-diffusion: `mu` and `sigma`.

        Args:
            features: the function that computed the features, which the file does not name.

        Raises:
            ValueError: if the file is not one of these, or its arrays are not finite or their shapes do not match.
        """
        with reading(path, ACCEPTED):
            read = _arrays(path)
            missing = {"mu", "sigma"} - read.keys()
            required(not missing, "its arrays", sorted(read), "mu and sigma, and perhaps count and rows")
            rows = read.get("rows", torch.empty(0, *read["mu"].shape))
            for name, part in (("mu", read["mu"]), ("sigma", read["sigma"]), ("rows", rows)):
                required(not part.is_complex() and part.dtype != torch.bool, name, part, "of real numbers")
                required(bool(part.isfinite().all()), name, part, "finite")
            mean, cov = read["mu"].double(), read["sigma"].double()
            shapes = {name: tuple(part.shape) for name, part in (("mu", mean), ("sigma", cov), ("rows", rows))}
            fit = mean.dim() == 1 and cov.shape == (len(mean), len(mean)) and rows.shape[1:] == mean.shape
            required(fit and len(mean) > 0, "shapes", shapes, "mu (F,), sigma (F, F) and rows (K, F), with F >= 1")
            symmetric = bool((cov - cov.T).abs().max() <= 1e-6 * cov.abs().max())  # some were computed in float32
            required(symmetric, "sigma", cov, "symmetric")
            required(bool((cov.diagonal() >= 0).all()), "sigma", cov, "a covariance, with variances >= 0")
            count = None
            if "count" in read:
                one = read["count"].numel() == 1 and read["count"].dtype == torch.int64
                required(one, "count", read["count"], "one integer")
                count = integer("count", int(read["count"]), max(1, len(rows)))
            return cls(count, mean, (cov + cov.T) / 2, rows if len(rows) else None, features)


NAMES = ("mu", "sigma", "count", "rows")
ACCEPTED = "an .npz or .safetensors of statistics"


def _arrays(path: str | Path) -> dict[str, Tensor]:
    """The arrays of a file of statistics, by name."""
    if _suffix(path) == ".safetensors":
        return read_tensors(path, accepted=ACCEPTED)[0]
    # Opened here: a later OSError is one of the archive's contents. np.load reads an .npy as an array, and other files
    # that are not zip files as pickles, which are refused.
    with open(path, "rb") as raw:
        try:
            with np.load(raw, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in NAMES if name in file.files}
        except OSError as error:
            raise ValueError(f"its archive cannot be read: {error}") from error


def extract(features: Features, images: Any, *, finite: bool = True) -> Tensor:
    """(B, F): the checked features of a batch, on the CPU, in float32 or, if they are float64, in float64.

    Args:
        finite: whether one that is not finite is an error.
    """
    instance("images", images, Tensor, "tensors (B, ...)")
    warn_training(features, "features")
    with torch.no_grad():
        rows = features(images)
    floating = isinstance(rows, Tensor) and rows.is_floating_point()
    required(floating, "output of features", rows, "a floating tensor of shape (B, F)", TypeError)
    fits = rows.dim() == 2 and len(rows) == len(images) and rows.shape[1] > 0
    required(fits, "output of features", rows, f"of shape ({len(images)}, F)")
    rows = rows.detach().cpu()
    if finite and not rows.isfinite().all():
        raise ValueError(f"output of features must be finite, got {int((~rows.isfinite()).sum())} that are not")
    return rows if rows.dtype == torch.float64 else rows.float()


def blocks(x: Tensor, columns: int) -> tuple[Tensor, ...]:
    """x in blocks of rows, of which a matrix with so many columns has at most `ENTRIES`, or one row."""
    return torch.split(x, max(1, ENTRIES // columns))


def kernel_sums(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The sums over rows and over columns of k(x_i, y_j) = (x_i . y_j / F + 1)^3, float64, in blocks."""
    over_y, over_x = [], torch.zeros(len(y), dtype=torch.float64)
    for block in blocks(x, len(y)):
        kernel = (block @ y.T / x.shape[1] + 1) ** 3
        over_y.append(kernel.sum(1))
        over_x += kernel.sum(0)
    return torch.cat(over_y), over_x


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    mean = rows.mean(0)
    rows = rows - mean
    return mean, rows.T @ rows / max(1, len(rows) - 1)


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix
    required(suffix in SUFFIXES, "path", str(path), f"a file ending in {' or '.join(SUFFIXES)}")
    return suffix
