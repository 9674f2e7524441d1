"""A page of the gallery as one HTML file."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pullback._text import duration
from pullback.charts.chart import Chart, Frame, Table
from pullback.charts.document import document_html, write_whole

from .record import cells, tables_of

CODE = re.compile("``(.+?)``")


def write_page(record: dict[str, Any], text: str, stored: dict[str, Any] | None, script: Path, path: Path) -> None:
    """Write the page; the stored run of the full size, if there is one, stands below the run it is made from."""
    run = _read_back(record, "")
    kept = _read_back(stored, "full-") if stored and record["preset"] != "full" else None
    page = document_html(
        Path(__file__).parent,
        "page.html",
        run["charts"] + (kept["charts"] if kept else []),
        run=run,
        stored=kept,
        text=text,
        source=script.read_text(encoding="utf-8"),
        facts_of=_facts,
        compared_of=tables_of,
        cells_of=cells,
        pieces_of=CODE.split,
    )
    write_whole(page, path)


def _facts(record: dict[str, Any]) -> list[str]:
    """Size, cost, settings and machine of a run, as short phrases."""
    machine = record["machine"]
    return [
        f"{record['preset']} size",
        f"took {duration(float(record['seconds']))}",
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} threads",
        *(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in record["settings"].items()),
        *(f"{name} {machine[name]}" for name in ("pullback", "torch", "numpy", "scipy", "python")),
        machine["date"],
    ]


def _setting(value: Any) -> str:
    """A setting, or several of one part."""
    if not isinstance(value, dict):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return "(" + ", ".join(f"{name.replace('_', ' ')} {_setting(each)}" for name, each in value.items()) + ")"


def _read_back(record: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A record with its tables and charts; the prefix tells a stored one's charts from those just drawn."""
    charts = [_chart_of(each, prefix) for each in record["charts"]]
    return record | {"tables": [_table_of(each) for each in record["tables"]], "charts": charts}


def _table_of(stored: dict[str, Any]) -> Table:
    """A table read back."""
    return Table(stored["caption"], tuple(stored["header"]), stored["rows"])


def _chart_of(stored: dict[str, Any], prefix: str) -> Chart:
    """A chart of a record, with a prefix to its key."""
    known = {each.name for each in fields(Chart)}
    tables = tuple(map(_table_of, stored["tables"]))
    kept = {key: value for key, value in stored.items() if key in known}
    frames = tuple(Frame(**frame) for frame in stored["frames"])
    return Chart(**kept | {"key": prefix + stored["key"], "tables": tables, "frames": frames, "data": None})
