"""Puts the page of a run together, or of several laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pullback.charts.document import check_free, document_html, write_whole
from pullback.report.run.contents import contents_html, section_html
from pullback.report.run.header import header_html
from pullback.report.run.inputs import read_runs
from pullback.report.run.notes import damage_html, failures_html, findings_html
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import NamedRun
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
    check_free(where, path, "Choose another path, or pass overwrite=True", overwrite=overwrite)
    return write_whole(page_html(runs), path)


def page_html(runs: Sequence[NamedRun]) -> str:
    """The whole page as text."""
    built = [(section, *charts_of(section, runs)) for section in SECTIONS]
    failures = failures_html(runs)
    parts = "\n".join(section_html(*each) for each in built)
    body = f"""{header_html(runs)}
{contents_html(built, bool(failures))}
<main id="content" tabindex="-1">
<section id="findings" aria-labelledby="findings-title"><h2 id="findings-title">What the numbers say</h2>
{findings_html(runs)}{damage_html(runs)}</section>
<noscript><p>The charts need JavaScript; their numbers stand in the table below each one.</p></noscript>
{parts}
{failures}
</main>"""
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    charts = [chart for _, drawn, _ in built for chart in drawn]
    return document_html(f"{name} – pullback training report", body, charts, "Skip to the findings and charts")
