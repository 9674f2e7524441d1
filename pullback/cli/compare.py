"""``pullback compare``: runs side by side, as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pullback.cli.headline import HEADLINE, formatted

if TYPE_CHECKING:
    from pullback.runs.compare import Row


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, also of runs that still go on.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="probe.metric or probe.metric.layer; may be given again [a choice].")
    ] = None,
    step: Annotated[int | None, typer.Option(help="Compare at this step or before it [at the last].")] = None,
) -> None:
    """Print what runs were set to differently, and what they measured at the last step common to all."""
    import pullback as pb
    from pullback.charts.text import shorten
    from pullback.report.run.series import name_runs
    from pullback.runs.compare import compare_runs, differing_settings

    loaded = [pb.load_run(run) for run in runs]
    names = [named.name for named in name_runs(loaded)]
    settings = [
        (shorten(key, 60), [_cell(value) for value in values]) for key, values in differing_settings(loaded).items()
    ]
    if metric is None:
        known = {name for run in loaded for name in (run if step is None else run.until(step)).table()}
        metric = [name for name in HEADLINE if name in known]
    rows = compare_runs(loaded, metric, step)
    measured = [(HEADLINE.get(row.name, shorten(row.name, 60)), _cells(row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in _columns([("", names), *settings, *measured])]
    for title, lines in (("", [("", names)]), ("Set differently:", settings), ("Measured:", measured)):
        if title:
            typer.echo(title if lines else f"{title} nothing")
        for label, cells in lines:
            told = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            typer.echo(f"  {label:{widths[0]}}  {'  '.join(told)}".rstrip())


def _cells(row: Row) -> list[str]:
    return [_cell(value, at) for value, at in zip(row.values, row.steps, strict=True)]


def _cell(value: Any, step: int | None = None) -> str:
    from pullback.charts.text import shorten

    told = f"{len(value)} entries" if isinstance(value, list) else shorten(" ".join(formatted(value).split()), 40)
    return told if step is None else f"{told} @{step}"


def _columns(lines: list[tuple[str, list[str]]]) -> list[tuple[str, ...]]:
    return list(zip(*((label, *cells) for label, cells in lines), strict=True))
