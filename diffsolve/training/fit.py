"""`fit`: train a network from data to a file of weights, to be interrupted and resumed at any moment."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from diffsolve.common.checks import instance, integer, number
from diffsolve.common.files import in_folder
from diffsolve.common.locks import exclusive
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.common.records import Records
from diffsolve.models import Model
from diffsolve.training.data import Reader, TwoSided, source
from diffsolve.training.distributed import world
from diffsolve.training.options import DEFAULTS, FitOptions, Settings
from diffsolve.training.trainer import Keeper, Trainer

__all__ = ["fit"]


@shows(FitOptions, **DEFAULTS)
def fit(model: Model, data: Any, out: str | os.PathLike[str], **options: Unpack[FitOptions]) -> dict[str, Any]:
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
            iterable of batches of these, such as a `DataLoader`, whose batches are taken as they come; or a
            `torch.distributions.Distribution`.
            An entry {"noise": ..} of a mapping is the other end of the pair (`ds.training.reflow`), not a condition.
        out: the safetensors file, written as a whole once the training has finished; names as in `net.state_dict()`.
        steps: number of updates in all.
        batch: samples of an update.
        lr: the highest learning rate.
        seed: of everything random here, in [0, 2**64). The initial weights are the caller's.
        noise: the other end in place of normals, of the size that sigma multiplies: data of any of these kinds.
        objective: options of `ds.training.objective`, {"times": "logit-normal", "drop": 0.1, "uncond": {"label": 10}};
            or any loss(model, x0, *, cond, seed, step, index) -> (loss of each sample (B,), anything).
        ema: the decay of the weights' average per update, or an `Average` such as `ds.training.Power(length=0.1)`.
        schedule: of the learning rate: "cosine(warmup=200)", "constant(warmup=200)", "inverse-root(decay=10000)".
        optimizer: called as optimizer(parameters, lr=lr): a class of `torch.optim`, a `functools.partial` of one, ..
        clip: the largest norm of the gradient; a longer one is shortened. None for no bound.
        accumulate: parts of a batch that are computed one after the other, for memory.
        autocast: torch.bfloat16 for `torch.autocast` around the loss.
        parallel: with several ranks (under `torchrun`, or in a group of `torch.distributed`), what makes the network
            one of all ranks: DDP, a `functools.partial` of it, or a function that calls `fully_shard` (FSDP2) on the
            network and its blocks and returns it. Each rank computes an equal part of the batch; without dropout the
            weights are those of one rank, to rounding. The first rank writes; all see its files.
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
        ConnectionError: if another rank ended or does not answer.
    """
    refuse_unknown("fit", options, FitOptions)
    given: dict[str, Any] = {**dict.fromkeys(FitOptions.__annotations__), **DEFAULTS, **options}
    net = _network(model)
    file, saved = _files(out)
    settings = Settings.of(given)
    reader = _reader(data, given["noise"], settings, integer("workers", given["workers"], 0))
    settings = settings.about(model, reader)
    minutes = given["minutes"]
    deadline = math.inf if minutes is None else time.monotonic() + 60 * number("minutes", minutes, above=0)
    every = number("checkpoint_every", given["checkpoint_every"], low=0)
    devices = [model.device] if model.device.type == "cuda" else []
    with world(model.device) as ranks, ExitStack() as stack:
        ranks.once(lambda: stack.enter_context(exclusive(saved)))
        records = ranks.once(lambda: stack.enter_context(_log(given["log"], settings.config, not given["resume"])))
        stack.enter_context(torch.random.fork_rng(devices))
        trainer = Trainer(model, net, settings, ranks)
        if ranks.shared(given["resume"] and saved.exists()):
            trainer.load(saved)
        _train(trainer, Keeper(trainer, saved, every, deadline), reader, records, given)
        finished = trainer.step == settings.steps
        if finished:
            note = {**(given["note"] or {}), **settings.config, "loss": trainer.loss}
            trainer.finish(file, given["dtype"], note)
            ranks.once(lambda: saved.unlink(missing_ok=True))
    report = {"out": str(out), "finished": finished, "steps": trainer.step, "loss": trainer.loss}
    return {**report, "seconds": trainer.seconds, "parameters": sum(p.numel() for p in net.parameters())}


def _train(trainer: Trainer, keeper: Keeper, reader: Reader, records: Records | None, given: Mapping[str, Any]) -> None:
    """The updates that are left, or as many as there is time for."""
    steps, ranks = trainer.settings.steps, trainer.ranks
    batches = reader.batches(trainer.step, steps, ranks.part(trainer.settings.batch))
    with _bar(given["progress"] and ranks.first, steps, trainer.step) as bar:
        try:
            for batch in batches:
                due, paused = trainer.update(batch, *keeper.due())
                bar.set_postfix(loss=f"{trainer.loss:.4f}", refresh=False)
                bar.update()
                trainer.report(records, given["look"])
                keeper.keep(due, paused)
                if paused:
                    return
        except ConnectionError:
            trainer.rescue(keeper.file)
            raise


def _reader(data: Any, noise: Any, how: Settings, workers: int) -> Reader:
    reader = source(data, how.batch, (how.seed,), workers)
    return reader if noise is None else TwoSided(reader, source(noise, how.batch, (how.seed, 1), workers, "noise"))


def _network(model: Model) -> nn.Module:
    instance("model", model, Model, "a Model, of ds.adapt(net, path, predicts)")
    return instance("model.net", model.net, nn.Module, "a torch module, which has parameters")


def _files(out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The file of weights and its checkpoint."""
    if Path(out).is_dir():
        raise IsADirectoryError(f"out must be a file, got the folder {os.fspath(out)!r}")
    file = in_folder(out, "out")
    return file, file.with_name(f"{file.name}.checkpoint")


@contextmanager
def _log(log: str | os.PathLike[str] | None, config: Mapping[str, Any], anew: bool) -> Iterator[Records | None]:
    if log is None:
        yield None
        return
    with Records(log, config, key=lambda entry: entry["step"], force=anew) as records:
        yield records


def _bar(progress: bool, total: int, initial: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=initial, disable=not progress, unit="step")
