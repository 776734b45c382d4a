"""Inpainting the digits: Frechet distance to the data and what a class is recognised by, for each posterior method.

Half of each of the first 300 digits of scikit-learn's set is known, the left one or the upper one in turn, with noise
of deviation 0.05; a network that nobody trained for it fills in the other, without a label. FD is between the filled
digits and all 1797, in the features of the packaged classifier; "class kept" is the share that it takes for the digit's
own class; "error" is the root mean square over what was unknown.

    python benchmarks/conditioning.py            # results/conditioning.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from record import Recorder
from torch import Tensor

import diffsolve as ds
from diffsolve import metrics
from diffsolve.conditioning import Mask, posterior
from diffsolve.reference import classifier
from diffsolve.reference.digits import load_data

NUM, NOISE = 300, 0.05
ODE: dict[str, object] = {"solver": "unipc-3", "steps": 15}
SDE: dict[str, object] = {"solver": "ddim(eta=1)", "steps": 15}
METHODS = {
    "replacement": ("replacement", SDE),
    "RePaint, 5 times": ("replacement", {"solver": "repaint(resamples=5)", "steps": 15}),
    "DPS, 60 steps": ("dps(zeta=0.5)", {"solver": "ddim(eta=1)", "steps": 60}),
    "PiGDM": ("pigdm", SDE),
    "TMPD": ("tmpd", SDE),
    "MMPS, 1 iteration": ("mmps(iterations=1)", SDE),
    "MMPS, 3 iterations": ("mmps(iterations=3)", SDE),
    "MMPS, 3 iterations, 60 steps": ("mmps(iterations=3)", {"solver": "ddim(eta=1)", "steps": 60}),
    "MMPS, 3 iterations, ODE": ("mmps(iterations=3)", ODE),
}
"""name -> the method and the run."""


def masks() -> tuple[Tensor, ...]:
    """The left half, the upper half."""
    left = torch.arange(8).expand(8, 8) < 4
    return left, left.T


def filled(images: Tensor, method: str, run: dict[str, object]) -> Tensor:
    """The digits with their unknown halves made."""
    made = torch.empty_like(images)
    for i, mask in enumerate(masks()):
        whole, known = images[i::2], Mask(mask)
        y = known(whole + NOISE * ds.Key(5 + i).normal(whole.shape))
        model = posterior(ds.load("digits"), known, noise=NOISE, method=method, sigma_data=0.7)
        made[i::2] = ds.sample(model, whole.shape, seed=i, cond={"observed": y}, **run)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Inpainting the digits, by method.")
    parser.add_argument("--num", type=int, default=NUM, help="digits; without records, if not the default")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("conditioning", "" if options.num == NUM else None)
    columns = {"FD": ".3g", "class kept": (".0f", "%"), "error": ".2f", "a digit": (".0f", "ms")}
    table = recorder.table(f"{options.num} digits", ["method"], columns)
    data, labels = load_data()
    images, labels, judge = data[: options.num], labels[: options.num], classifier.load()
    reference = metrics.Statistics.of(data, judge)
    unknown = torch.stack([~mask for mask in masks()])[torch.arange(len(images)) % 2][:, None]

    def row(name: str, made: Tensor, cost: float | None) -> None:
        fd = metrics.frechet(metrics.Statistics.of(made, judge), reference)
        right = 100 * float((judge.logits(made).argmax(1) == labels).float().mean())
        table.add([name], [fd, right, float((made - images)[unknown].square().mean().sqrt()), cost])

    row("the digits themselves", images, None)
    row("other digits, drawn freely", ds.sample(ds.load("digits"), images.shape, nfe=15, seed=0), None)
    for name, (method, run) in METHODS.items():
        began = time.process_time()
        made = filled(images, method, run)
        row(name, made, 1e3 * (time.process_time() - began) / len(images))


if __name__ == "__main__":
    main()
