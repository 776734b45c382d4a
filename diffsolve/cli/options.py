"""Options, checks and reports that the commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Force",
    "GridSpec",
    "Label",
    "ModelSpec",
    "Nfe",
    "Progress",
    "SolverSpec",
    "Steps",
    "bar",
    "batch_of",
    "budget",
    "check_out",
    "first_rank",
    "plain_errors",
    "report",
]

SHAPES = {
    "digits": (1, 8, 8),
    "digits-student": (1, 8, 8),
    "fashion": (1, 28, 28),
    "fashion-edm": (1, 28, 28),
    "fashion-latent": (4, 7, 7),
    "fashion-noise": (1, 28, 28),
    "fashion-student": (1, 28, 28),
    "mixture-2d": (2,),
}  # of one sample of each reference model
LABELLED = [name for name in SHAPES if name != "mixture-2d"]  # those with ten classes
NFE = 20  # network calls if neither --nfe nor --steps is given

SolverSpec = Annotated[str, typer.Option(help="A solver with options, as 'ddim(eta=0.5)'; see `diffsolve solvers`.")]
GridSpec = Annotated[str | None, typer.Option(help="A grid with options; see `diffsolve grids`. [default: the path's]")]
Nfe = Annotated[int | None, typer.Option(help=f"Budget of network calls. [default: {NFE}, without --steps]")]
Steps = Annotated[int | None, typer.Option(help="Number of grid intervals, in place of --nfe.")]
Label = Annotated[
    str,
    typer.Option(
        "--class", help="A class, 0 to 9 (a digit), all for each in turn, or none for the network without a label."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Start the file anew, whatever it has.")]
ModelSpec = Annotated[
    str,
    typer.Option(
        help="digits, fashion, fashion-noise, fashion-edm, fashion-latent, digits-student or fashion-student, with "
        "weights of one's own as \"digits(weights='mine.safetensors')\"; or mixture-2d, as "
        "\"mixture-2d(path='edm')\". `sample` takes a student's file too; `bench` and `choose` any model, as "
        "package.module:factory."
    ),
]
Progress = Annotated[bool | None, typer.Option(help="Show a bar. [default: on a terminal]", show_default=False)]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Report a bad value (exit code 2) or a failure (1) in one line, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    except (FloatingPointError, ImportError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


def budget(nfe: int | None, steps: int | None) -> int | None:
    return NFE if nfe is None and steps is None else nfe


def budgets(text: str) -> int | list[int]:
    """One budget of calls, or several: '4,6,8' or '4-12'.

    Raises:
        ValueError: for anything else.
    """
    from diffsolve.common.checks import required

    first, dash, last = text.partition("-")
    try:
        if not dash:
            return [int(part) for part in text.split(",")] if "," in text else int(text)
        counts = list(range(int(first), int(last) + 1))
    except ValueError:
        counts = []
    required(bool(counts), "nfe", text, "a number, a list or a rising range, such as '4,6' or '4-12'")
    return counts


def batch_of(model: str, label: str, num: int) -> tuple[tuple[int, ...], dict[str, Any] | None]:
    """The shape of a batch of `num` samples of a reference model, and their conditions."""
    import torch

    name = model.partition("(")[0].strip().lower()
    if name not in LABELLED and label != "all":
        raise ValueError(f"class must be all for a model without classes, such as {name}, got {label!r}")
    cond = {"label": torch.tensor(_labels(label, num))} if name in LABELLED else None
    return (num, *SHAPES[name]), cond


def _labels(which: str, num: int) -> list[int]:
    """The class of each sample; -1 means no class."""
    from diffsolve.common.checks import choice

    accepted = {"all": tuple(range(10)), "none": (-1,), **{str(digit): (digit,) for digit in range(10)}}
    choice("class", which, accepted)
    turn = accepted[which]
    return [turn[i % len(turn)] for i in range(num)]


def bar(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def first_rank() -> bool:
    """Whether this process is the one of `torchrun`'s that speaks; of one alone, yes."""
    return int(os.environ.get("RANK", 0)) == 0


def report(**lines: object) -> None:
    if first_rank():
        for name, value in lines.items():
            typer.echo(f"{name:8} {value}")


def check_out(out: Path, *accepted: str) -> None:
    if out.suffix.lower() not in accepted:
        raise ValueError(f"out must be a file ending in {' or '.join(accepted)}, got {str(out)!r}")
    if out.is_dir():
        raise ValueError(f"out must be a file, got the folder {str(out)!r}")
    if not out.parent.is_dir():
        raise ValueError(f"out must be in a folder that exists, got {str(out)!r}")
