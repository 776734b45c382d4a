"""What a training reads: tensors, any `Dataset`, a folder of images or the user's own batches, in an order by keys."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Dataset, IterableDataset

from diffsolve.common.checks import instance, required
from diffsolve.common.fingerprint import describe
from diffsolve.training.images import Images

__all__ = ["Batch", "Reader", "Tensors", "TwoSided", "source", "word"]

UPDATE, SAMPLE, EPOCH, OWN = range(4)
"""What torch's generator is seeded for: the second number of the key of `word`."""
KINDS = (
    "a tensor x0, a pair (x0, {name: values}), a torch Dataset of x, (x, label) or (x, {name: value}), a folder of "
    "images, a distribution of torch, or an iterable of batches"
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
    noise: Tensor | None = None
    """(B, ...), the other end of each pair, if it is given."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        cond = {name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for name, v in self.cond.items()}
        noise = None if self.noise is None else self.noise.to(device, non_blocking=True)
        return Batch(self.x0.to(device, non_blocking=True), cond, self.index, noise)

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
                None if self.noise is None else self.noise[i : i + size],
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


class Source:
    """Batches of a `Dataset`, whose order depends on the seed and the update alone.

    The samples of all updates in a row, n = step * batch + i, run through one random order of the data after the other:
    that of epoch n // N is drawn from (seed, n // N). What a Dataset draws by torch's generator (crops, flips) depends
    on (seed, n), with any number of workers.
    """

    def __init__(self, dataset: Dataset[Any], batch: int, key: Sequence[int], workers: int = 0) -> None:
        self.dataset, self.batch, self.key, self.workers = dataset, batch, key, workers
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """The part of the batch of each update from `step` to `steps`."""
        numbers = ([(n, self.place(n)) for n in self.numbers(k, part)] for k in range(step, steps))
        if isinstance(self.dataset, Tensors):
            for some in numbers:
                yield batch_of(self.dataset.taken([i for _, i in some]), part.start)
            return
        keyed = _Keyed(self.dataset, self.key)
        loader: DataLoader[Any] = DataLoader(keyed, batch_sampler=_Listed(numbers), num_workers=self.workers)
        for items in loader:
            yield batch_of(items, part.start)

    def numbers(self, step: int, part: slice) -> range:
        """The running numbers of the samples of an update."""
        return range(step * self.batch + part.start, step * self.batch + part.stop)

    def place(self, n: int) -> int:
        """Where in the data the n-th sample of the training is."""
        epoch, i = divmod(n, len(self.dataset))  # type: ignore[arg-type]  # which has a length: see `source`
        if epoch != self._epoch:
            self._order = np.random.default_rng([*self.key, epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
            self._epoch = epoch
        return int(self._order[i])

    def __fingerprint__(self) -> Any:
        about = getattr(self.dataset, "__fingerprint__", None)
        return about() if about else [type(self.dataset).__name__, len(self.dataset)]  # type: ignore[arg-type]


class _Keyed(Dataset[Any]):
    """A data set whose random draws are keyed by the number of the sample in the training."""

    def __init__(self, dataset: Dataset[Any], key: Sequence[int]) -> None:
        self.dataset, self.key = dataset, key

    def __getitem__(self, where: tuple[int, int]) -> Any:
        n, i = where
        torch.default_generator.manual_seed(word(*self.key, SAMPLE, n))
        return self.dataset[i]


class _Listed:
    """An iterator as the batch sampler of a DataLoader, which iterates once."""

    def __init__(self, numbers: Iterator[list[tuple[int, int]]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self.numbers


class Own:
    """The user's batches, in their order, from the beginning again when they end; each rank has its own."""

    def __init__(self, loader: Iterable[Any], key: Sequence[int]) -> None:
        self.loader, self.key = loader, key

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """A batch for each update; those before `step` are drawn and dropped."""
        yield from islice(self._endless(part), step, steps)

    def _endless(self, part: slice) -> Iterator[Batch]:
        epoch = 0
        while True:
            # A DataLoader that shuffles draws its order from torch's generator, one for ranks asks for the epoch.
            torch.default_generator.manual_seed(word(*self.key, EPOCH, epoch))
            sampler: Any = getattr(self.loader, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
            empty = True
            for items in _keyed(self.loader, self.key, epoch):
                batch = batch_of(items)
                yield replace(batch, index=part.start // (part.stop - part.start) * len(batch.x0))
                empty = False
            required(not empty, "data", self.loader, "batches that can be iterated again and again, and at least one")
            epoch += 1

    def __fingerprint__(self) -> Any:
        return type(self.loader).__name__


def _keyed(loader: Iterable[Any], key: Sequence[int], epoch: int) -> Iterator[Any]:
    """The batches of an epoch, each drawn with a state of torch's generator of its own, updates in between or not."""
    batches, count = iter(loader), 0
    while True:
        torch.default_generator.manual_seed(word(*key, OWN, epoch, count))
        try:
            items = next(batches)
        except StopIteration:
            return
        yield items
        count += 1


class Drawn:
    """Samples of a distribution, drawn for each update by (seed, step)."""

    def __init__(self, law: Distribution, batch: int, key: Sequence[int]) -> None:
        self.law, self.batch, self.key = law, batch, key

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """The part of the batch of each update from `step` to `steps`."""
        for k in range(step, steps):
            torch.default_generator.manual_seed(word(*self.key, SAMPLE, k))
            yield Batch(self.law.sample((self.batch,))[part], {}, part.start)

    def __fingerprint__(self) -> Any:
        return repr(self.law)


class TwoSided:
    """Data with another source's samples as their noise."""

    def __init__(self, data: Reader, noise: Reader) -> None:
        self.data, self.noise = data, noise

    def batches(self, step: int, steps: int, part: slice) -> Iterator[Batch]:
        """The part of the batch of each update from `step` to `steps`."""
        for batch, other in zip(*(end.batches(step, steps, part) for end in (self.data, self.noise)), strict=True):
            yield replace(batch, noise=other.x0)

    def __fingerprint__(self) -> Any:
        return {"data": describe(self.data), "noise": describe(self.noise)}


Reader = Source | Own | Drawn | TwoSided


def source(data: Any, batch: int, key: Sequence[int], workers: int = 0, name: str = "data") -> Reader:
    """The batches of what the user gave as data, in an order that is a function of the key.

    Raises:
        TypeError: if it is nothing of what is accepted.
    """
    if isinstance(data, Tensor):
        return Source(Tensors(data), batch, key, workers)
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        instance(f"{name}[1]", data[1], Mapping, "a mapping of conditions, {'label': labels}")
        return Source(Tensors(*data), batch, key, workers)
    if isinstance(data, str | os.PathLike):
        return Source(Images(data), batch, key, workers)
    if isinstance(data, Distribution):
        return Drawn(data, batch, key)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        required(hasattr(data, "__len__"), name, data, "a Dataset that has a length", TypeError)
        required(len(data) > 0, name, data, "a Dataset with at least one sample")  # type: ignore[arg-type]
        return Source(data, batch, key, workers)
    loaded = isinstance(data, Iterable) and not isinstance(data, Iterator | Mapping | list | tuple)
    required(loaded, name, data, KINDS, TypeError)
    return Own(DataLoader(data, batch) if isinstance(data, IterableDataset) else data, key)


def batch_of(items: Any, index: int = 0) -> Batch:
    """The batch of what a loader gives: x, (x,), (x, label) or (x, {name: values}), of which "noise" is the other end.

    Raises:
        TypeError: if it is anything else.
    """
    parts = tuple(items) if isinstance(items, tuple | list) else (items,)
    accepted = "x, (x, label) or (x, {name: values}) with a tensor x"
    required(1 <= len(parts) <= 2 and isinstance(parts[0], Tensor), "a batch of data", items, accepted, TypeError)
    cond = (
        dict(parts[1])
        if len(parts) == 2 and isinstance(parts[1], Mapping)
        else dict(zip(["label"], parts[1:], strict=False))
    )
    return Batch(parts[0], {name: v for name, v in cond.items() if name != "noise"}, index, cond.get("noise"))


def word(*key: int) -> int:
    """A seed of torch's generator made of several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
