"""Charts with a place for each class: how often it is there, and how its gradients lie to those of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pullback.advisor.reading import class_counts
from pullback.charts.chart import (
    DIVERGING,
    PALETTE,
    Cell,
    Chart,
    Table,
    axis,
    base_layout,
    below_colour_bar,
    colour_bar,
)
from pullback.charts.numbers import drawable, evenly
from pullback.charts.text import as_float, number, percent, plotly_text
from pullback.report.run.line_charts import line_chart
from pullback.report.run.series import NamedRun, last_record
from pullback.report.run.single_numbers import NUMBERS

MOST_BARS = 60
MOST_CLASSES = 60
MOST_TICKS = 20


def targets_chart(named: NamedRun) -> Chart | None:
    """How often each class was among the targets of all batches; of numbers, where they lie."""
    counts = {name: count for name, count in class_counts(named.run).items() if count > 0}
    if not counts:
        return line_chart(NUMBERS, [named])
    whole, kept = sum(counts.values()), evenly(len(counts), MOST_BARS)
    names = list(counts)
    shares = [counts[name] / whole for name in names]
    layout = base_layout(300)
    layout["xaxis"] = axis("class", **_class_ticks([names[place] for place in kept]), showgrid=False)
    layout["yaxis"] = axis("share of the samples", tickformat=".3~%", rangemode="tozero")
    bars = {
        "type": "bar",
        "name": "share",
        "x": list(range(len(kept))),
        "y": [shares[place] for place in kept],
        "marker": {"color": PALETTE[0]},
        "text": [f"class {plotly_text(names[place])}: {number(counts[names[place]])}" for place in kept],
        "textposition": "none",
        "hovertemplate": "%{text}<br>%{y:.2~%}<extra></extra>",
    }
    most, least = max(names, key=lambda name: counts[name]), min(names, key=lambda name: counts[name])
    said = f"{len(names)} classes; most often {most} with {percent(counts[most] / whole)}, most rarely {least} with "
    rows: list[list[Cell]] = [[name, counts[name], share] for name, share in zip(names, shares, strict=True)]
    return Chart(
        "targets",
        "How often each class is there",
        "Over the batches of the whole run; a class far above the others is what a model that knows nothing says.",
        (f"{said}{percent(counts[least] / whole)}.",),
        {"data": [bars], "layout": layout},
        (Table("Classes among the targets", ("Class", "Samples", "Share"), rows),),
    )


def class_map(named: NamedRun) -> Chart | None:
    """The mean cosine between the gradients of every two classes at the last measurement."""
    last = last_record(named.run, "classes", "cosine", list)
    if last is None:
        return None
    labels, cosine = last.values.get("labels"), last.values["cosine"]
    rows = [[as_float(each) for each in row] for row in cosine if isinstance(row, list)]
    if not isinstance(labels, list) or not labels or {len(rows), *map(len, rows)} != {len(labels)}:
        return None
    kept = evenly(len(labels), MOST_CLASSES)
    names = [str(label) for label in labels]
    shown = [[rows[a][b] for b in kept] for a in kept]
    layout = below_colour_bar(base_layout(440))
    ticks = _class_ticks([names[place] for place in kept])
    layout["xaxis"] = axis("class", **ticks, showgrid=False, constrain="domain")
    layout["yaxis"] = axis("class", **ticks, showgrid=False, autorange="reversed", scaleanchor="x")
    heat: dict[str, Any] = {
        "type": "heatmap",
        "z": [drawable([round(each, 4) if math.isfinite(each) else each for each in row]) for row in shown],
        "zmin": -1,
        "zmax": 1,
        "colorscale": DIVERGING,
        "colorbar": colour_bar((-1, -0.5, 0, 0.5, 1), ("−1", "−0.5", "0", "0.5", "1")),
        "text": [[f"{plotly_text(names[a])} and {plotly_text(names[b])}" for b in kept] for a in kept],
        "hovertemplate": "classes %{text}<br>mean cosine %{z:.3f}<extra></extra>",
    }
    step = last.step
    table: list[list[Cell]] = [[name, *row] for name, row in zip(names, rows, strict=True)]
    return Chart(
        "class-map",
        f"Cosine between the gradients of every two classes at step {step:,}",
        "Blue: a step for one class helps the other, orange: it undoes it. On the diagonal are pairs within a class.",
        _worst(last.values.get("worst"), step),
        {"data": [heat], "layout": layout},
        (Table(f"Mean cosine between classes at step {step:,}", ("Class", *names), table),),
    )


def _worst(worst: object, step: int) -> tuple[str, ...]:
    if not isinstance(worst, list) or len(worst) != 3:
        return (f"At step {step:,}.",)
    return (f"Step {step:,}: classes {worst[0]} and {worst[1]} oppose each other most, by {number(worst[2], 3)}.",)


def _class_ticks(names: Sequence[str]) -> dict[str, Any]:
    kept = evenly(len(names), MOST_TICKS)
    return {"tickvals": kept, "ticktext": [plotly_text(names[place], 12) for place in kept]}
