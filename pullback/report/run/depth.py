"""The charts of signal propagation: one number a layer, over depth and over training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pullback.charts.chart import (
    OVER_STEPS,
    PALETTE,
    SEQUENTIAL,
    Chart,
    Figure,
    Table,
    axis,
    base_layout,
    below_colour_bar,
    colour_bar,
    log_axis,
    step_axis,
)
from pullback.charts.numbers import drawable, evenly, extremes, finite
from pullback.charts.text import counted, number, percent, plotly_text
from pullback.report.run.line_figure import MOST_POINTS
from pullback.report.run.series import Layers, NamedRun, last_record, last_value, layer_colours, read_layers
from pullback.report.run.step_rows import StepRows

MOST_TICKS = 16
MOST_BANDS = 9
MOST_COLUMNS = 240


def depth_chart(named: NamedRun) -> Chart | None:
    """Gradient norm against depth at the first, the middle and the last measured step."""
    layers = read_layers(named.run, "flow", "gradient_norm")
    if layers is None:
        return None
    picked = evenly(len(layers.steps), 3)
    colours = [PALETTE[6], PALETTE[5], PALETTE[1]][-len(picked) :]
    layout = base_layout(layers_height(layers)) | {"showlegend": len(picked) > 1, "hovermode": "y unified"}
    layout["yaxis"] = axis("", **layer_ticks(layers.names), range=[len(layers.names) - 0.5, -0.5])
    values = layers.values[picked].ravel()
    layout["xaxis"] = log_axis("norm (loss / parameter)", values)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"step {layers.steps[row]:,}",
            "x": drawable(layers.values[row].tolist(), log=layout["xaxis"].get("type") == "log"),
            "y": list(range(len(layers.names))),
            "line": {"color": colour, "width": 2},
            "marker": {"size": 6},
            "hovertemplate": "%{x:.4~g}",
        }
        for row, colour in zip(picked, colours, strict=True)
    ]
    ends = dict.fromkeys((picked[0], picked[-1]))
    return Chart(
        "depth",
        "Gradient norm of each layer against depth",
        "The input is at the top: an upright line is healthy, one that leans to smaller norms at the top is "
        "a vanishing gradient, one that leans to larger norms there an exploding one.",
        (*(_describe_depth(layers, row) for row in ends), *_verdict(named)),
        {"data": data, "layout": layout},
        (_table("Gradient norm of each layer (root mean square over samples)", layers),),
    )


def layers_height(layers: Layers) -> int:
    """Height of a chart with one row a layer."""
    return max(300, min(640, 110 + 26 * len(layers.names)))


def _describe_depth(layers: Layers, row: int) -> str:
    """First and last layer at one step, and the extremes if these lie between."""
    values = layers.values[row].tolist()
    first, last = number(values[0]), number(values[-1])
    text = f"Step {layers.steps[row]:,}: {first} in the first layer, {last} in the last"
    numbers = finite(values).tolist()
    for word, pick in (("least", min), ("greatest", max)):
        if numbers and (extreme := pick(numbers)) not in (values[0], values[-1]):
            text += f"; {word} {number(extreme)} in {layers.names[values.index(extreme)]}"
    return text + "."


def _verdict(named: NamedRun) -> tuple[str, ...]:
    said, slope = last_record(named.run, "flow", "verdict", str), last_value(named.run, "flow", "slope")
    if said is None:
        return ()
    told = "" if slope is None else f", ln|g|² changes by {number(slope, 3)} a layer towards the input"
    return (f"Verdict at the last step: {said.values['verdict']}{told}.",)


def flow_chart(named: NamedRun) -> Chart | None:
    """Gradient norm of every layer over training, as a heat map of its logarithm."""
    layers = read_layers(named.run, "flow", "gradient_norm")
    if layers is None:
        return None
    kept = evenly(len(layers.steps), MOST_COLUMNS)
    steps = layers.steps[kept].tolist()
    norms = [drawable(row, log=True) for row in layers.values[kept].T.tolist()]
    positive = [norm for row in norms for norm in row if norm is not None]
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": steps,
        "y": list(range(len(layers.names))),
        "z": [[None if norm is None else round(math.log10(norm), 3) for norm in row] for row in norms],
        "text": [
            [f"{plotly_text(name)}: {number(norm)}" for norm in row]
            for name, row in zip(layers.names, norms, strict=True)
        ],
        "colorscale": SEQUENTIAL,
        "hovertemplate": "%{text}<br>step %{x:,}<extra></extra>",
    }
    if positive:
        scale = log_axis("", positive)
        heat["colorbar"] = colour_bar([math.log10(tick) for tick in scale["tickvals"]], scale["ticktext"])
    layout = below_colour_bar(base_layout(layers_height(layers)))
    layout |= OVER_STEPS
    layout["xaxis"] = step_axis(steps, showgrid=False)
    layout["yaxis"] = axis("", **layer_ticks(layers.names), showgrid=False, range=[len(layers.names) - 0.5, -0.5])
    whole = f", from {number(min(positive))} to {number(max(positive))}" if positive else ""
    unusable = int((~np.isfinite(layers.values) | (layers.values <= 0)).sum())
    gap = f" Left blank: {counted(unusable, 'value')} at or below zero, NaN or infinite." if unusable else ""
    return Chart(
        "flow",
        "Gradient norm of each layer over training",
        "Colours follow the logarithm of the norm, and the input is at the top: a band that darkens with "
        "time is a layer whose gradient dies out.",
        (
            f"{counted(len(layers.names), 'layer')} at {counted(len(layers.steps), 'step')}{whole}.{gap}",
            _describe_depth(layers, -1),
        ),
        {"data": [heat], "layout": layout},
        (_table("Gradient norm of each layer over training", layers),),
    )


def share_chart(named: NamedRun) -> Chart | None:
    """Each layer's share of the trace of the kernel over training, as stacked areas."""
    layers = read_layers(named.run, "flow", "trace_share")
    if layers is None:
        return None
    bands = _bands(layers)
    drawn = _drawn(bands)
    layout = base_layout(320 + 7 * len(bands.names)) | {"showlegend": True, "hovermode": "x unified"}
    layout |= OVER_STEPS
    layout["legend"] = layout["legend"] | {"traceorder": "normal"}
    layout["xaxis"] = step_axis(drawn.steps.tolist(), showgrid=False)
    whole = float(np.nansum(np.where(np.isfinite(bands.values), bands.values, 0.0), axis=1).max())
    layout["yaxis"] = axis("share of tr K", tickformat=".3~%", range=[0, max(1.0, whole)])
    colours = band_colours(named, layers, bands)
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(drawn.steps) > 1 else "lines+markers",
            "name": plotly_text(name),
            "x": drawn.steps.tolist(),
            "y": drawable([float(f"{value:.5g}") for value in drawn.values[:, column].tolist()]),
            "stackgroup": "layers",
            "fillcolor": colours[column],
            "line": {"color": "rgba(255,255,255,0.7)", "width": 0.6},
            "marker": {"color": colours[column]},
            "hovertemplate": "%{y:.2~%}",
        }
        for column, name in enumerate(drawn.names)
    ]
    known = np.where(np.isfinite(layers.values), layers.values, -1.0)
    first, last = int(known[0].argmax()), int(known[-1].argmax())
    return Chart(
        "share",
        "Share of each layer in the trace of the kernel",
        "The wider its band, the more of the squared gradient a layer holds; the input's band is the lowest.",
        (
            f"Largest share: {layers.names[first]} with {percent(float(layers.values[0, first]))} at step "
            f"{layers.steps[0]:,}, {layers.names[last]} with {percent(float(layers.values[-1, last]))} at "
            f"step {layers.steps[-1]:,}.",
        ),
        {"data": data, "layout": layout},
        (_table("Share of each layer in tr K", layers),),
    )


