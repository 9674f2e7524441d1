"""``pullback``: the commands, and how errors are shown."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from pullback._checks import PullbackError
from pullback._version import __version__
from pullback.cli import compare, demo, diagnose, gallery, list_runs, report, watch
from pullback.cli.dynamics import commands as dynamics
from pullback.cli.theory import commands as theory

app = typer.Typer(
    name="pullback",
    help="The geometry of neural-network training: train, measure, read.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.command)
app.command("report")(report.command)
app.command("compare")(compare.command)
app.command("diagnose")(diagnose.command)
app.command("list")(list_runs.command)
app.command("watch")(watch.command)
app.command("gallery")(gallery.command)
app.add_typer(theory.app, name="theory")
app.add_typer(dynamics.app, name="dynamics")

# typer brings its own copy of click, or asks for click, depending on its version: the class is found by its children
UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
STOPPED = 130
OPTIONS = {
    "overwrite=True": "--force",
    "images=False": "--no-images",
    "port=": "--port ",
    "host=": "--host ",
}  # arguments that errors name, as options


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
    """Entry point: errors come without a traceback unless ``--debug`` is given, before the command or behind it.

    Exit codes: 1 is a command's own answer (a warning of ``diagnose``, a number of ``gallery`` that does not hold), 2 a
    call or an input that is wrong, 3 a failure that nobody expected, 130 an interrupt, 141 a reader that has left.
    """
    arguments = [each for each in sys.argv[1:] if each != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(args=arguments, prog_name="pullback", standalone_mode=False)
        if code == STOPPED:  # typer has caught the interrupt
            code = _say(KeyboardInterrupt())
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes
        code = 141
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, KeyboardInterrupt | typer.Abort):
            traceback.print_exception(error)
        code = _say(error)
    sys.exit(code if isinstance(code, int) else 0)


def _say(error: BaseException) -> int:
    """What went wrong, on standard error; the exit code."""
    if isinstance(error, UsageError):
        error.show()  # type: ignore[attr-defined]
        return 2
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        typer.echo("pullback: stopped", err=True)
        return STOPPED
    if isinstance(error, PullbackError):
        words = str(error)
        for argument, option in OPTIONS.items():
            words = words.replace(argument, option)
        typer.echo(f"pullback: {words}", err=True)
        return 2
    said = str(error).strip() or "no message"
    typer.echo(
        f"pullback: expected no error, got {type(error).__name__} ({said}). Run it again with --debug for the "
        "traceback.",
        err=True,
    )
    return 3
