"""The log of a training as a picture."""

from __future__ import annotations

import io
import os
from pathlib import Path

from diffsolve.common.checks import required
from diffsolve.common.files import write_whole
from diffsolve.common.records import read

__all__ = ["plot"]


def plot(log: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw the loss and the norm of the gradient over the updates, from a log that `fit(log=..)` wrote.

    Args:
        log: the file of JSON lines.
        path: of the picture; its suffix is its format, .png or .svg, say.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the log is none, or empty.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'diffsolve[metrics]'") from error
    _, entries = read(log)
    required(bool(entries) and {"step", "loss", "norm"} <= entries[0].keys(), "log", os.fspath(log), "a log of `fit`")
    buffer = io.BytesIO()
    with style.context("diffsolve.common.look"):
        figure = Figure(figsize=(9, 3.5))
        titles = {"loss": "loss", "norm": "norm of the gradient"}
        for panel, (what, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            panel.plot([entry["step"] for entry in entries], [entry[what] for entry in entries])
            panel.set(title=title, xlabel="updates", yscale="log")
        figure.savefig(buffer, format=Path(path).suffix.removeprefix(".") or "png")
    write_whole(path, buffer.getvalue())
