"""The pages of ``pullback theory``, for a browser and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pullback.charts.chart import Chart, Table
from pullback.charts.document import document_html, write_whole
from pullback.charts.text import number
from pullback.report.theory.charts import Line


@dataclass(frozen=True)
class TheoryPage:
    """All that one page shows.

    Attributes:
        title: of the page.
        facts: of the network and of what was drawn, as short phrases.
        keys: label, value, note: what theory says of the network.
        place: what predictions and findings are listed by, a word.
        lines: predictions and findings.
        charts: in order.
        found: what findings are of, a word.
        group: the command's first word, in the heading.
    """

    title: str
    facts: tuple[str, ...]
    keys: tuple[tuple[str, float | str, str], ...]
    place: str
    lines: Sequence[Line]
    charts: tuple[Chart, ...]
    found: str = "networks"
    group: str = "theory"

    @property
    def table(self) -> Table:
        """Predictions beside findings."""
        rows = [row for line in self.lines for row in line.rows()]
        return Table(
            f"Theory beside {self.found}", ("quantity", self.place, "theory", self.found, "standard error"), rows
        )


def theory_text(page: TheoryPage) -> str:
    """The numbers as plain text, in columns."""
    header, rows = page.table.header, page.table.rows
    cells = [list(header), *([str(row[0]), *(number(value, 4) for value in row[1:])] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(header))]
    keys = [(label, value if isinstance(value, str) else number(value, 6), note) for label, value, note in page.keys]
    wide = [max(len(key[place]) for key in keys) for place in range(2)]
    return "\n".join(
        [
            f"{page.title} ({', '.join(page.facts)})",
            *(f"  {label:{wide[0]}}  {value:{wide[1]}}  {note}".rstrip() for label, value, note in keys),
            *(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                for line in (cells if rows else [])
            ),
        ]
    )


def write_theory_page(page: TheoryPage, path: Path) -> Path:
    """Write the page as one self-contained file."""
    return write_whole(document_html("pullback.report", "theory.html", page.charts, page=page), path)
