"""The HTML of one chart, with its words and its tables, and of the links to all of them."""

from __future__ import annotations

from pullback.charts.chart import Chart, Table
from pullback.charts.numbers import evenly
from pullback.charts.text import cell, escape

MOST_ROWS = 60


def chart_html(chart: Chart) -> str:
    """A chart with its heading, how to read it, and its numbers in a sentence and in tables."""
    key, height = chart.key, chart.figure["layout"]["height"]
    tables = "".join(map(table_html, chart.tables))
    summary = "".join(f"<span>{escape(sentence)}</span> " for sentence in chart.summary)
    return (
        f'<figure id="{key}" aria-labelledby="{key}-title" aria-describedby="{key}-summary">'
        f'<h3 id="{key}-title">{escape(chart.title)}</h3><p class="reading">{escape(chart.reading)}</p>'
        f'<div class="drawing"><div class="plot" id="{key}-plot" aria-hidden="true" '
        f'style="min-height:{height}px"></div>{slider_html(chart)}</div>'
        f'<figcaption id="{key}-summary">{summary}</figcaption>'
        f"<details><summary>Data as a table</summary>{tables}</details></figure>"
    )


def slider_html(chart: Chart) -> str:
    """The slider over the stored steps; empty for a chart that has one state only."""
    if not chart.frames:
        return ""
    last, label = len(chart.frames) - 1, escape(chart.frames[-1].label)
    return (
        f'<label class="slider">Measured at <output>{label}</output>'
        f'<input type="range" min="0" max="{last}" value="{last}" data-chart="{chart.key}" '
        f'aria-valuetext="{label}">'
        "</label>"
    )


def table_html(table: Table) -> str:
    """A table of at most 60 rows, evenly chosen, in a box that scrolls by itself."""
    kept = evenly(len(table.rows), MOST_ROWS)
    thinned = f" ({len(kept)} of {len(table.rows):,} rows)" if len(kept) < len(table.rows) else ""
    caption = escape(table.caption) + thinned
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.header)
    rows = "".join(
        f'<tr><th scope="row">{cell(first)}</th>{"".join(f"<td>{cell(value)}</td>" for value in rest)}</tr>'
        for first, *rest in (table.rows[place] for place in kept)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
