"""Where findings are to be seen: the chart that shows each, and marks at their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pullback.charts.chart import SEVERITY, Chart, Figure
from pullback.charts.text import plotly_text
from pullback.report.run.series import NamedRun

LOSS_CHART = "loss"
SUSPECTS = "suspects"  # no chart, but a table of samples
MOST_NUMBERED = 6  # runs over each other whose marks have numbers; of more the points alone
NUMBERS = 25  # pixels above a chart that these take
AT_LINES = "Dotted lines and their numbers are findings, at the step they were first seen."
ON_LINES = "Diamonds are findings, in the colour of their run, at the step they were first seen."

# By finding, the charts that show it, the best first; of those the first that is on the page.
SHOWN_BY: dict[str, tuple[str, ...]] = {
    "loss-of-probabilities": ("loss",),
    "gradients-not-zeroed": ("gradient-norm", "gradients"),
    "parameters-not-trained": ("updates",),
    "weight-decay-too-high": ("updates",),
    "schedule-at-zero": ("learning-rate",),
    "data-not-shuffled": ("targets", "loss"),
    "outlying-samples": ("inputs", "suspects"),
    "targets-not-normalised": ("targets",),
    "inputs-not-normalised": ("inputs",),
    "chaotic-initialisation": ("initialisation", "depth"),
    "ordered-initialisation": ("initialisation", "depth"),
    "exploding-gradients": ("depth", "flow"),
    "vanishing-gradients": ("depth", "flow"),
    "learning-rate-too-high": ("sharpness", "learning-rate", "updates"),
    "learning-rate-too-low": ("sharpness", "updates", "learning-rate"),
    "non-finite-gradients": ("gradient-norm", "gradients"),
    "dead-units": ("dead",),
    "saturated-units": ("saturated", "dead"),
    "rank-collapse": ("tokens", "attention", "activations"),
    "unbalanced-layers": ("share", "flow"),
    "suspect-samples": ("suspects",),
    "duplicates": ("suspects",),
    "class-imbalance": ("targets",),
    "batch-norm-batch-too-small": ("batch-norm",),
    "batch-too-small": ("noise",),
    "batch-too-large": ("noise",),
    "conflicting-gradients": ("alignment", "cosine", "classes"),
    "effective-rate-decay": ("effective-rate",),
    "memorisation": ("loss", "accuracy"),
    "ill-conditioning": ("conditioning", "spectrum"),
    "lazy-regime": ("tangent",),
}
MEASURED_BY = {"sharpness": "sharpness", "curvature": "sharpness", "|dw|": "updates"}  # words of evidence -> chart


def flattened(causes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Causes and what follows from them, in the order of their numbers."""
    return [each for cause in causes for each in (cause, *cause["consequences"])]


def link(causes: Sequence[dict[str, Any]], titles: dict[str, str]) -> None:
    """Give each finding the ``chart`` that shows it, and its title; the loss where there is no nearer one."""
    for finding in flattened(causes):
        wanted = (*_by_evidence(finding), LOSS_CHART)
        own = [f"{key}-{finding['place']}" for key in wanted] if finding["place"] else []
        found = next((key for pair in zip(wanted, own or wanted, strict=True) for key in pair if key in titles), "")
        finding["chart"], finding["chart_title"] = found, titles.get(found, "")


def _by_evidence(finding: dict[str, Any]) -> list[str]:
    """The charts of a finding, those first that show what it was told by."""
    names = [name for name, _ in finding["evidence"]]
    told = {chart for word, chart in MEASURED_BY.items() if any(word in name for name in names)}
    return sorted(SHOWN_BY.get(finding["key"], ()), key=lambda chart: chart not in told)


def marked(chart: Chart, findings: Sequence[dict[str, Any]], runs: Sequence[NamedRun]) -> Chart:
    """The chart with the findings it shows: a line at the first step of each, a bar over its steps, its number.

    Where runs lie over each other it is a point on the run's line, in its colour.
    """
    mine = [each for each in findings if each["steps"] and chart.key in (LOSS_CHART, each["chart"])]
    if not mine or not is_over_steps(chart.figure):
        return chart
    layout, several = chart.figure["layout"], len(runs) > 1
    over = several and _runs_in(chart.figure) > 1
    spans = chart.key != LOSS_CHART  # where all findings stand, their bars would hide the curve
    shapes = [] if over else [shape for row, each in enumerate(mine) for shape in _shapes(each, row)[: 1 + spans]]
    numbered = [] if over and len(runs) > MOST_NUMBERED else [_label(each, runs, over) for each in mine]
    more = {"shapes": [*layout.get("shapes", []), *shapes], "meta": layout["meta"] | {"marks": numbered}}
    more |= _room(layout) if numbered else {}
    points = _points(mine, chart.figure["data"], runs, over) if over or chart.key == LOSS_CHART else []
    figure = {"data": [*chart.figure["data"], *points], "layout": layout | more}
    said = f" {ON_LINES if over else AT_LINES}" if chart.key == LOSS_CHART else ""
    return replace(chart, figure=figure, reading=chart.reading + said)


