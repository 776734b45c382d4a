"""The state of a training, its update, and what it writes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffsolve.common.checks import required
from diffsolve.common.files import write_tensors
from diffsolve.common.records import Records
from diffsolve.models import Model
from diffsolve.training import average, checkpoint
from diffsolve.training.data import UPDATE, Batch, word
from diffsolve.training.distributed import World, together, unsynchronised, whole
from diffsolve.training.options import Look, Settings

__all__ = ["Keeper", "Trainer"]

RECORDS = 200
"""Records of a training in its log, roughly."""
WINDOW = 100
"""Updates over which the reported loss is averaged."""


class Trainer:
    """The state of a training: the network, its optimizer, its average, and how far it is."""

    def __init__(self, model: Model, net: nn.Module, settings: Settings, ranks: World) -> None:
        self.model, self.net, self.settings, self.ranks = model, net.train(), settings, ranks
        required(any(p.requires_grad for p in net.parameters()), "model.net", net, "a module with parameters to train")
        ranks.equalise(net)
        self.device = model.device
        self.averages = [average.averaged(net, kind) for kind in settings.ema]
        self.parallel = net if ranks.size == 1 else settings.parallel(net)
        self.sharded = ranks.size > 1 and self.parallel is net
        if self.sharded:
            for mean in self.averages:
                mean.module = settings.parallel(mean.module)
        self.trained = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = settings.optimizer(self.trained, lr=settings.lr)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.step, self.loss, self.norm, self._began = 0, 0.0, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent so far, including earlier calls."""
        return time.monotonic() - self._began

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a checkpoint holds the tensors of, beside the optimizer's."""
        others = {f"average{i}": mean for i, mean in enumerate(self.averages[1:], 1)}
        return {"weights": self.net, "average": self.averages[0], **others}

    def load(self, file: Path) -> None:
        """Go on from a checkpoint."""
        self.step, self.loss, seconds = checkpoint.load(file, self.modules, self.optimizer, self.settings.config)
        self._began = time.monotonic() - seconds

    def save(self, file: Path) -> None:
        """Write the checkpoint, which the first rank does."""
        tensors = checkpoint.state_of(self.modules, self.optimizer) if self.sharded or self.ranks.first else {}
        note = {"config": self.settings.config, "done": self.step, "loss": self.loss, "seconds": self.seconds}
        self.ranks.once(lambda: checkpoint.save(file, tensors, self.optimizer, note))

    def rescue(self, file: Path) -> None:
        """Write the checkpoint after another rank was lost, if this one has everything."""
        if self.ranks.first and not self.sharded and 0 < self.step < self.settings.steps:
            self.ranks = World()
            self.save(file)

    def update(self, batch: Batch, *flags: bool) -> list[bool]:
        """One step of the optimizer.

        Args:
            batch: this rank's part.
            flags: what the first rank decided, for all ranks to know.

        Returns:
            The first rank's flags.

        Raises:
            FloatingPointError: if the loss is not finite.
            ConnectionError: if a rank is gone; then nothing has changed.
        """
        how = self.settings
        seed_device(self.device, word(how.seed, UPDATE, self.step, self.ranks.rank))  # of the dropout, for one
        self.optimizer.zero_grad()
        parts = batch.parts(how.accumulate)
        mine = sum(self._backward(part.to(self.device), len(parts), part is not parts[-1]) for part in parts)
        said = [float(flag and self.ranks.first) for flag in flags]
        value, *told = self.ranks.mean([mine, *said], self.device)
        limit = math.inf if how.clip is None else how.clip
        self.norm = float(whole(nn.utils.clip_grad_norm_(self.trained, limit)))
        if not (math.isfinite(value) and math.isfinite(self.norm)):
            what = f"the loss became {value} and the norm of its gradient {self.norm}"
            raise FloatingPointError(f"{what} at step {self.step + 1} of {how.steps}: lower lr")
        factor = how.schedule(self.step, how.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        for mean in self.averages:
            mean.update_parameters(self.net)
        self.step += 1
        self.loss += (value - self.loss) / min(self.step, WINDOW)
        return [flag > 0 for flag in told]

    def _backward(self, part: Batch, parts: int, more: bool) -> float:
        """The loss of a part of the batch, whose gradient is added to that of the others."""
        how = self.settings
        model = replace(self.model, net=self.parallel)
        with unsynchronised(self.parallel, more), together():
            with _autocast(self.device, how.autocast):
                key = {"seed": how.seed, "step": self.step, "index": part.index}
                pairs: dict[str, Any] = {} if part.noise is None else {"noise": part.noise}
                if getattr(how.loss, "averaged", False):  # whose target is a slow copy of the network
                    pairs["target"] = replace(self.model, net=self.averages[0].module)
                losses, _ = how.loss(model, part.x0, cond=part.cond, **key, **pairs)
                loss = losses.mean() / parts
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
        if look is not None and (self.sharded or self.ranks.first):
            look(replace(self.model, net=self.averages[0].module.eval()), self.step)

    def snapshot(self, file: Path) -> None:
        """Save all averages if it is time, to be combined later."""
        how = self.settings
        if how.snapshots and (self.step * how.snapshots) // how.steps > ((self.step - 1) * how.snapshots) // how.steps:
            for kind, mean in zip(how.ema, self.averages, strict=True):
                assert isinstance(kind, average.Power)
                about = {"step": self.step, "length": kind.length}
                self.write(file.with_name(f"{file.name}-{kind.length:g}-{self.step}"), mean.module, None, about)

    def finish(self, file: Path, dtype: torch.dtype | None, note: Mapping[str, Any]) -> None:
        """Put the averaged weights into the network, and into the file."""
        self.net.load_state_dict(self.averages[0].module.state_dict())
        self.write(file, self.net.eval(), dtype, note)

    def write(self, file: Path, net: nn.Module, dtype: torch.dtype | None, note: Mapping[str, Any]) -> None:
        """Write the weights of a network, which the first rank does."""
        weights = {name: whole(tensor) for name, tensor in net.state_dict().items()}
        if dtype is not None:
            weights = {name: t.to(dtype) if t.is_floating_point() else t for name, t in weights.items()}
        self.ranks.once(lambda: write_tensors(file, weights, average.KEY, note))


@dataclass
class Keeper:
    """When a checkpoint is written."""

    trainer: Trainer
    file: Path
    every: float
    deadline: float
    last: float = field(default_factory=time.monotonic)

    def due(self) -> tuple[bool, bool]:
        """Whether a checkpoint is to be written after the update that is next, and whether the time is up then."""
        now = time.monotonic()
        return now - self.last >= self.every, now > self.deadline

    def keep(self, due: bool, paused: bool) -> None:
        """Write the checkpoint of an unfinished training if it is due."""
        if (due or paused) and self.trainer.step < self.trainer.settings.steps:
            self.trainer.save(self.file)
            self.last = time.monotonic()


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generators that a network draws from."""
    # Not `torch.manual_seed`, which keeps a record of each call as long as there is no GPU.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
