"""Small idx files, as those of Fashion-MNIST."""

import gzip
import math
from pathlib import Path


def idx(*sizes: int) -> bytes:
    """An idx file of unsigned bytes 0, 1, 2, .."""
    body = bytes(i % 256 for i in range(math.prod(sizes)))
    return bytes((0, 0, 8, len(sizes))) + b"".join(size.to_bytes(4, "big") for size in sizes) + body


def clothes(folder: Path, train: int = 2, test: int = 1) -> Path:
    """A folder like Fashion-MNIST's: images to train on, gzipped, and to test on, not."""
    for name, count in (("train", train), ("t10k", test)):
        for kind, sizes in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            file = folder / f"{name}-{kind}-ubyte"
            if name == "train":
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(idx(*sizes)))
            else:
                file.write_bytes(idx(*sizes))
    return folder
