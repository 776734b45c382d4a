"""`fit`: train a network from data to a file of weights, to be interrupted and resumed at any moment."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import instance, integer, mapping, number, required
from diffsolve.common.files import dumps, in_folder, parsed, write_tensors
from diffsolve.common.fingerprint import describe
from diffsolve.common.locks import exclusive
from diffsolve.common.records import Records
from diffsolve.models import Model
from diffsolve.training import average, checkpoint
from diffsolve.training import schedule as schedules
from diffsolve.training.average import Average
from diffsolve.training.data import UPDATE, Batch, Own, Source, source, word
from diffsolve.training.distributed import whole
from diffsolve.training.objective import objective as regression
from diffsolve.training.schedule import Schedule

__all__ = ["Look", "Loss", "fit"]

Loss = Callable[..., tuple[Tensor, Any]]
"""loss(model, x0, *, cond, seed, step, index) -> (the loss of each sample (B,), anything)."""
Look = Callable[[Model, int], None]
"""look(model with the averaged weights, step)."""
RECORDS = 200
"""Records of a training in its log, roughly."""
WINDOW = 100
"""Updates over which the reported loss is averaged."""


@dataclass
class Settings:
    """How `fit` trains; its arguments, checked."""

    steps: int
    batch: int
    lr: float
    seed: int
    ema: Average
    schedule: Schedule
    loss: Loss
    optimizer: Callable[..., torch.optim.Optimizer]
    clip: float | None
    accumulate: int
    autocast: torch.dtype | None
    config: dict[str, Any] = field(default_factory=dict)
    """What a checkpoint, a log and the weights' note must agree on, as JSON values."""


