"""What a training reads: tensors, any `Dataset`, a folder of images or the user's own batches, in an order by keys."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diffsolve.common.checks import instance, integer, required
from diffsolve.common.fingerprint import describe

__all__ = ["Batch", "Images", "Own", "Source", "Tensors", "source", "word"]

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
UPDATE, SAMPLE, EPOCH, OWN = range(4)
"""What torch's generator is seeded for: the second number of the key of `word`."""
KINDS = (
    "a tensor x0, a pair (x0, {name: values}), a torch Dataset of x, (x, label) or (x, {name: value}), a folder of "
    "images, or an iterable of batches"
)


@dataclass(frozen=True)
class Batch:
    """A part of the batch of an update."""

    x0: Tensor
    """(B, ...), data."""
    cond: dict[str, Any]
    """Conditions of the network, a row per sample."""
    index: int
    """The number of the first sample within the batch of the update."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        cond = {name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for name, v in self.cond.items()}
        return Batch(self.x0.to(device, non_blocking=True), cond, self.index)

    def parts(self, count: int) -> list[Batch]:
        """The batch in parts of one size.

        Raises:
            ValueError: if it has none of that size.
        """
        size, rows = len(self.x0) // count, len(self.x0)
        required(size * count == rows, "accumulate", count, f"a divisor of the batch, {rows}")
        return [
            Batch(
                self.x0[i : i + size],
                {name: v[i : i + size] if is_per_sample(v, rows) else v for name, v in self.cond.items()},
                self.index + i,
            )
            for i in range(0, rows, size)
        ]


def is_per_sample(value: Any, rows: int) -> bool:
    """Whether a condition has a row for each sample."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


