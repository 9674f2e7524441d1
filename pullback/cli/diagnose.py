"""``pullback diagnose``: what a run's record shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as a JSON list.")] = False,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Name of a finding to leave out; may be given again [none].")
    ] = None,
) -> None:
    """Print the findings of a run, causes first; exits with 1 if one that is not ignored is a warning or worse."""
    import pullback as pb
    from pullback.advisor import verdict
    from pullback.report.run.notes import left_out

    loaded = pb.load_run(run)
    findings = pb.diagnose(loaded, ignore=ignore or ())
    if as_json:
        from pullback.runs.schema import encode  # JSON has no NaN and no infinity

        typer.echo(json.dumps(encode([finding.as_record() for finding in findings]), indent=1, allow_nan=False))
    else:
        if not ignore:  # of what is left no verdict could be given
            typer.echo(f"Verdict: {verdict(loaded, findings)}.")
        for finding in findings:
            typer.echo(f"{'  ' if finding.because else ''}{finding}")
        if not findings:
            typer.echo("No findings.")
        if left := left_out(loaded):
            typer.echo(f"Left out, since it would have cost more than the budget: {left}.")
    if ignore:
        absent = [name for name in dict.fromkeys(ignore) if name not in findings.ignored]
        told = [", ".join(findings.ignored) or "none"] + ([f"not found: {', '.join(absent)}"] if absent else [])
        typer.echo(f"Ignored, as asked: {'; '.join(told)}.", err=as_json)
    if any(finding.severity != "info" for finding in findings):
        raise typer.Exit(1)
