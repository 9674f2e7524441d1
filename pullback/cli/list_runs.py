"""``pullback list``: the runs below a folder, a line each, with what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pullback.cli.headline import formatted

HEAD = ("run", "steps", "loss", "verdict")


def command(folder: Annotated[Path, typer.Argument(help="A run, or a folder with runs at any depth.")]) -> None:
    """Print the runs below a folder: how far they came, their last loss, and their verdict."""
    from pullback._checks import PullbackError, input_error
    from pullback.runs.schema import META_FILE

    runs = sorted(path.parent for path in folder.rglob(META_FILE))
    if not runs:
        got = "none" if folder.is_dir() else "no folder"
        raise input_error("list", f"runs below {folder}", got, "Pass the folder that Monitor or the demo wrote to")
    rows = [HEAD]
    for run in runs:
        name = str(run.relative_to(folder)) if run != folder else run.name
        try:
            rows.append((name, *_line(run)))
        except PullbackError as error:
            rows.append((name, "-", "-", f"cannot be read: {error}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, steps, loss, verdict in rows:
        typer.echo(f"{name:{widths[0]}}  {steps:>{widths[1]}}  {loss:>{widths[2]}}  {verdict}")


def _line(run: Path) -> tuple[str, str, str]:
    """Last step, last loss as the loop or a measurement had it, and the verdict."""
    import numpy as np

    import pullback as pb
    from pullback.advisor import verdict

    loaded = pb.load_run(run)
    steps, losses = loaded.course("loss")
    if not len(steps):  # a loop that hands over no loss
        measured = loaded.series("loss", "loss")
        steps, losses = np.array(measured[0]), np.array(measured[1])
    last = max([*loaded.steps[-1:], *steps[-1:].tolist()], default=None)
    return formatted(last), formatted(float(losses[-1]) if len(losses) else None), verdict(loaded)
