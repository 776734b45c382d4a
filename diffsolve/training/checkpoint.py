"""The whole state of a training as named tensors and a note, and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diffsolve.common.checks import integer, number, required
from diffsolve.common.files import FileError, read_tensors, reading, write_tensors
from diffsolve.training.distributed import sharded_as, whole

__all__ = ["KEY", "load", "save", "state_of"]

KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object
ACCEPTED = "the checkpoint of a training"


def state_of(modules: Mapping[str, nn.Module], optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of the networks and of the optimizer, by name; on the CPU, whole, and none shared with another.

    A collective call where the parameters are sharded over ranks.
    """
    tensors = {f"{key}/{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
    for i, p in enumerate(_parameters(optimizer)):
        tensors |= {f"optimizer/{i}/{name}": v for name, v in optimizer.state.get(p, {}).items() if torch.is_tensor(v)}
    return {name: whole(tensor) for name, tensor in tensors.items()}


def save(file: Path, tensors: Mapping[str, Tensor], optimizer: Optimizer, note: Mapping[str, Any]) -> None:
    """Write a checkpoint: what `state_of` gave, and the note with the optimizer's numbers."""
    numbers: dict[str, Any] = {}
    for i, p in enumerate(_parameters(optimizer)):
        numbers[str(i)] = _plain(optimizer.state.get(p, {}))
    groups = [_plain({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
    write_tensors(file, tensors, KEY, {**note, "optimizer": {"state": numbers, "groups": groups}})


def load(
    file: Path, modules: Mapping[str, nn.Module], optimizer: Optimizer, config: Mapping[str, Any]
) -> tuple[int, float, float]:
    """Restore the networks and the optimizer from a file.

    Returns:
        (updates done, moving average of the loss, seconds).

    Raises:
        ValueError: if the file is not a checkpoint, or has other settings.
    """
    tensors, note = read_tensors(file, KEY, accepted=ACCEPTED)
    with reading(file, ACCEPTED):
        known = note["config"]
        required(isinstance(known, dict), "config", known, "a mapping")
    differ = [f"{name}={known.get(name)!r} there" for name in config if known.get(name) != config[name]]
    if differ:
        raise ValueError(
            f"checkpoint must be of a run with {dict(config)}, got {str(file)!r} with {', '.join(differ)}: "
            "delete it or pass resume=False (--no-resume)"
        )
    with reading(file, ACCEPTED):
        done = integer("done", note["done"], 1, config["steps"] - 1)
        loss, seconds = number("loss", note["loss"]), number("seconds", note["seconds"], low=0)
        restored = _checked(file, tensors, modules, optimizer)
        states, groups = note["optimizer"]["state"], note["optimizer"]["groups"]
        fits = len(states) == len(_parameters(optimizer)) and len(groups) == len(optimizer.param_groups)
        required(fits, "optimizer", groups, "of the parameters of this network")
    with torch.no_grad():
        for target, saved in restored:
            target.copy_(sharded_as(target, saved))
    for i, p in enumerate(_parameters(optimizer)):
        prefix = f"optimizer/{i}/"
        mine = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        optimizer.state[p] = {name: _beside(p, t) for name, t in mine.items()} | states[str(i)]
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        group.update(saved)
    return done, loss, seconds


def _checked(
    file: Path, tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizer: Optimizer
) -> list[tuple[Tensor, Tensor]]:
    """(tensor of a network, what the file has for it), of all of them."""
    live = {f"{key}/{name}": t for key, module in modules.items() for name, t in module.state_dict().items()}
    accepted = "one with the tensors of this network"
    found = {name for name in tensors if not name.startswith("optimizer/")}
    if found != live.keys():
        raise FileError(file, accepted, f"only one of the two has {', '.join(sorted(found ^ live.keys())[:3])}")
    moments = [(p, tensors[n]) for i, p in enumerate(_parameters(optimizer)) for n in tensors
               if n.startswith(f"optimizer/{i}/") and tensors[n].dim()]  # fmt: skip
    for like, saved in [*((live[name], tensors[name]) for name in live), *moments]:
        if like.shape != saved.shape or like.dtype != saved.dtype:
            wanted = f"of shape {tuple(like.shape)} and {like.dtype}"
            raise FileError(file, accepted, f"a tensor must be {wanted}, got {tuple(saved.shape)} and {saved.dtype}")
    for name, saved in tensors.items():
        required(not saved.is_floating_point() or bool(saved.isfinite().all()), name, saved, "finite")
    return [(live[name], tensors[name]) for name in live]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that JSON has."""
    return {name: v for name, v in values.items() if v is None or isinstance(v, bool | int | float | str)}


def _beside(p: Tensor, saved: Tensor) -> Tensor:
    """A tensor of an optimizer's state where it works: as the parameter if it has its shape, else on the CPU."""
    return sharded_as(p, saved.to(p.device)) if saved.dim() else saved
