r"""Latent against pixel space on Fashion-MNIST: distance to the data against seconds.

    python -m benchmarks latent            # three minutes on an idle core; results/latent.jsonl and docs/latent.png

A flow on the 196 numbers of an autoencoder's latents and one on the 784 pixels, both CondOT velocities of the default
solver; the decoder's time is included. Beside them the training images sent through the autoencoder, which no flow on
its latents can be expected to surpass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from fashion import BATCH, draw, labels_of, scores
from record import Recorder

import diffsolve as ds
from diffsolve.reference import data

CALLS = (3, 5, 10, 20)
NUM = 1000
NAMES = {"pixels": "fashion", "latents": "fashion-latent"}
PLOT = Path(__file__).resolve().parents[1] / "docs" / "latent.png"


def reconstructed(num: int) -> float:
    """FD of training images that went through the autoencoder."""
    net = ds.load("fashion-latent").net
    images = data.fashion()[0]
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num]]
    return scores(torch.cat([net.decode(net.encode(chunk)) for chunk in images.split(BATCH)]), None)[0]


def plot(found: dict[str, list[tuple[float, float]]], floor: float, file: Path) -> None:
    from matplotlib import pyplot as plt

    plt.style.use("diffsolve.common.look")
    figure = plt.figure(figsize=(5, 3.5))
    panel = figure.subplots()
    for name, cells in found.items():
        panel.plot(*zip(*cells, strict=True), marker=".", label=name)
    panel.axhline(floor, color="grey", linestyle=":", label="images through the autoencoder")
    panel.set(xscale="log", ylim=(0, None), xlabel="milliseconds for a sample, one core", ylabel="FD")
    panel.set_xticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"], minor=False)
    panel.xaxis.set_minor_formatter("")
    panel.legend()
    figure.savefig(file)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Latent against pixel space on Fashion-MNIST.")
    parser.add_argument("--num", type=int, default=NUM, help="samples of each; without records, if not the default")
    parser.add_argument("--plot", type=Path, default=PLOT)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("latent", "" if options.num == NUM else None)
    columns = {"FD": ".3g", "right class": (".1f", "%"), "a sample": (".1f", "ms")}
    table = recorder.table(f"{options.num} samples", ["space", "calls"], columns)
    labels, found = labels_of(options.num), {}
    floor = reconstructed(options.num)
    table.add(["training images through the autoencoder", ""], [floor, None, None])
    for space, name in NAMES.items():
        for calls in CALLS:
            began = time.process_time()
            images = draw(name, labels, nfe=calls)
            cost = 1e3 * (time.process_time() - began) / options.num
            fd, accuracy = scores(images, labels)
            table.add([space, calls], [fd, accuracy, cost])
            found.setdefault(space, []).append((cost, fd))
    plot(found, floor, options.plot)


if __name__ == "__main__":
    main()
