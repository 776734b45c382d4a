r"""A small flow-matching model of handwritten digits, with its training.

The data are scikit-learn's 1797 digits of 8 by 8 pixels. The path is CondOT,
:math:`x_t = t \, x_0 + (1 - t) \, \epsilon` with noise at `t = 0` and data at `t = 1`, and the network
predicts the velocity :math:`v = dx_t/dt = x_0 - \epsilon` of the labelled class, or of all classes
without a label, as classifier-free guidance needs.

References:
    | Flow Matching for Generative Modeling (Lipman et al., 2022), https://arxiv.org/abs/2210.02747
    | Classifier-Free Diffusion Guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from diffsolve.common.checks import integer, number, required
from diffsolve.common.files import match, read_tensors, reading, write_tensors
from diffsolve.common.locks import exclusive
from diffsolve.reference.unet import UNet

__all__ = ["load", "load_data", "network", "train"]

WARMUP = 200  # steps over which the learning rate rises
LABEL_DROPOUT = 0.1  # share of the samples trained without their label
KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object


def load_data() -> tuple[Tensor, Tensor]:
    """Read the digits from scikit-learn.

    Returns:
        The images in [-1, 1] as float32, with shape (1797, 1, 8, 8), and their labels as int64.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come from scikit-learn: pip install 'diffsolve[train]'") from error
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.as_tensor(data.target, dtype=torch.int64)


def network() -> UNet:
    """The architecture of the packaged weights, freshly initialised."""
    return UNet(in_channels=1, channels=24, multipliers=(1, 2), num_classes=10, dropout=0.1)


def load(path: str | Path | None = None, *, build: Callable[[], UNet] = network) -> UNet:
    """The trained network in float32, in evaluation mode, its parameters frozen.

    Args:
        path: A file written by `train`; by default the weights in the package.
        build: Makes the network that the weights belong to.

    Raises:
        ValueError: if the file is not a safetensors file, or not of this network.
    """
    packaged = resources.files(__package__) / "weights" / "digits.safetensors"
    with resources.as_file(packaged) if path is None else nullcontext(Path(path)) as file:
        weights, _ = read_tensors(file, KEY)
    with torch.random.fork_rng(devices=[]):
        net = build()
    match(file, weights, net.state_dict())
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    return net.eval().requires_grad_(False)


@torch.random.fork_rng(devices=[])  # everything here draws from the default generator, dropout included
def train(
    out: str | Path,
    *,
    steps: int = 4000,
    batch: int = 128,
    lr: float = 2e-3,
    ema: float = 0.999,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool = False,
    resume: bool = True,
    checkpoint_every: int = 500,
    build: Callable[[], UNet] = network,
) -> dict[str, Any]:
    """Train a network on the digits, on the CPU, and write its averaged weights, in float16, to `out`.

    A checkpoint beside `out` holds the whole state of an unfinished run. The same call resumes from it; with
    the same number of threads the result is bit for bit that of an uninterrupted run. The global random state
    is not changed.

    Args:
        out: The safetensors file, written once the training has finished.
        steps: Number of updates in total. The learning rate rises, then falls to zero along a cosine.
        batch: Images in each update.
        lr: The highest learning rate of AdamW.
        ema: Decay of the moving average of the weights, per step.
        seed: Seed of the initial weights, the batches, the times, the noise and the dropout.
        minutes: Stop after this time with a checkpoint, to be resumed later, and without the weights.
        progress: Show a bar.
        resume: Resume from the checkpoint if there is one; False starts again and overwrites it.
        checkpoint_every: Steps between two checkpoints.
        build: Makes the network, of signature `(x, t, label)`.

    Returns:
        A report: `out`, `finished`, `steps` so far, `loss` (a moving average), `seconds` and `parameters`.

    Raises:
        ValueError: if an argument is out of range, or the checkpoint is of another run.
        IsADirectoryError: if `out` is a folder.
        BlockingIOError: while another run has the checkpoint.
        FloatingPointError: if the loss is not finite.
    """
    config = {"steps": steps, "batch": batch, "lr": lr, "ema": ema, "seed": seed}
    for name, count in (("steps", steps), ("batch", batch), ("checkpoint_every", checkpoint_every)):
        integer(name, count, 1)
    number("lr", lr, above=0)
    number("ema", ema, low=0, below=1)
    if minutes is not None:
        number("minutes", minutes, above=0)
    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"out must be a file, got the folder {str(out)!r}")
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_name(out.name + ".checkpoint")
    with exclusive(checkpoint):
        torch.default_generator.manual_seed(seed)
        state = _Training(build().train(), config)
        if resume and checkpoint.exists():
            state.load(checkpoint)
        images, labels = load_data()
        deadline = time.monotonic() + 60 * minutes if minutes is not None else math.inf
        with tqdm(total=steps, initial=state.step, unit="step", disable=not progress) as bar:
            while state.step < steps:
                state.update(*_draw(images, labels, batch))
                bar.set_postfix(loss=f"{state.loss:.4f}", refresh=False)
                bar.update()
                paused = time.monotonic() > deadline
                if state.step < steps and (paused or state.step % checkpoint_every == 0):
                    state.save(checkpoint)
                if paused:
                    break
        if state.step == steps:
            weights = {name: p.half() for name, p in state.average.items()}
            write_tensors(out, weights, KEY, {**config, "loss": state.loss})
            checkpoint.unlink(missing_ok=True)
    parameters = sum(p.numel() for p in state.net.parameters())
    report = {"finished": state.step == steps, "steps": state.step, "loss": state.loss, "seconds": state.seconds}
    return {"out": str(out), **report, "parameters": parameters}


