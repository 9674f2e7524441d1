"""What is kept of a page, as JSON, and its numbers as a plain text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback._text import digits, duration
from pullback.charts.document import write_whole

if TYPE_CHECKING:
    from .page import Page

HEADERS = (("quantity", "paper", "here", "tolerance", ""), ("quantity", "computed", "here", "tolerance", ""))


def as_record(page: Page, made_on: dict[str, str], code: str) -> dict[str, Any]:
    """All that is kept of a page, as JSON; ``code`` is the hash of what makes its numbers."""
    return {
        "page": page.name,
        "title": page.title,
        "preset": page.preset,
        "code": code,
        "settings": page.settings,
        "seconds": round(page.seconds, 2),
        "machine": made_on,
        "rows": [asdict(row) | {"verdict": row.verdict} for row in page.rows],
        "tables": [asdict(table) for table in page.tables],
        "charts": [asdict(chart) for chart in page.charts],
    }


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
    lines = [line for header, rows in tables_of(record) for line in (header, *map(cells, rows))]
    widths = [max(len(line[place]) for line in lines) for place in range(5)]
    body = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    known = [row for row in record["rows"] if row["not_reproduced"]]
    notes = [f"not reproduced: {row['quantity']}: {row['not_reproduced']}" for row in known]
    about = f"{record['preset']} size, {duration(record['seconds'])}, {record['machine']['threads']} threads"
    return "\n".join([f"{record['title']} ({record['page']}, {about})", *body, *notes])


def tables_of(record: dict[str, Any]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """Rows held to the paper's numbers, and those held to what the library computes by another route."""
    tables = [(header, [row for row in record["rows"] if row["computed"] == k]) for k, header in enumerate(HEADERS)]
    return [table for table in tables if table[1]]