def fit(
    model: Model,
    data: Any,
    out: str | os.PathLike[str],
    *,
    steps: int = 20_000,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    objective: Mapping[str, Any] | Loss | None = None,
    ema: float | Average = 0.999,
    schedule: str | Schedule = "cosine",
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    clip: float | None = 1.0,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    workers: int = 0,
    dtype: torch.dtype | None = None,
    note: Mapping[str, Any] | None = None,
    log: str | os.PathLike[str] | None = None,
    look: Look | None = None,
    minutes: float | None = None,
    checkpoint_every: float = 30.0,
    resume: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Train the network of a model and write its averaged weights to a file.

        model = ds.adapt(net, "condot", "velocity")
        report = ds.training.fit(model, images, "flow.safetensors", steps=20_000, progress=True)

    A checkpoint beside `out` holds the whole state of an unfinished run. The same call goes on from it, and ends with
    the bits of an uninterrupted run on the same machine: the order of the data, the noise, the times and the dropout of
    an update depend on (seed, step) alone. At the end the network itself has the averaged weights, and is in evaluation
    mode. The global random state is not changed.

    Args:
        model: of `ds.adapt`, whose network is a module; its parameters that require a gradient are trained.
        data: a tensor x0 (N, ...); a pair (x0, {"label": labels}) of tensors; a torch `Dataset` of x, (x, label) or
            (x, {name: value}); a folder of images, whose subfolders are the classes (`ds.training.Images`); or an
            iterable of batches of these, such as a `DataLoader`, whose batches are taken as they come.
        out: the safetensors file, written as a whole once the training has finished; names as in `net.state_dict()`.
        steps: number of updates in all.
        batch: samples of an update.
        lr: the highest learning rate.
        seed: of everything random here, in [0, 2**64). The initial weights are the caller's.
        objective: options of `ds.training.objective`, {"times": "logit-normal", "drop": 0.1, "uncond": {"label": 10}};
            or any loss(model, x0, *, cond, seed, step, index) -> (loss of each sample (B,), anything).
        ema: the decay of the weights' average per update, or an `Average` such as `ds.training.Power(length=0.1)`.
        schedule: of the learning rate: "cosine(warmup=200)", "constant(warmup=200)", "inverse-root(decay=10000)".
        optimizer: called as optimizer(parameters, lr=lr): a class of `torch.optim`, a `functools.partial` of one, ..
        clip: the largest norm of the gradient; a longer one is shortened. None for no bound.
        accumulate: parts of a batch that are computed one after the other, for memory.
        autocast: torch.bfloat16 for `torch.autocast` around the loss.
        workers: processes that read a Dataset or folder.
        dtype: of the written weights, such as torch.float16; by default as they are.
        note: JSON values to be kept with the weights.
        log: a file of JSON lines (`common.records`): step, loss, learning rate, norm of the gradient, seconds.
        look: called with the model with the averaged weights, and the step, about 200 times: to draw samples, say.
        minutes: stop after this time with a checkpoint, to be resumed later, and without the weights.
        checkpoint_every: seconds between two checkpoints, and so the most that is lost.
        resume: go on from the checkpoint if there is one; False starts again and overwrites it.
        progress: show a bar.

    Returns:
        A report: `out`, `finished`, `steps` so far, `loss` (a moving average), `seconds` and `parameters`.

    Raises:
        ValueError: if an argument is out of range, or the checkpoint is of another run.
        TypeError: if the data are of no known kind, or the network is no module.
        IsADirectoryError: if `out` is a folder.
        BlockingIOError: while another run has the checkpoint.
        FloatingPointError: if the loss is not finite.
    """
    net = _network(model)
    loss = objective if callable(objective) else partial(regression, **mapping("objective", objective))
    settings = Settings(
        integer("steps", steps, 1),
        integer("batch", batch, 1),
        number("lr", lr, above=0),
        integer("seed", seed, 0, 2**64 - 1),
        average.named(ema),
        schedules.named(schedule),
        loss,
        optimizer,
        None if clip is None else number("clip", clip, above=0),
        integer("accumulate", accumulate, 1),
        autocast,
    )
    required(batch % accumulate == 0, "accumulate", accumulate, f"a divisor of the batch, {batch}")
    number("checkpoint_every", checkpoint_every, low=0)
    deadline = math.inf if minutes is None else time.monotonic() + 60 * number("minutes", minutes, above=0)
    file = _file(out)
    reader = source(data, batch, seed, integer("workers", workers, 0))
    settings.config = _config(model, settings, reader, objective)
    devices = [model.device] if model.device.type == "cuda" else []
    saved = file.with_name(f"{file.name}.checkpoint")
    with exclusive(saved), torch.random.fork_rng(devices), _log(log, settings.config, not resume) as records:
        training = Training(model, net, settings)
        if resume and saved.exists():
            training.load(saved)
        keep = _Keeper(training, saved, checkpoint_every, deadline)
        with _bar(progress, steps, training.step) as bar:
            for part in reader.batches(training.step, steps, slice(0, batch)):
                training.update(part.parts(accumulate))
                bar.set_postfix(loss=f"{training.loss:.4f}", refresh=False)
                bar.update()
                training.report(records, look)
                if keep.paused():
                    break
        if training.step == steps:
            training.finish(file, dtype, {**(note or {}), **settings.config, "loss": training.loss})
            saved.unlink(missing_ok=True)
    done = {"finished": training.step == steps, "steps": training.step, "loss": training.loss}
    parameters = sum(p.numel() for p in net.parameters())
    return {"out": str(out), **done, "seconds": training.seconds, "parameters": parameters}


class Training:
    """The state of a training: the network, its optimizer, its average, and how far it is."""

    def __init__(self, model: Model, net: nn.Module, settings: Settings) -> None:
        self.model, self.net, self.settings = model, net.train(), settings
        self.average = average.averaged(net, settings.ema)
        trained = [p for p in net.parameters() if p.requires_grad]
        required(bool(trained), "model.net", net, "a module with parameters that require a gradient")
        self.optimizer = settings.optimizer(trained, lr=settings.lr)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.loss, self.norm, self._began = 0, 0.0, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent so far, including earlier calls."""
        return time.monotonic() - self._began

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the tensors of, beside the optimizer's."""
        return {"weights": self.net, "average": self.average}

    def load(self, file: Path) -> None:
        """Go on from a checkpoint."""
        self.step, self.loss, seconds = checkpoint.load(file, self.modules, self.optimizer, self.settings.config)
        self._began = time.monotonic() - seconds

    def save(self, file: Path) -> None:
        """Write the checkpoint."""
        tensors = checkpoint.state_of(self.modules, self.optimizer)
        note = {"config": self.settings.config, "done": self.step, "loss": self.loss, "seconds": self.seconds}
        checkpoint.save(file, tensors, self.optimizer, note)

    def update(self, batches: list[Batch]) -> None:
        """One step of the optimizer, on the parts of a batch.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        how = self.settings
        torch.manual_seed(word(how.seed, UPDATE, self.step))  # of the dropout, and whatever else the network draws
        factor = how.schedule(self.step, how.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad()
        value = sum(self._backward(part.to(self.model.device), 1 / len(batches)) for part in batches)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if how.clip is None else how.clip))
        self.step += 1
        if not (math.isfinite(value) and math.isfinite(self.norm)):
            what = f"the loss became {value} and the norm of its gradient {self.norm}"
            raise FloatingPointError(f"{what} at step {self.step} of {how.steps}: lower lr")
        self.optimizer.step()
        self.average.update_parameters(self.net)
        self.loss += (value - self.loss) / min(self.step, WINDOW)

    def _backward(self, part: Batch, share: float) -> float:
        """The loss of a part of the batch, whose gradient is added to that of the others."""
        how = self.settings
        with _autocast(self.model.device, how.autocast):
            losses, _ = how.loss(self.model, part.x0, cond=part.cond, seed=how.seed, step=self.step, index=part.index)
        loss = losses.mean() * share
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def report(self, records: Records | None, look: Look | None) -> None:
        """Add to the log and call `look`, if it is time; a resumed run leaves the records that are there."""
        gap = max(1, self.settings.steps // RECORDS)
        if self.step % gap and self.step != self.settings.steps:
            return
        if records is not None and self.step not in records.found:
            rate = self.optimizer.param_groups[0]["lr"]
            records.append(
                {"step": self.step, "loss": self.loss, "lr": rate, "norm": self.norm, "seconds": self.seconds}
            )
        if look is not None:
            look(replace(self.model, net=self.average.module.eval()), self.step)

    def finish(self, file: Path, dtype: torch.dtype | None, note: Mapping[str, Any]) -> None:
        """Put the averaged weights into the network, and into the file."""
        self.net.load_state_dict(self.average.module.state_dict())
        self.net.eval()
        weights = {name: whole(tensor) for name, tensor in self.net.state_dict().items()}
        if dtype is not None:
            weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
        write_tensors(file, weights, checkpoint.KEY, note)


@dataclass
class _Keeper:
    """When a checkpoint is written."""

    training: Training
    file: Path
    every: float
    deadline: float
    last: float = field(default_factory=time.monotonic)

    def paused(self) -> bool:
        """Whether the time is up. Writes the checkpoint then, and where one is due."""
        now = time.monotonic()
        due, paused = now - self.last >= self.every, now > self.deadline
        if (due or paused) and self.training.step < self.training.settings.steps:
            self.training.save(self.file)
            self.last = time.monotonic()
        return paused


def _network(model: Model) -> nn.Module:
    instance("model", model, Model, "a Model, of ds.adapt(net, path, predicts)")
    return instance("model.net", model.net, nn.Module, "a torch module, which has parameters")


def _file(out: str | os.PathLike[str]) -> Path:
    if Path(out).is_dir():
        raise IsADirectoryError(f"out must be a file, got the folder {os.fspath(out)!r}")
    return in_folder(out, "out")


def _config(
    model: Model, how: Settings, reader: Source | Own, objective: Mapping[str, Any] | Loss | None
) -> dict[str, Any]:
    config = {
        "steps": how.steps, "batch": how.batch, "lr": how.lr, "seed": how.seed,
        "ema": describe(how.ema), "schedule": describe(how.schedule), "clip": how.clip, "accumulate": how.accumulate,
        "optimizer": describe(how.optimizer), "autocast": describe(how.autocast),
        "objective": describe(objective or {}), "path": str(model.path), "predicts": model.predicts,
        "data": describe(reader),
    }  # fmt: skip
    return parsed(dumps(config))  # as they are read from a file


@contextmanager
def _log(log: str | os.PathLike[str] | None, config: Mapping[str, Any], anew: bool) -> Iterator[Records | None]:
    if log is None:
        yield None
        return
    with Records(log, config, key=lambda entry: entry["step"], force=anew) as records:
        yield records


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _bar(progress: bool, total: int, initial: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=initial, disable=not progress, unit="step")
