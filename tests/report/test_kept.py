"""The page of a small synthetic run, as text and numbers, is ``tests/data/page.txt``, which reviews see change.

Who changes what a page says or draws on purpose writes the file anew: ``python -m tests.report.test_kept``.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import tempfile
from dataclasses import asdict
from difflib import unified_diff
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pullback.report import write_report
from pullback.report.theory import charts as theory_charts
from pullback.runs import Run
from tests.charts_in import charts_in

FILE = Path(__file__).parents[1] / "data" / "page.txt"
LOOKS = {"color", "colorscale", "font", "line", "marker", "hovertemplate", "margin", "height", "width", "paper_bgcolor"}
LOOKS |= {"plot_bgcolor", "opacity", "fillcolor", "colorbar", "hoverlabel", "gridcolor", "zerolinecolor", "linecolor"}
MOST = 6  # entries of a list that are kept
OF_THE_CLOCK = re.compile(r"\d{4}-\d\d-\d\d[T \d:+.-]*|\b\d+(\.\d+)? m?s\b|pullback \S+")


class Text(HTMLParser):
    """Lines of the text outside scripts, styles and titles of charts."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.inside, self.rows = "", 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag
        self.rows = self.rows + 1 if tag == "tr" else 0 if tag == "table" else self.rows
        if tag in ("h1", "h2", "h3", "p", "tr", "li", "dt", "figure", "section"):
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style") and data.strip() and self.lines and self.rows <= MOST // 2:
            self.lines[-1] += " ".join(data.split()) + " "


def rounded(value: Any) -> Any:
    """Without looks; four digits of a number, and the ends of long lists."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items() if key not in LOOKS}
    if isinstance(value, list | tuple):
        kept = value if len(value) <= MOST else [*value[: MOST // 2], f"... {len(value)}", *value[-(MOST // 2) :]]
        return [rounded(each) for each in kept]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    return value


def kept(page: str) -> list[str]:
    """What a page says, and what its charts draw."""
    text = Text()
    text.feed(re.sub(r'<section id="findings".*?</section>', "", page, flags=re.S))  # the advisor's words
    charts = charts_in(page)
    lines = [OF_THE_CLOCK.sub("…", line.strip()) for line in text.lines if line.strip() and "to watch" not in line]
    drawn = [f"{key}: {json.dumps(rounded(part), ensure_ascii=False)}" for key, chart in charts.items()
             for part in (*chart.pop("data"), chart)]  # fmt: skip
    return [*lines, *drawn]


def said(run: Run, folder: Path) -> list[str]:
    write_report(run, folder / "page.html")
    return kept((folder / "page.html").read_text(encoding="utf-8"))


def predicted() -> list[str]:
    """Charts of predictions beside findings: one that fits, one that does not, one of few points."""
    fits = theory_charts.Line.by_layer("length", [1.0, 0.5, 0.25], [1.01, 0.49, 0.25], [0.01, 0.02, 0.0])
    off = theory_charts.Line("off", [0.5, 1, 1.5, 2], [1, 2, 3, 4], [0.5, 2], [1.5, 4.1], [0.1, 0.2])
    many = theory_charts.Line.by_layer("many", range(1, 21), range(1, 21), [0.3] * 20)
    scale = [[2.0, 30.0, 0.1], [math.nan, 1e9, 5.0]]
    charts = [
        theory_charts.phase_chart([0.5, 1.0, 2.0], [0.0, 0.4], scale, [1.0, math.nan], (1.5, 0.2)),
        theory_charts.phase_chart([0.5, 1.0, 2.0], [0.0, 0.4], scale, [1.0, 1.4], (1.0, 0.0)),
        *theory_charts.cut_charts(off, fits, 0.3),
        *theory_charts.depth_charts(fits, off, many),
        *theory_charts.training_charts(many, off, fits),
        *theory_charts.spectrum_charts([-2.0, -1.0, 0.0], [0.25, 0.75], None, "None.", fits, off),
        *theory_charts.spectrum_charts([-2.0, -1.0, 0.0], [0.25, 0.75], ([-1.0, 0.0], [0.1, 0.9]), "A.", many, off),
        *theory_charts.circle_charts([fits, off, many, fits, off]),
    ]
    found = [f"predicted {each.key}: {json.dumps(rounded(asdict(each)), ensure_ascii=False)}" for each in charts]
    return [*found, *(f"rows: {rounded(line.rows())} {rounded(line.rows(3))}" for line in (fits, off, many))]


def test_charts_of_predictions_are_those_that_are_kept() -> None:
    before = FILE.read_text(encoding="utf-8").splitlines()
    assert [line for line in before if line.startswith(("predicted ", "rows: "))] == predicted()


def test_the_page_is_the_one_that_is_kept(small_run: Run, tmp_path: Path) -> None:
    before = FILE.read_text(encoding="utf-8").splitlines()
    now = [*said(small_run, tmp_path), *predicted()]
    assert list(unified_diff(before, now, lineterm="", n=0)) == []


if __name__ == "__main__":
    write = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["write_full_run"]
    with tempfile.TemporaryDirectory() as folder:
        run = write(Path(folder) / "small", seed=1, num_steps=8, num_samples=20, stored=2)
        FILE.write_text("\n".join([*said(run, Path(folder)), *predicted()]) + "\n", encoding="utf-8")