def _room(layout: Figure) -> Figure:
    """The layout with room for the numbers, between the plot and its legend."""
    margin, legend = layout["margin"], layout["legend"]
    inside = layout["height"] - margin["t"] - margin["b"]
    return {
        "height": layout["height"] + NUMBERS,
        "margin": margin | {"t": margin["t"] + NUMBERS},
        "legend": legend | {"y": round(legend["y"] + NUMBERS / inside, 3)},
    }


def _runs_in(figure: Figure) -> int:
    return len({run for trace in figure["data"] if (run := trace.get("meta", {}).get("run")) is not None})


def _points(
    findings: Sequence[dict[str, Any]], traces: Sequence[dict[str, Any]], runs: Sequence[NamedRun], over: bool
) -> list[dict[str, Any]]:
    """Points on the first line of each run at the steps that findings begin at: at its last number before those."""
    axes: dict[str, list[tuple[dict[str, Any], int, tuple[int, float]]]] = {}
    for each in findings:
        run = _run_of(each)
        line = next((trace for trace in traces if trace.get("meta", {}).get("run") == run), None)
        known = [] if line is None else [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y is not None]
        if line is not None and known:
            at = max((pair for pair in known if pair[0] <= each["steps"][0]), default=known[0])
            axes.setdefault(line.get("yaxis", "y"), []).append((each, run, at))
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "findings",
            "x": [x for *_, (x, _) in found],
            "y": [y for *_, (_, y) in found],
            "yaxis": axis,
            "text": [_said(each) for each, *_ in found],
            "marker": {
                "symbol": "diamond",
                "size": 10 if over else 9,
                "color": [_colour(each, runs, over) for each, *_ in found],
            },
            "hovertemplate": "%{text}<extra></extra>",
            "showlegend": False,
            "meta": {"run": found[0][1], "runs": [run for _, run, _ in found], "mark": True},
        }
        for axis, found in axes.items()
    ]


def _run_of(finding: dict[str, Any]) -> int:
    """The place of its run among those of the page, from 0."""
    return max(0, int(finding["place"]) - 1)


def _colour(finding: dict[str, Any], runs: Sequence[NamedRun], over: bool) -> str:
    look = runs[_run_of(finding)].look
    return look.colour if over and look else SEVERITY[finding["severity"]]


def _said(finding: dict[str, Any]) -> str:
    of_run = f"{plotly_text(finding['run'], 60)}: " if finding["run"] else ""
    return f"{of_run}{finding['number']} {plotly_text(finding['name'], 60)}"


def is_over_steps(figure: Figure) -> bool:
    """Whether its horizontal axis is that of the training steps."""
    return figure["layout"].get("meta", {}).get("over") == "steps"


def _shapes(finding: dict[str, Any], row: int) -> list[dict[str, Any]]:
    first, last = finding["steps"]
    looks = {"type": "line", "xref": "x", "yref": "paper", "layer": "below", "name": f"finding {finding['number']}"}
    colour = SEVERITY[finding["severity"]]
    lines = [looks | {"x0": first, "x1": first, "y0": 0, "y1": 1, "line": {"color": colour, "width": 1, "dash": "dot"}}]
    if last > first:
        at = 0.006 + 0.016 * (row % 8)
        lines.append(looks | {"x0": first, "x1": last, "y0": at, "y1": at, "line": {"color": colour, "width": 2}})
    return lines


def _label(finding: dict[str, Any], runs: Sequence[NamedRun], over: bool) -> dict[str, Any]:
    """What the page's script labels the mark with; of marks closer to each other than labels are wide it makes one."""
    return {
        "x": finding["steps"][0],
        "run": _run_of(finding),
        "number": finding["number"],
        "said": _said(finding),
        "colour": _colour(finding, runs, over),
        "grave": list(SEVERITY).index(finding["severity"]),
    }
