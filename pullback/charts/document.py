"""A page as one file that needs no network and runs the two scripts it came with, no other."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from pullback._checks import input_error
from pullback.charts.chart import Chart
from pullback.charts.text import escape, script_json


def document_html(title: str, body: str, charts: Iterable[Chart], skip_to: str) -> str:
    """A whole page as text.

    Args:
        title: of the browser's window, as plain text.
        body: HTML; whatever in it is not ours has been escaped.
        charts: the charts whose boxes (``markup.chart_html``) stand in ``body``.
        skip_to: what the link for the keyboard says; ``body`` has an element with the id ``content``.
    """
    from plotly.offline import get_plotlyjs  # 5 MB of text, which only this function needs

    plotly, own = get_plotlyjs().replace("\r\n", "\n"), _resource("page.js")
    figures = {chart.key: chart.figure | {"frames": [asdict(frame) for frame in chart.frames]} for chart in charts}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{_policy(plotly, own)}
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{_resource("style.css")}</style>
</head>
<body>
<a class="skip" href="#content">{escape(skip_to)}</a>
{body}
<footer><p>Drag over a chart to zoom in, double-click to return. This file is complete: it loads nothing from
the network.</p></footer>
<script type="application/json" id="charts">{script_json(figures)}</script>
<script id="plotly">{plotly}</script>
<script>{own}</script>
</body>
</html>
"""


def check_free(where: str, path: Path, remedy: str, *, overwrite: bool = False) -> None:
    """Refuse the path of a folder, and that of a file which is not to be replaced."""
    if path.is_dir():
        raise input_error(where, "the path of a file", "a folder", "Add a file name such as report.html")
    if path.exists() and not overwrite:
        raise input_error(where, "a path that is free", "an existing file", remedy)


def write_whole(text: str, path: Path) -> Path:
    """Write a file that appears under its name only once it is whole; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _resource(name: str) -> str:
    """A text file that comes with this package."""
    return files("pullback.charts").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy(*scripts: str) -> str:
    """The content policy: exactly these scripts run, and nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
