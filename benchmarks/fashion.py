r"""Fashion-MNIST by the reference networks: distance to the data beside data and a Gaussian mixture, and a picture.

    python -m benchmarks fashion                       # half an hour on an idle core
    python -m benchmarks fashion --num 1000 --resume   # a look, beside the records that are there
    python -m benchmarks fashion --names fashion-edm --resume

`--num` samples of each network, of labels at random, by the default solver with 20 calls, in the features of a small
classifier that `diffsolve.reference.classifier` describes; the Frechet distance (FD) is to all 60 000 training images.
Beside them as many of the training images and of the test images, and samples of Gaussian mixtures that scikit-learn
fits to the images of each class in 64 principal components. The picture has samples with the nearest training image,
by Euclidean distance of the pixels, to the right of each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from record import Recorder, Table
from torch import Tensor

import diffsolve as ds
from diffsolve.metrics import Statistics, frechet
from diffsolve.metrics.data import DATA
from diffsolve.reference import classifier, data

NAMES = ("fashion", "fashion-noise", "fashion-edm", "fashion-latent")
SHAPES = dict.fromkeys(NAMES, (1, 28, 28)) | {"fashion-latent": (4, 7, 7)}
CALLS, NUM, BATCH = 20, 10_000, 200
COMPONENTS = (1, 10)
"""Gaussians to a class."""
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "fashion.png"


@cache
def features() -> classifier.Classifier:
    return classifier.load(data="fashion")


def labels_of(num: int) -> Tensor:
    """Classes at random, and not in turn, which would be a stratified sample: closer to the data than data are."""
    return torch.randint(10, (num,), generator=torch.Generator().manual_seed(0))


def draw(name: str, labels: Tensor, first: int = 0, **options: object) -> Tensor:
    """Images of a reference network, of these classes; sample i has the noise of number first + i."""
    model, images = ds.load(name), []
    decode = getattr(model.net, "decode", lambda x: x)
    for start in range(0, len(labels), BATCH):
        part = labels[start : start + BATCH]
        shape = (len(part), *SHAPES[name])
        x = ds.sample(model, shape, seed=0, index=first + start, cond={"label": part}, **options)
        images.append(decode(x))
    return torch.cat(images)


@torch.no_grad()
def scores(images: Tensor, labels: Tensor | None) -> tuple[float, float | None]:
    """FD to the training images, and the share of images that the classifier takes for what they should be, in %."""
    net = features()
    rows = torch.cat([net(chunk) for chunk in images.split(BATCH)])
    found = Statistics.of(rows, keep=0)
    accuracy = None if labels is None else 100 * float((net.last(rows).argmax(1) == labels).double().mean())
    return frechet(found, DATA["fashion"]()), accuracy


def mixture(num: int, components: int) -> tuple[Tensor, Tensor]:
    """Samples of mixtures of so many Gaussians fitted to each class, and their labels.

    They are not clipped to [-1, 1], which would take them further from the data; nothing here is.
    """
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    (images, classes), labels = data.fashion(), labels_of(num)
    out = torch.empty(num, 1, 28, 28)
    for label in range(10):
        rows = labels == label
        basis = PCA(64, random_state=0)
        numbers = basis.fit_transform(images[classes == label].flatten(1).double().numpy())
        fitted = GaussianMixture(components, random_state=0).fit(numbers)
        drawn = basis.inverse_transform(fitted.sample(int(rows.sum()))[0])
        out[rows] = torch.from_numpy(drawn).float().view(-1, 1, 28, 28)
    return out, labels


def ratios(fd: float, table: Table) -> list[float | None]:
    """FD over that of the mixtures, as far as it is there."""
    bars = [table.value([f"mixture, Gaussians to a class: {components}"], "FD") for components in COMPONENTS]
    return [None if bar is None else fd / bar for bar in bars]


def nearest(images: Tensor, among: Tensor) -> Tensor:
    """For each image the nearest of others."""
    distances = torch.cdist(images.flatten(1), among.flatten(1))
    return among[distances.argmin(1)]


def picture(samples: dict[str, Tensor], file: Path) -> None:
    """A row for each class; of each network two samples with the nearest training image beside each."""
    from diffsolve.cli.pictures import grid_image

    among = data.fashion()[0]
    rows = []
    for label in range(10):
        for images in samples.values():
            for image in images[label::10][:2]:
                rows += [image[None], nearest(image[None], among)]
    image = grid_image(torch.cat(rows).numpy(), columns=4 * len(samples))
    image.resize((2 * image.width, 2 * image.height), 0).save(file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fashion-MNIST by the reference networks.")
    parser.add_argument("--names", nargs="*", default=list(NAMES), help="none: only what they are compared with")
    parser.add_argument("--num", type=int, default=NUM, help="samples of each")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("fashion", resume=options.resume)
    against = {f"FD / mixture of {components}": ".3f" for components in COMPONENTS}
    columns = {"FD": ".3g", **against, "right class": (".1f", "%"), "a sample": (".1f", "ms")}
    table = recorder.table(f"{options.num} images against the 60 000 training images", ["images"], columns)
    if table.value(["data: test part"], "FD") is None:
        images, classes = data.fashion()
        pick = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: options.num]
        for components in COMPONENTS:
            fd, accuracy = scores(*mixture(options.num, components))
            table.add([f"mixture, Gaussians to a class: {components}"], [fd, *ratios(fd, table), accuracy, None])
        test, truth = (part[: options.num] for part in data.fashion("test"))
        for name, real, label in (("training part", images[pick], classes[pick]), ("test part", test, truth)):
            fd, accuracy = scores(real, label)
            table.add([f"data: {name}"], [fd, *ratios(fd, table), accuracy, None])
    labels = labels_of(options.num)
    for name in options.names:
        began = time.perf_counter()
        drawn = draw(name, labels, nfe=CALLS)
        cost = 1e3 * (time.perf_counter() - began) / options.num
        fd, accuracy = scores(drawn, labels)
        table.add([f"{name}, {CALLS} calls"], [fd, *ratios(fd, table), accuracy, cost])
    turn = torch.arange(20) % 10
    if options.names:
        picture({name: draw(name, turn, nfe=CALLS) for name in options.names}, options.picture)


if __name__ == "__main__":
    main()
