"""``pullback``: the commands, and how errors are shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pullback._checks import PullbackError
from pullback._version import __version__
from pullback.cli import compare, demo, diagnose, gallery, report, theory

app = typer.Typer(
    name="pullback",
    help="The geometry of neural-network training: train, measure, read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.command)
app.command("report")(report.command)
app.command("compare")(compare.command)
app.command("diagnose")(diagnose.command)
app.command("gallery")(gallery.command)
app.add_typer(theory.app, name="theory")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pullback {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The geometry of neural-network training: train, measure, read."""


def run() -> None:
    """Entry point: errors that name a cause and a remedy come without a traceback, and exit with 2."""
    try:
        app()
    except (PullbackError, KeyboardInterrupt) as error:
        if "--debug" in sys.argv:
            raise
        stopped = isinstance(error, KeyboardInterrupt)
        typer.echo("pullback: stopped" if stopped else f"pullback: {error}", err=True)
        sys.exit(130 if stopped else 2)
