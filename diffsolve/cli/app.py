"""The command line: `diffsolve sample`, `bench`, `choose`, `tune`, `logprob`, `plan`, `distill`, `train`, and lists.

Slow imports, such as torch and NumPy, happen when a command runs, so that --help is fast.
"""

from __future__ import annotations

from typing import Annotated

try:
    import PIL  # noqa: F401
    import typer
except ImportError as error:  # one line and no traceback: the script imports this module first
    raise SystemExit(f"diffsolve: {error.name} is not installed: pip install 'diffsolve[cli]'") from None

from diffsolve import __version__
from diffsolve.cli import bench, lists, runs

__all__ = ["app"]

app = typer.Typer(
    help="Sample from diffusion, score and flow-matching models, and look at the solvers that do it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a reference model.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train, name="train")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the command."""


_COMMANDS = (runs.sample, bench.bench, bench.choose, runs.tune, runs.logprob, runs.plan, runs.distill)
for _command in (*_COMMANDS, lists.solvers, lists.grids, lists.paths):
    app.command()(_command)
train.command("digits")(runs.train_digits)
train.command("fashion")(runs.train_fashion)
