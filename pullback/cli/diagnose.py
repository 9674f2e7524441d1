"""``pullback diagnose``: what a run's record shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as a JSON list.")] = False,
) -> None:
    """Print the findings of a run, causes first; exits with 1 if one is a warning or worse."""
    import pullback as pb
    from pullback.report.run.notes import left_out

    loaded = pb.load_run(run)
    findings = pb.diagnose(loaded)
    if as_json:
        from pullback.runs.schema import encode  # JSON has no NaN and no infinity

        typer.echo(json.dumps(encode([finding.as_record() for finding in findings]), indent=1, allow_nan=False))
    else:
        for finding in findings:
            typer.echo(f"{'  ' if finding.because else ''}{finding}")
        if not findings:
            typer.echo("No findings.")
        if left := left_out(loaded):
            typer.echo(f"Left out, since it would have cost more than the budget: {left}.")
    if any(finding.severity != "info" for finding in findings):
        raise typer.Exit(1)
