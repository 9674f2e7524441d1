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
from pullback.charts.markup import chart_html, table_html
from pullback.charts.text import duration, escape

HEADERS = (("quantity", "paper", "here", "tolerance", ""), ("quantity", "computed", "here", "tolerance", ""))
EARLIER = "This run was made by an earlier version of the script, whose computations differ from those below."


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
    notes = [f"not reproduced: {row['quantity']}: {row['not_reproduced']}" for row in _failures(record)]
    about = f"{record['preset']} size, {duration(record['seconds'])}, {record['machine']['threads']} threads"
    return "\n".join([f"{record['title']} ({record['page']}, {about})", *body, *notes])


def _tables(record: dict[str, Any]) -> list[tuple[tuple[str, ...], list[dict[str, Any]]]]:
    """Rows held to the paper's numbers, and those held to what the library computes by another route."""
    tables = [(header, [row for row in record["rows"] if row["computed"] == k]) for k, header in enumerate(HEADERS)]
    return [table for table in tables if table[1]]


def _failures(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in record["rows"] if row["not_reproduced"]]


def write_page(record: dict[str, Any], text: str, stored: dict[str, Any] | None, script: Path, path: Path) -> None:
    """Write the page; the stored run of the full size, if there is one, stands below the run it is made from."""
    charts = [_chart_of(each, "") for each in record["charts"]]
    parts = [_head_html(record, text), '<main id="content" tabindex="-1">']
    parts += [_section("numbers", "The numbers", _numbers_html(record)), _charts_section("figures", charts)]
    if stored and record["preset"] != "full":
        kept = [_chart_of(each, "full-") for each in stored["charts"]]
        earlier = "" if stored["code"] == record["code"] else f'<p class="prose">{EARLIER}</p>'
        numbers = _about_html(stored) + earlier + _numbers_html(stored)
        parts.append(_section("stored", "The full size, from a stored run", numbers))
        parts.append(_charts_section("stored-figures", kept))
        charts += kept
    code = f'<div class="scroll"><pre>{escape(script.read_text(encoding="utf-8"))}</pre></div>'
    source = f"<details><summary>The script</summary>{code}</details>"
    parts += [_section("code", "How it was computed", source), "</main>"]
    write_whole(
        document_html(f"{record['title']} – pullback gallery", "\n".join(parts), charts, "Skip to the numbers"), path
    )


def _head_html(record: dict[str, Any], text: str) -> str:
    """Title, claim and definitions, then what the page was made from."""
    paragraphs = "".join(map(_paragraph, text.split("\n\n")))
    kicker = '<p class="kicker">pullback · gallery</p>'
    return f"<header>{kicker}<h1>{escape(record['title'])}</h1>{_about_html(record)}{paragraphs}</header>"


def _paragraph(text: str) -> str:
    """A paragraph, or a formula if it is indented."""
    kind = "formula" if text.startswith("    ") else "prose"
    words = re.sub("``(.+?)``", r"<code>\1</code>", escape(text.strip()))
    return f'<p class="{kind}">{words}</p>'


def _about_html(record: dict[str, Any]) -> str:
    """Size, cost, settings and machine of a run, as one line of facts."""
    machine = record["machine"]
    packages = (f"{name} {machine[name]}" for name in ("pullback", "torch", "numpy", "scipy", "python"))
    facts = [
        f"{record['preset']} size",
        f"took {duration(float(record['seconds']))}",
        f"{machine['processor']}, {machine['threads']} of {machine['cores']} threads",
        *(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in record["settings"].items()),
        *packages,
        machine["date"],
    ]
    return f'<ul class="facts">{"".join(f"<li>{escape(fact)}</li>" for fact in facts)}</ul>'


def _setting(value: Any) -> str:
    """A setting, or several of one part."""
    if not isinstance(value, dict):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return "(" + ", ".join(f"{name.replace('_', ' ')} {_setting(each)}" for name, each in value.items()) + ")"


def _rows_html(record: dict[str, Any]) -> str:
    """The tables "paper, here, tolerance" and "computed, here, tolerance"."""
    return "".join(_table_html(header, rows) for header, rows in _tables(record))


def _table_html(header: tuple[str, ...], held: list[dict[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    rows = []
    for row in held:
        quantity, paper, here, tolerance, verdict = map(escape, cells(row))
        rest = zip(header[1:4], (paper, here, tolerance), strict=True)
        note = row["not_reproduced"] or row["source"]
        name = f'<th scope="row">{quantity}<span class="note">{escape(note)}</span></th>'
        tone = "open" if row["not_reproduced"] else ("holds" if row["holds"] else "fails")
        found = "".join(f'<td data-label="{label}">{text}</td>' for label, text in rest)  # the label is for phones
        rows.append(f'<tr>{name}{found}<td class="{tone}">{verdict}</td></tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    label = f"{header[1].capitalize()}, here, tolerance"
    return f'<div class="scroll rows" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def _numbers_html(record: dict[str, Any]) -> str:
    """The table of numbers, and those of facts."""
    return _rows_html(record) + "".join(table_html(_table_of(each)) for each in record["tables"])


def _section(key: str, title: str, body: str) -> str:
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(title)}</h2>{body}</section>'
    )


def _charts_section(key: str, charts: list[Chart]) -> str:
    if not charts:
        return ""
    noscript = (
        "<noscript><p>The charts need JavaScript; their numbers stand in the table below each one.</p></noscript>"
    )
    body = f'{noscript}<div class="charts">{"".join(map(chart_html, charts))}</div>'
    return _section(key, "Figures" if key == "figures" else "Figures of the full size", body)


def _table_of(stored: dict[str, Any]) -> Table:
    """A table read back."""
    return Table(stored["caption"], tuple(stored["header"]), stored["rows"])


def _chart_of(stored: dict[str, Any], prefix: str) -> Chart:
    """A chart of a record; the prefix tells a stored one's key from that of the one just drawn."""
    known = {each.name for each in fields(Chart)}
    tables = tuple(map(_table_of, stored["tables"]))
    kept = {key: value for key, value in stored.items() if key in known}
    frames = tuple(Frame(**frame) for frame in stored["frames"])
    return Chart(**kept | {"key": prefix + stored["key"], "tables": tables, "frames": frames, "data": None})
