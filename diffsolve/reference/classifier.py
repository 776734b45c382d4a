"""Small classifiers of the digits and of Fashion-MNIST, for the features in which sets of images are compared.

The counterpart of Inception's pooled features for natural images: the last hidden layer is the features.

| data | trained on | held out | accuracy on those held out |
|---|---|---|---|
| digits | 1347 of scikit-learn's 1797 | 450 | 97 % |
| fashion | 60 000 | the 10 000 of the test part | 91.2 % |
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from diffsolve.common.checks import required
from diffsolve.common.files import match, read_tensors, write_tensors
from diffsolve.reference.data import fashion
from diffsolve.reference.digits import load_data

__all__ = ["Classifier", "load", "split", "train"]

HELD_OUT = 450  # digits
PENALTY = 1e-3  # of the squared weights of a layer that is fitted anew
Labelled = tuple[Tensor, Tensor]  # images and labels


class Classifier(nn.Module):
    """Images -> features, the output of `hidden`; a linear layer of them gives the logits of ten classes."""

    def __init__(self, hidden: nn.Module, features: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.last = nn.Linear(features, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, F): the features."""
        features: Tensor = self.hidden(images)
        return features

    def logits(self, images: Tensor) -> Tensor:
        """(B, 10): the logits of the ten classes."""
        logits: Tensor = self.last(self.hidden(images))
        return logits


def _of_digits() -> Classifier:
    """(B, 1, 8, 8) in [-1, 1] -> (B, 32)."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
    return Classifier(layers, 32)


def _of_fashion() -> Classifier:
    """(B, 1, 28, 28) in [-1, 1] -> (B, 64)."""
    layers = nn.Sequential(
        nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.SiLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.SiLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.SiLU(),
        nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.SiLU(),
        nn.Flatten(), nn.Linear(96 * 16, 64), nn.SiLU(),
    )  # fmt: skip
    return Classifier(layers, 64)


BUILD: dict[str, Callable[[], Classifier]] = {"digits": _of_digits, "fashion": _of_fashion}
FILES = {"digits": "classifier.safetensors", "fashion": "fashion-classifier.safetensors"}


def load(path: str | Path | None = None, *, data: str = "digits") -> Classifier:
    """The trained classifier in float32, its parameters frozen: by default the weights in the package.

    Args:
        path: a file of `train`.
        data: "digits" or "fashion".

    Raises:
        ValueError: if the file is not one of `train`, naming it, or there are no such data.
    """
    _check(data)
    packaged = resources.files(__package__) / "weights" / FILES[data]
    with resources.as_file(packaged) if path is None else nullcontext(Path(path)) as file:
        weights, _ = read_tensors(file)
    with torch.random.fork_rng(devices=[]):
        net = BUILD[data]()
    match(file, weights, net.state_dict())
    net.load_state_dict({name: value.float() for name, value in weights.items()})
    return net.eval().requires_grad_(False)


def split(data: str = "digits") -> tuple[Labelled, Labelled]:
    """(images, labels) to train on, and those held out: a fixed permutation of the digits, Fashion's own parts."""
    _check(data)
    if data == "fashion":
        return fashion("train"), fashion("test")
    images, labels = load_data()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    here, there = order[HELD_OUT:], order[:HELD_OUT]
    return (images[here], labels[here]), (images[there], labels[there])


@torch.random.fork_rng(devices=[])
def train(
    out: str | Path,
    *,
    data: str = "digits",
    steps: int = 1500,
    batch: int = 128,
    lr: float = 3e-3,
    seed: int = 0,
    progress: bool = False,
) -> Classifier:
    """Train a classifier on the CPU and write its weights, in float16, to the safetensors file `out`.

    The digits take seconds; Fashion-MNIST, with steps=2500, five minutes of one core. The images are shifted by up to
    one pixel and slightly noised, so that the features are smooth. Of Fashion-MNIST the last layer is then fitted anew
    to the images as they are, which leaves the features alone.
    """
    _check(data)
    torch.manual_seed(seed)
    (images, labels), _ = split(data)
    side = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), value=-1.0)
    net = BUILD[data]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), unit="step", disable=not progress):
        pick = torch.randint(len(images), (batch,))
        top, left = torch.randint(3, (2,)).tolist()
        x = padded[pick, :, top : top + side, left : left + side]
        loss = F.cross_entropy(net.logits(x + 0.1 * torch.randn_like(x)), labels[pick], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if data == "fashion":
        fit_last(net, images, labels)
    write_tensors(out, {name: value.half() for name, value in net.state_dict().items()})
    return load(out, data=data)


def fit_last(net: Classifier, images: Tensor, labels: Tensor) -> None:
    """Logistic regression of the labels on the features, with a small penalty, by L-BFGS."""
    with torch.no_grad():
        features = torch.cat([net(chunk) for chunk in torch.split(images, 500)])
    optimizer = torch.optim.LBFGS(net.last.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(net.last(features), labels) + PENALTY * net.last.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def _check(data: str) -> None:
    required(data in BUILD, "data", data, " or ".join(map(repr, BUILD)))
