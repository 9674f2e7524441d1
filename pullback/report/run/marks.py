"""Where findings are to be seen: the chart that shows each, and marks at their steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pullback.charts.chart import SEVERITY, Chart, Figure
from pullback.charts.text import plotly_text

LOSS_CHART = "loss"
SUSPECTS = "suspects"  # no chart, but a table of samples
CLOSE = 0.12  # of the axis, within which marks share a label

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


def flattened(causes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Causes and what follows from them, in the order of their numbers."""
    return [each for cause in causes for each in (cause, *cause["consequences"])]


def link(causes: Sequence[dict[str, Any]], titles: dict[str, str]) -> None:
    """Give each finding the ``chart`` that shows it, and its title; the loss where there is no nearer one."""
    for finding in flattened(causes):
        wanted = (*SHOWN_BY.get(finding["key"], ()), LOSS_CHART)
        own = [f"{key}-{finding['place']}" for key in wanted] if finding["place"] else []
        found = next((key for pair in zip(wanted, own or wanted, strict=True) for key in pair if key in titles), "")
        finding["chart"], finding["chart_title"] = found, titles.get(found, "")


def marked(chart: Chart, findings: Sequence[dict[str, Any]]) -> Chart:
    """The chart with a line at the first step of each finding it shows, their numbers, and a bar over their steps."""
    mine = [each for each in findings if each["steps"] and chart.key in (LOSS_CHART, each["chart"])]
    if not mine or not is_over_steps(chart.figure):
        return chart
    layout = chart.figure["layout"]
    spans = chart.key != LOSS_CHART  # where all findings stand, their bars would hide the curve
    shapes = [shape for row, each in enumerate(mine) for shape in _shapes(each, row)[: 1 + spans]]
    more = {
        "shapes": [*layout.get("shapes", []), *shapes],
        "annotations": [*layout.get("annotations", []), *_labels(mine, _reach(chart.figure))],
    }
    points = [_points(mine, chart.figure["data"][0])] if chart.key == LOSS_CHART else []
    return replace(chart, figure={"data": [*chart.figure["data"], *points], "layout": layout | more})


def _points(findings: Sequence[dict[str, Any]], line: dict[str, Any]) -> dict[str, Any]:
    """Points on the line at the steps that findings begin at: at its last number before, where it has none there."""
    known = [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y is not None]
    at = [max((pair for pair in known if pair[0] <= each["steps"][0]), default=known[0]) for each in findings if known]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "findings",
        "x": [x for x, _ in at],
        "y": [y for _, y in at],
        "text": [f"{each['number']} {plotly_text(each['name'], 60)}" for each in findings] if at else [],
        "marker": {"symbol": "diamond", "size": 9, "color": [SEVERITY[each["severity"]] for each in findings]},
        "hovertemplate": "%{text}<extra></extra>",
        "showlegend": False,
        "meta": {"run": 0, "mark": True},
    }


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


def _labels(findings: Sequence[dict[str, Any]], reach: float) -> list[dict[str, Any]]:
    """Numbers above their lines; those of lines that stand close together as one."""
    groups: list[list[dict[str, Any]]] = []
    for each in sorted(findings, key=lambda each: (each["steps"][0], each["number"])):
        if groups and each["steps"][0] - groups[-1][0]["steps"][0] <= CLOSE * reach:
            groups[-1].append(each)
        else:
            groups.append([each])
    return [_label(group) for group in groups]


def _label(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    numbers = sorted(each["number"] for each in group)
    worst = max(group, key=lambda each: list(SEVERITY).index(each["severity"]))
    text = f"{numbers[0]}–{numbers[-1]}" if len(numbers) > 2 and _in_a_row(numbers) else ", ".join(map(str, numbers))
    return {
        "x": group[0]["steps"][0], "xref": "x", "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "top",
        "yshift": -3,
        "text": text, "showarrow": False, "borderpad": 2, "font": {"size": 11, "color": SEVERITY[worst["severity"]]},
        "hovertext": "<br>".join(f"{each['number']} {plotly_text(each['name'], 60)}" for each in group),
        "name": "finding",
    }  # fmt: skip


def _in_a_row(numbers: Sequence[int]) -> bool:
    return numbers[-1] - numbers[0] == len(numbers) - 1


def _reach(figure: Figure) -> float:
    steps = [x for trace in figure["data"] for x in trace["x"] if isinstance(x, int | float)]
    return max(steps) - min(steps) if steps else 0.0
