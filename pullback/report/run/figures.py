"""Writes every chart of a run as a data file and an image, for papers and slides."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pullback._checks import input_error
from pullback.charts.chart import Cell, Chart, Figure, Table
from pullback.charts.text import clean, plotly_text
from pullback.report.run.read_runs import read_runs
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.runs import Run

WIDTH = 900
_REMEDY = (
    "Run `pip install kaleido`, install Chromium or Chrome (PULLBACK_CHROMIUM names its program if it is not "
    "on the path), or pass images=False"
)


def write_figures(
    run: Run | str | Path | Sequence[Run | str | Path],
    folder: str | Path,
    images: bool = True,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Write one CSV file for each chart and, with ``images``, one PNG file beside it.

    The CSV files hold all measured values, where the page of ``write_report`` shows a selection. Nothing is
    left in the folder if an image fails.

    Args:
        run: a run, the path of one, or several to be drawn over each other.
        folder: where the files go; made if it does not exist.
        images: draw the PNG files, which needs the package kaleido and a Chromium.
        overwrite: replace files of the same names.

    Returns:
        The files, in the order of the page; none for a run that holds nothing to draw.

    Raises:
        InputError: a file exists already, there is no browser to draw with, or drawing failed.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> folder = tempfile.mkdtemp()
        >>> with RunWriter(folder + "/run", {}) as writer:
        ...     writer.append(0, "loss", {"loss": 2.5})
        >>> [path.name for path in write_figures(folder + "/run", folder + "/figures", images=False)]
        ['loss.csv']
    """
    where = f"write_figures({folder})"
    runs = read_runs("write_figures", run)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise input_error(where, "the path of a folder", "a file", "Choose another path")
    charts = [chart for section in SECTIONS for chart in charts_of(section, runs)[0]]
    names = [f"{chart.key}{ending}" for chart in charts for ending in (".csv", ".png")[: 1 + images]]
    taken = [name for name in names if (folder / name).exists()]
    if taken and not overwrite:
        remedy = "Choose another folder, or pass overwrite=True"
        raise input_error(where, "a folder without these files", ", ".join(taken), remedy)
    browser = find_browser() if images and charts else ""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as draft:
        for chart in charts:
            write_csv(chart.data() if chart.data else chart.tables[0], Path(draft) / f"{chart.key}.csv")
        if images and charts:
            draw_images(charts, Path(draft), browser)
        for name in names:
            (Path(draft) / name).replace(folder / name)
    return [folder / name for name in names]


def write_csv(table: Table, path: Path) -> None:
    """Write a table in full precision; what was not measured is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([_csv_text(name) for name in table.header])
        writer.writerows([_csv_text(cell) for cell in row] for row in table.rows)


def _csv_text(cell: Cell) -> Cell:
    """A cell; a text that a spreadsheet would run as a formula gets an apostrophe in front."""
    if not isinstance(cell, str):
        return cell
    text = clean(cell)
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def find_browser() -> str:
    """Path of the Chromium to draw with, once it is clear that kaleido is there too."""
    where = "write_figures"
    try:
        importlib.import_module("kaleido")
    except ImportError:
        raise input_error(where, "the package kaleido, which draws images", "none installed", _REMEDY) from None
    asked = os.environ.get("PULLBACK_CHROMIUM")
    programs = [asked] if asked else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    browser = next((path for name in programs if (path := shutil.which(name))), None)
    if browser is None:
        raise input_error(where, "a Chromium or Chrome", f"none among {', '.join(programs)}", _REMEDY)
    return browser


def draw_images(charts: Sequence[Chart], folder: Path, browser: str) -> None:
    """Draw all charts with one start of the browser, which is given nothing to fetch."""
    kaleido = importlib.import_module("kaleido")
    jobs = [
        {
            "fig": (figure := image_figure(chart)),
            "path": str(folder / f"{chart.key}.png"),
            "opts": {"format": "png", "width": WIDTH, "height": figure["layout"]["height"], "scale": 2},
        }
        for chart in charts
    ]
    try:
        kaleido.write_fig_from_object_sync(jobs, kopts={"path": browser, "mathjax": False})
    except Exception as error:  # whatever the browser stumbled over, the caller can go on without images
        where, got = "write_figures", f"{type(error).__name__}: {error}"
        raise input_error(where, "the browser to draw", got, _REMEDY) from error


def image_figure(chart: Chart) -> dict[str, Any]:
    """The figure as an image of its own: on white, with its title."""
    layout: Figure = dict(chart.figure["layout"])
    title = {"text": plotly_text(chart.title, 110), "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"}
    entries = [each for each in chart.figure["data"] if each.get("showlegend", True)]
    rows = len(entries) if layout["showlegend"] else 0
    top = 44 + (36 if any("colorbar" in trace for trace in chart.figure["data"]) else 0)
    top += (24 if rows else 0) + 8 * max(0, rows - 3)
    layout |= {"paper_bgcolor": "white", "plot_bgcolor": "white", "title": title}
    layout |= {"margin": layout["margin"] | {"t": top}, "height": layout["height"] + top + 40}
    data = [_lowered(trace, 1 - 40 / layout["height"]) for trace in chart.figure["data"]]
    return {"data": data, "layout": layout}


def _lowered(trace: dict[str, Any], y: float) -> dict[str, Any]:
    """A trace whose colour bar, if it has one, makes room for the title."""
    return trace | {"colorbar": trace["colorbar"] | {"y": y}} if trace.get("colorbar") else trace
