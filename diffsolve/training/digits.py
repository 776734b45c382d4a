"""Training of the reference network of handwritten digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsolve.models import adapt
from diffsolve.reference import digits
from diffsolve.training.fit import fit

__all__ = ["train"]

LABELS = {"drop": 0.1, "uncond": {"label": -1}}
"""A tenth of the samples are trained without their label, as guidance needs."""


def train(
    out: str | Path,
    *,
    steps: int = 4000,
    batch: int = 128,
    lr: float = 2e-3,
    ema: float = 0.999,
    seed: int = 0,
    minutes: float | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    progress: bool = False,
    build: Callable[[], nn.Module] = digits.network,
) -> dict[str, Any]:
    """Train a network on the digits, on the CPU, and write its averaged weights, in float16, to `out`.

    The velocity of the straight path, of the labelled class or of all (`reference.digits`).

    Args:
        out, steps, batch, lr, ema, minutes, checkpoint_every, resume, progress: as in `fit`.
        seed: of the initial weights too.
        build: makes the network, of signature (x, t, label).

    Returns:
        The report of `fit`.

    Raises:
        ImportError: without scikit-learn, which has the images.
    """
    images, labels = digits.load_data()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = adapt(build(), "condot", "velocity")
    return fit(
        model, (images, {"label": labels}), out, steps=steps, batch=batch, lr=lr, ema=ema, seed=seed,
        objective=LABELS, dtype=torch.float16, minutes=minutes, checkpoint_every=checkpoint_every, resume=resume,
        progress=progress,
    )  # fmt: skip
