"""The sections of a page and its table of contents."""

from __future__ import annotations

from collections.abc import Sequence

from pullback.charts.chart import Chart
from pullback.charts.markup import chart_html
from pullback.report.run.sections import Section


def section_html(section: Section, charts: Sequence[Chart], absent: Sequence[str]) -> str:
    """A section with its charts, and a sentence for each chart that has no numbers."""
    body = f'<div class="charts">{"".join(map(chart_html, charts))}</div>' if charts else ""
    notes = "".join(f'<p class="absent">{sentence}</p>' for sentence in absent)
    heading = f'<h2 id="{section.key}-title">{section.title}</h2>'
    return f'<section id="{section.key}" aria-labelledby="{section.key}-title">{heading}{body}{notes}</section>'


def contents_html(built: Sequence[tuple[Section, list[Chart], list[str]]], failures: bool) -> str:
    """Links to the parts of the page and to every chart."""
    first = '<a href="#findings">Findings</a>' + ('<a href="#failed">Failed probes</a>' if failures else "")
    parts = [f'<li><span class="group">What the numbers say</span>{first}</li>']
    for section, charts, _ in built:
        links = "".join(f'<a href="#{chart.key}">{link_text(chart)}</a>' for chart in charts)
        parts.append(f'<li><span class="group">{section.title}</span>{links}</li>')
    return f'<nav aria-label="Contents"><ul>{"".join(parts)}</ul></nav>'


def link_text(chart: Chart) -> str:
    """The chart's key as a word or two."""
    return chart.key.replace("-", " ").capitalize()