class Tensors(Dataset[Any]):
    """Data in memory: x0 (N, ...) and conditions of N rows each, taken by the batch."""

    def __init__(self, x0: Tensor, cond: Mapping[str, Tensor] | None = None) -> None:
        self.x0, self.cond = instance("x0", x0, Tensor, "a tensor"), dict(cond or {})
        required(x0.dim() > 0 and len(x0) > 0, "x0", x0, "of shape (N, ...) with at least one sample")
        for name, values in self.cond.items():
            required(
                is_per_sample(values, len(x0)),
                f"cond[{name!r}]",
                values,
                f"a tensor of {len(x0)} rows, one for each sample",
            )

    def __len__(self) -> int:
        return len(self.x0)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x0[i], {name: values[i] for name, values in self.cond.items()}

    def taken(self, index: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """The samples of these numbers as one batch."""
        rows = torch.as_tensor(index, device=self.x0.device)
        return self.x0[rows], {name: values[rows.to(values.device)] for name, values in self.cond.items()}

    def __fingerprint__(self) -> Any:
        return describe([self.x0, self.cond])


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


class Source:
    """Batches of a `Dataset`, whose order depends on the seed and the update alone.

    The samples of all updates in a row, n = step * batch + i, run through one random order of the data after the other:
    that of epoch n // N is drawn from (seed, n // N). What a Dataset draws by torch's generator (crops, flips) depends
    on (seed, n), with any number of workers.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, seed: int, workers: int = 0) -> None:
        self.dataset, self.batch, self.seed, self.workers = dataset, batch, seed, workers
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """The part of the batch of each update from `step` to `steps`."""
        numbers = ([(n, self.place(n)) for n in self.numbers(k, part)] for k in range(step, steps))
        if isinstance(self.dataset, Tensors):
            for some in numbers:
                yield Batch(*self.dataset.taken([i for _, i in some]), part.start)
            return
        keyed = _Keyed(self.dataset, self.seed)
        loader: DataLoader[Any] = DataLoader(keyed, batch_sampler=_Listed(numbers), num_workers=self.workers)
        for items in loader:
            yield Batch(*split(items), part.start)

    def numbers(self, step: int, part: slice) -> range:
        """The running numbers of the samples of an update."""
        return range(step * self.batch + part.start, step * self.batch + part.stop)

    def place(self, n: int) -> int:
        """Where in the data the n-th sample of the training is."""
        epoch, i = divmod(n, len(self.dataset))  # type: ignore[arg-type]  # which has a length: see `source`
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
            self._epoch = epoch
        return int(self._order[i])

    def __fingerprint__(self) -> Any:
        about = getattr(self.dataset, "__fingerprint__", None)
        return about() if about else [type(self.dataset).__name__, len(self.dataset)]  # type: ignore[arg-type]


class _Keyed(Dataset[Any]):
    """A data set whose random draws are keyed by the number of the sample in the training."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, where: tuple[int, int]) -> Any:
        n, i = where
        torch.default_generator.manual_seed(word(self.seed, SAMPLE, n))
        return self.dataset[i]


class _Listed:
    """An iterator as the batch sampler of a DataLoader, which iterates once."""

    def __init__(self, numbers: Iterator[list[tuple[int, int]]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.numbers


class Own:
    """The user's batches, in their order, from the beginning again when they end; each rank has its own."""

    def __init__(self, loader: Iterable[Any], seed: int) -> None:
        self.loader, self.seed = loader, seed

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """A batch for each update; those before `step` are drawn and dropped."""
        yield from islice(self._endless(part), step, steps)

    def _endless(self, part: slice) -> Iterator[Batch]:
        epoch = 0
        while True:
            # A DataLoader that shuffles draws its order from torch's generator, one for ranks asks for the epoch.
            torch.default_generator.manual_seed(word(self.seed, EPOCH, epoch))
            sampler: Any = getattr(self.loader, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            empty = True
            for items in _keyed(self.loader, self.seed, epoch):
                x0, cond = split(items)
                yield Batch(x0, cond, part.start // (part.stop - part.start) * len(x0))
                empty = False
            required(not empty, "data", self.loader, "batches that can be iterated again and again, and at least one")
            epoch += 1

    def __fingerprint__(self) -> Any:
        return type(self.loader).__name__


def _keyed(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """The batches of an epoch, each drawn with a state of torch's generator of its own, updates in between or not."""
    batches, count = iter(loader), 0
    while True:
        torch.default_generator.manual_seed(word(seed, OWN, epoch, count))
        try:
            items = next(batches)
        except StopIteration:
            return
        yield items
        count += 1


def source(data: Any, batch: int, seed: int, workers: int = 0) -> Source | Own:
    """The batches of what the user gave as data.

    Raises:
        TypeError: if it is nothing of what is accepted.
    """
    if isinstance(data, Tensor):
        return Source(Tensors(data), batch, seed, workers)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        instance("data[1]", data[1], Mapping, "a mapping of conditions, {'label': labels}")
        return Source(Tensors(*data), batch, seed, workers)
    if isinstance(data, str | os.PathLike):
        return Source(Images(data), batch, seed, workers)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        required(hasattr(data, "__len__"), "data", data, "a Dataset that has a length", TypeError)
        required(len(data) > 0, "data", data, "a Dataset with at least one sample")  # type: ignore[arg-type]
        return Source(data, batch, seed, workers)
    loaded = isinstance(data, Iterable) and not isinstance(data, Iterator | Mapping | list | tuple)
    required(loaded, "data", data, KINDS, TypeError)
    return Own(DataLoader(data, batch) if isinstance(data, IterableDataset) else data, seed)


def split(items: Any) -> tuple[Tensor, dict[str, Any]]:
    """(x0, conditions) of a batch: of x, (x,), (x, label) or (x, {name: values})."""
    parts = tuple(items) if isinstance(items, tuple | list) else (items,)
    accepted = "x, (x, label) or (x, {name: values}) with a tensor x"
    required(1 <= len(parts) <= 2 and isinstance(parts[0], Tensor), "a batch of data", items, accepted, TypeError)
    if len(parts) == 1:
        return parts[0], {}
    return parts[0], dict(parts[1]) if isinstance(parts[1], Mapping) else {"label": parts[1]}


def word(*key: int) -> int:
    """A seed of torch's generator made of several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
