"""``pullback diagnose``: what a run's record shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Print the findings of a run; exits with 1 if one is a warning or worse."""
    import pullback as pb

    findings = pb.diagnose(run)
    for finding in findings:
        typer.echo(str(finding))
    if not findings:
        typer.echo("No findings.")
    if any(finding.severity != "info" for finding in findings):
        raise typer.Exit(1)
