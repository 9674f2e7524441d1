"""Puts the page of a run together, or of several laid over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pullback.charts.chart import Chart
from pullback.charts.document import check_free, document_html, write_whole
from pullback.charts.still import Still, still
from pullback.report.run.axes import axes_of
from pullback.report.run.compared import compared
from pullback.report.run.header import head_of
from pullback.report.run.line_charts import unnamed
from pullback.report.run.marks import SUSPECTS, flattened, link, marked
from pullback.report.run.notes import damage_of, failures_of, findings_of
from pullback.report.run.read_runs import read_runs
from pullback.report.run.sections import SECTIONS, charts_of
from pullback.report.run.series import NamedRun
from pullback.report.run.tables import layer_table, suspects_of
from pullback.runs import Run

FIRST_POINTS = 4000  # of all lines of the loss, as it is seen before a script has drawn it


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


def page_html(runs: Sequence[NamedRun], live: str | None = None) -> str:
    """The whole page as text; ``live`` is its version, where it is served and not a file."""
    made = [(section, *charts_of(section, runs)) for section in SECTIONS]
    causes, suspects = findings_of(runs), suspects_of(runs[0]) if len(runs) == 1 else None
    titles = {chart.key: chart.title for _, charts, _ in made for chart in charts}
    link(causes, titles | ({SUSPECTS: "Samples that stand out"} if suspects else {}))
    marks = flattened(causes)
    sections = [
        (section, [marked(unnamed(chart, runs), marks, runs) for chart in charts], absent)
        for section, charts, absent in made
    ]
    return document_html(
        "pullback.report",
        "run.html",
        [chart for _, charts, _ in sections for chart in charts],
        live=live,
        runs=[head_of(named, place) for place, named in enumerate(runs)],
        compared=compared(runs) if len(runs) > 1 else None,
        axes=axes_of(runs),
        layers=layer_table(runs[0]) if len(runs) == 1 else None,
        suspects=suspects,
        loss=sections[0],
        first=next((_first_sight(chart) for chart in sections[0][1]), None),
        sections=sections[1:],
        findings=causes,
        damage=damage_of(runs),
        failures=failures_of(runs),
    )


def _first_sight(chart: Chart) -> Still:
    lines = max(1, len(chart.figure["data"]))
    return still(chart, max(20, min(200, FIRST_POINTS // lines)))
