"""The order of the charts on the page, and what is said where one has no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pullback.charts.chart import Chart
from pullback.report.run import courses
from pullback.report.run import single_numbers as curves
from pullback.report.run.at_depth import initialisation_chart, jacobian_chart
from pullback.report.run.classes import class_map, targets_chart
from pullback.report.run.cosine import cosine_chart
from pullback.report.run.depth import depth_chart, flow_chart, share_chart
from pullback.report.run.layer_lines import SPECS as layer_specs
from pullback.report.run.layer_lines import layer_lines
from pullback.report.run.line_charts import line_chart
from pullback.report.run.logged import logged_charts
from pullback.report.run.series import NamedRun


@dataclass(frozen=True)
class Entry:
    """One chart to try: its maker, and what to say if no run measured it; nothing of what few presets measure.

    ``make`` takes all runs at once, ``make_each`` one run: such charts cannot be laid over each other. ``make_all``
    makes as many charts as the runs ask for.
    """

    missing: str
    make: Callable[[Sequence[NamedRun]], Chart | None] | None = None
    make_each: Callable[[NamedRun], Chart | None] | None = None
    make_all: Callable[[Sequence[NamedRun]], list[Chart]] | None = None


@dataclass(frozen=True)
class Section:
    """A heading of the page with its charts."""

    key: str
    title: str
    entries: tuple[Entry, ...]


MOST_EACH = 6  # runs that get the charts which cannot be laid over each other
LOSS = Section(
    "losses",
    "The loss",
    (Entry("Loss was not measured (probes “loss” and “epoch”).", courses.loss_chart),),
)
SECTIONS = (
    LOSS,
    Section(
        "training",
        "Training",
        (
            Entry("Accuracy was not measured (probes “loss” and “epoch”).", partial(line_chart, curves.ACCURACY)),
            Entry("", courses.learning_rate_chart),
            Entry("Sharpness was not measured (probe “sharpness”).", curves.sharpness_chart),
            Entry("Gradient norms were not measured (probe “gradients”).", partial(line_chart, curves.GRADIENTS)),
            Entry("", courses.gradient_norm_chart),
            Entry("", partial(line_chart, curves.NOISE)),
            Entry("", make_all=logged_charts),
        ),
    ),
    Section(
        "samples",
        "Samples and classes",
        (
            Entry("Alignment of gradients was not measured (probe “alignment”).", curves.alignment_chart),
            Entry("No matrix of cosines was stored (probe “alignment”).", make_each=cosine_chart),
            Entry("", partial(line_chart, curves.WITHIN)),
            Entry("", make_each=class_map),
            Entry("", make_each=targets_chart),
            Entry("", partial(line_chart, curves.INPUTS)),
        ),
    ),
    Section(
        "kernel",
        "The gradient kernel",
        (
            Entry("Eigenvalues of the kernel were not measured (probe “kernel”).", curves.spectrum_chart),
            Entry(
                "The moments M1 and M2 were not measured (probe “kernel”).",
                partial(line_chart, curves.MOMENTS),
            ),
            Entry("Conditioning was not measured (probe “kernel”).", partial(line_chart, curves.CONDITIONING)),
            Entry("", curves.tangent_chart),
        ),
    ),
    Section(
        "layers",
        "Signal through the layers",
        (
            Entry("Gradient norms by layer were not measured (probe “flow”).", make_each=depth_chart),
            Entry("The flow over training was not measured (probe “flow”).", make_each=flow_chart),
            Entry("Shares of the trace were not measured (probe “flow”).", make_each=share_chart),
            *(Entry("", make_each=partial(layer_lines, spec)) for spec in layer_specs),
            Entry("", make_each=initialisation_chart),
            Entry("", make_each=jacobian_chart),
        ),
    ),
)


def charts_of(section: Section, runs: Sequence[NamedRun]) -> tuple[list[Chart], list[str]]:
    """The charts of a section that have numbers, and a sentence for each that has none."""
    charts: list[Chart] = []
    absent: list[str] = []
    for entry in section.entries:
        found = entry.make_all(runs) if entry.make_all else _made(entry, runs)
        charts += found
        if not found and entry.missing and (not entry.make_each or len(runs) <= MOST_EACH):
            absent.append(entry.missing)
    if len(runs) > MOST_EACH and any(entry.make_each for entry in section.entries):
        absent.append("Charts that show one run each stand on the pages of the runs themselves.")
    return charts, absent


def _made(entry: Entry, runs: Sequence[NamedRun]) -> list[Chart]:
    made = [entry.make(runs)] if entry.make else _one_each(entry, runs) if len(runs) <= MOST_EACH else []
    return [chart for chart in made if chart is not None]


def _one_each(entry: Entry, runs: Sequence[NamedRun]) -> list[Chart | None]:
    """A chart for each run; with several runs, its title says which."""
    made = [entry.make_each(named) if entry.make_each else None for named in runs]
    if len(runs) == 1:
        return list(made)
    return [
        chart and _of_run(replace(chart, key=f"{chart.key}-{place}", title=f"{chart.title}: {named.name}"), place - 1)
        for place, (chart, named) in enumerate(zip(made, runs, strict=True), start=1)
    ]


def _of_run(chart: Chart, run: int) -> Chart:
    """The chart, whose traces say of which run they are: its steps are other epochs than those of others."""
    data = [trace | {"meta": trace.get("meta", {}) | {"run": run}} for trace in chart.figure["data"]]
    return replace(chart, figure=chart.figure | {"data": data})