class _Training:
    """A training run: the network, AdamW, the averaged weights, and what a checkpoint saves of them."""

    def __init__(self, net: UNet, config: Mapping[str, Any]) -> None:
        self.net, self.config = net, config
        self.generator = torch.default_generator
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"])
        self.average: dict[str, Tensor] = {}
        self.live: dict[str, Tensor] = {}  # every tensor that a checkpoint holds
        for name, p in net.named_parameters():
            self.average[name] = p.detach().clone()
            # AdamW's own initial state, created here so that a checkpoint can be copied into it.
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.zeros(())}
            self.optimizer.state[p] = moments
            self.live |= {f"{key}/{name}": moment for key, moment in moments.items()}
            self.live |= {f"weights/{name}": p.detach(), f"average/{name}": self.average[name]}
        self.step, self.loss, self._began = 0, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent so far, including earlier calls."""
        return time.monotonic() - self._began

    def load(self, checkpoint: Path) -> None:
        """Restore the state from a checkpoint.

        Raises:
            ValueError: if the file is not a checkpoint, or has other settings.
        """
        accepted = "the checkpoint of a training"
        state, note = read_tensors(checkpoint, KEY, accepted=accepted)
        with reading(checkpoint, accepted):
            config = note["config"]
            required(isinstance(config, dict), "config", config, "a mapping")
        differ = [f"{name}={config.get(name)!r} there" for name in self.config if config.get(name) != self.config[name]]
        if differ:
            raise ValueError(
                f"checkpoint must be of a run with {self.config}, got {str(checkpoint)!r} with {', '.join(differ)}: "
                "delete it or pass resume=False (--no-resume)"
            )
        with reading(checkpoint, accepted):
            done = integer("done", note["done"], 1, self.config["steps"] - 1)
            loss, seconds = number("loss", note["loss"]), number("seconds", note["seconds"], low=0)
            random, mine = state.pop("generator"), self.generator.get_state()
            fits = (random.shape, random.dtype) == (mine.shape, mine.dtype)
            required(fits, "generator", random, f"of shape {tuple(mine.shape)} and dtype {mine.dtype}")
            match(checkpoint, state, self.live)
            self.generator.set_state(random)
        for key, saved in state.items():
            self.live[key].copy_(saved)
        self.step, self.loss = done, loss
        self._began = time.monotonic() - seconds

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint."""
        note = {"config": self.config, "done": self.step, "loss": self.loss, "seconds": self.seconds}
        write_tensors(checkpoint, {"generator": self.generator.get_state(), **self.live}, KEY, note)

    def update(self, x: Tensor, t: Tensor, label: Tensor, velocity: Tensor) -> None:
        """One step of AdamW; the rate rises, then falls to zero along a cosine."""
        steps = self.config["steps"]
        rise, fall = min((self.step + 1) / WARMUP, 1.0), 0.5 * (1 + math.cos(math.pi * self.step / steps))
        self.optimizer.param_groups[0]["lr"] = self.config["lr"] * rise * fall
        error = F.mse_loss(self.net(x, t, label=label), velocity)
        self.optimizer.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step, value = self.step + 1, error.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {self.step} of {steps}: lower lr")
        self.loss += (value - self.loss) / min(self.step, 100)
        decay = min(self.config["ema"], self.step / (self.step + 9))  # shorter memory at the start
        for name, p in self.net.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - decay)


def _draw(images: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Draw the network's inputs x, t and label, and the velocity that is the target."""
    pick = torch.randint(len(images), (batch,))
    data, noise = images[pick], torch.randn(batch, *images.shape[1:])
    t = (torch.arange(batch) + torch.rand(batch)) / batch  # one in each 1/batch of [0, 1]
    unlabelled = torch.rand(batch) < LABEL_DROPOUT
    blend = t[:, None, None, None]
    return blend * data + (1 - blend) * noise, t, labels[pick].masked_fill(unlabelled, -1), data - noise