def band_colours(named: NamedRun, layers: Layers, bands: Layers) -> list[str]:
    """Of a layer its own; of several together that of the one in their middle."""
    own = list(layer_colours(named.run, layers.names).values())
    edges = [round(edge) for edge in np.linspace(0, len(own), len(bands.names) + 1)]
    return [own[(a + b - 1) // 2] for a, b in itertools.pairwise(edges)]


def _bands(layers: Layers) -> Layers:
    """The layers to draw: with many, neighbours in depth are added up."""
    count = len(layers.names)
    if count <= MOST_BANDS:
        return layers
    edges = [round(edge) for edge in np.linspace(0, count, MOST_BANDS + 1)]
    groups = list(itertools.pairwise(edges))
    names = [layers.names[a] + (f" and {b - a - 1} more" if b - a > 1 else "") for a, b in groups]
    values = np.stack([np.nansum(layers.values[:, a:b], axis=1) for a, b in groups], axis=1)
    return Layers(names, layers.steps, values)


def _drawn(bands: Layers) -> Layers:
    """The bands at the steps that are drawn, the same of all: each one's extremes, where there are many steps."""
    if len(bands.steps) <= MOST_POINTS:
        return bands
    kept = np.unique(np.concatenate([extremes(band, MOST_POINTS // len(bands.names)) for band in bands.values.T]))
    return Layers(bands.names, bands.steps[kept], bands.values[kept])


def layer_ticks(names: Sequence[str]) -> Figure:
    """Ticks with the layers' names, shown literally; with many layers, an even selection of them."""
    kept = evenly(len(names), MOST_TICKS)
    return {"tickvals": kept, "ticktext": [plotly_text(names[place], 20) for place in kept]}


def _table(caption: str, layers: Layers) -> Table:
    return Table(caption, ("Step", *layers.names), StepRows([(layers.steps, column) for column in layers.values.T]))
