"""Puts the page together: one file that needs no network and runs the two scripts it came with, no other."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from pullback._checks import input_error
from pullback.report.header import header_html
from pullback.report.inputs import read_runs
from pullback.report.markup import contents_html, section_html
from pullback.report.notes import damage_html, failures_html, findings_html
from pullback.report.sections import SECTIONS, charts_of
from pullback.report.series import NamedRun
from pullback.report.text import escape, script_json
from pullback.runs import Run


def write_report(
    run_or_runs: Run | str | Path | Sequence[Run | str | Path], path: str | Path, *, overwrite: bool = False
) -> Path:
    """Write the report of one run, or of several laid over each other, as one self-contained HTML file.

    The page works offline, shows all that comes from a run as text, and appears under its name only once it
    is whole.

    Args:
        run_or_runs: what ``load_run`` returns, the folder of a run, or a list of these.
        path: the file to write; its folder is made if it does not exist.
        overwrite: replace a file of that name.

    Returns:
        The file.

    Raises:
        InputError: the file exists already, ``path`` is a folder, or there is no run to show.

    Example:
        >>> import tempfile
        >>> from pullback.runs import RunWriter
        >>> folder = tempfile.mkdtemp()
        >>> with RunWriter(folder + "/run", {}) as writer:
        ...     writer.append(0, "loss", {"loss": 2.5})
        >>> write_report(folder + "/run", folder + "/report.html").name
        'report.html'
    """
    where = f"write_report({path})"
    runs, path = read_runs("write_report", run_or_runs), Path(path)
    if path.is_dir():
        raise input_error(where, "the path of a file", "a folder", "Add a file name such as report.html")
    if path.exists() and not overwrite:
        remedy = "Choose another path, or pass overwrite=True"
        raise input_error(where, "a path that is free", "an existing file", remedy)
    text = page_html(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def page_html(runs: Sequence[NamedRun]) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs  # 5 MB of text, which only this function needs

    plotly, own = get_plotlyjs().replace("\r\n", "\n"), _resource("page.js")
    built = [(section, *charts_of(section, runs)) for section in SECTIONS]
    figures = {
        chart.key: chart.figure | {"frames": [asdict(frame) for frame in chart.frames]}
        for _, charts, _ in built
        for chart in charts
    }
    failures = failures_html(runs)
    parts = "\n".join(section_html(*each) for each in built)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{_policy(plotly, own)}
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(runs[0].name) if len(runs) == 1 else f"{len(runs)} runs"} – pullback training report</title>
<style>{_resource("style.css")}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the findings and charts</a>
{header_html(runs)}
{contents_html(built, bool(failures))}
<main id="content" tabindex="-1">
<section id="findings" aria-labelledby="findings-title"><h2 id="findings-title">What the numbers say</h2>
{findings_html(runs)}{damage_html(runs)}</section>
<noscript><p>The charts need JavaScript; their numbers stand in the table below each one.</p></noscript>
{parts}
{failures}
</main>
<footer><p>Drag over a chart to zoom in, double-click to return. This file is complete: it loads nothing from
the network.</p></footer>
<script type="application/json" id="charts">{script_json(figures)}</script>
<script id="plotly">{plotly}</script>
<script>{own}</script>
</body>
</html>
"""


def _resource(name: str) -> str:
    """A text file that comes with this package."""
    return files("pullback.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy(*scripts: str) -> str:
    """The content policy: exactly these scripts run, and nothing is fetched."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    rules = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"
    return f'<meta http-equiv="Content-Security-Policy" content="{rules}">'
