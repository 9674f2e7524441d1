"""``pullback report``: one page from one run or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are drawn over each other.")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page [report.html in the first run].")] = None,
    figures: Annotated[Path | None, typer.Option(help="Also write every figure as PNG and CSV to this folder.")] = None,
    images: Annotated[bool, typer.Option("--images/--no-images", help="PNG files beside the CSV files.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is already there.")] = False,
) -> None:
    """Write a report page that works offline."""
    import pullback as pb
    from pullback.charts.document import check_free

    page = out or runs[0] / "report.html"
    check_free("report", page, "Pass --force to replace it, or another --out", overwrite=force)
    loaded = [pb.load_run(run) for run in runs]
    path = pb.write_report(loaded, page, overwrite=force)
    typer.echo(f"Report: {path}")
    if figures is not None:
        for run in loaded:
            folder = figures / run.path.name if len(loaded) > 1 else figures
            written = pb.write_figures(run, folder, images, overwrite=force)
            typer.echo(f"Figures: {len(written)} files for {run.path}")
