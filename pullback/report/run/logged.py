"""Charts of what the user's own loop has logged: a held-out loss, an accuracy, whatever has a number a step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from pullback.charts.chart import Chart
from pullback.charts.text import clean, shorten
from pullback.report.run.line_charts import Spec, line_chart
from pullback.report.run.line_figure import Metric, Panel
from pullback.report.run.series import DRAWN, NamedRun, read_series

MOST_CHARTS = 24

ELSEWHERE = {
    ("test", "loss"),
    ("test", "accuracy"),
    *(("epoch", n) for n in ("epoch", "train_loss", "test_loss", "test_accuracy")),
}


def logged_charts(runs: Sequence[NamedRun]) -> list[Chart]:
    """A chart for each number that a loop logged at one step or more, in the order in which they first appear."""
    names: dict[tuple[str, str], None] = {}
    for named in runs:
        names |= {each: None for each in named.run.metrics if each[0] not in DRAWN and each not in ELSEWHERE}
    found = (each for each in names if any(len(read_series(named.run, *each)[0]) for named in runs))
    charts = [line_chart(_spec(place, *each), runs) for place, each in enumerate(islice(found, MOST_CHARTS), start=1)]
    return [chart for chart in charts if chart is not None]


def _spec(place: int, probe: str, name: str) -> Spec:
    label = shorten(clean(f"{probe}.{name}"), 80)
    reading = "As the training loop has logged it."
    return Spec(f"logged-{place}", label, reading, (Metric(probe, name, label),), (Panel(label, "auto"),))
