"""How a page of the gallery is shown and kept: plain text, one HTML file, and JSON."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from pullback.charts.chart import Chart, Frame, Table
from pullback.charts.document import document_html, write_whole
from pullback.charts.text import duration

CODE = re.compile("``(.+?)``")
HEADERS = (("quantity", "paper", "here", "tolerance", ""), ("quantity", "computed", "here", "tolerance", ""))


def digits(value: float) -> str:
    """A number as a paper would print it: up to twelve significant digits."""
    return f"{value:.12g}"


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record; numbers keep all their digits, and what is not finite becomes a text."""
    write_whole(json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n", path)


def read_json(path: Path) -> dict[str, Any] | None:
    """A stored record, or None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """A row of the table as texts; numbers show as many digits as the comparison is about."""
    return row["quantity"], _rounded(row["paper"], row), _rounded(row["here"], row), row["tolerance"], row["verdict"]


def _rounded(value: float | str, row: dict[str, Any]) -> str:
    """A number to two digits below what was allowed; of a bound four. Texts stay, but for long computed numbers."""
    allowed = re.match(r"±([^ ,]+)( relative)?", row["tolerance"])
    if isinstance(value, str) and not (allowed and row["computed"]):
        return value
    number = float(value)
    if allowed is None:
        return f"{number:.4g}" if row["tolerance"].startswith("bound") else digits(number)
    within = float(allowed[1]) * (abs(number) if allowed[2] else 1)
    if not (0 < within < math.inf and 0 < abs(number) < math.inf):
        return digits(number)
    return f"{number:.{min(max(math.ceil(math.log10(abs(number) / within)) + 2, 3), 12)}g}"


def table_text(record: dict[str, Any]) -> str:
    """The page for a terminal or a pipe."""
    lines = [line for header, rows in _tables(record) for line in (header, *map(cells, rows))]
    widths = [max(len(line[place]) for line in lines) for place in range(5)]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    known = [row for row in record["rows"] if row["not_reproduced"]]
    notes = [f"not reproduced: {row['quantity']}: {row['not_reproduced']}" for row in known]
    about = f"{record['preset']} size, {duration(record['seconds'])}, {record['machine']['threads']} threads"
    return "\n".join([f"{record['title']} ({record['page']}, {about})", *body, *notes])


def _tables(record: dict[str, Any]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """Rows held to the paper's numbers, and those held to what the library computes by another route."""
    tables = [(header, [row for row in record["rows"] if row["computed"] == k]) for k, header in enumerate(HEADERS)]
    return [table for table in tables if table[1]]


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
        script=script.read_text(encoding="utf-8"),
        facts_of=_facts,
        compared_of=_tables,
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
