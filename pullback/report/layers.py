"""The charts of signal propagation: one number a layer, over depth and over training. One chart for each run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pullback.report.chart import (
    PALETTE,
    SEQUENTIAL,
    Cell,
    Chart,
    Figure,
    Table,
    axis,
    base_layout,
    log_axis,
    step_axis,
)
from pullback.report.series import Layers, NamedRun, drawable, evenly, read_layers
from pullback.report.text import number, percent, plotly_text

MOST_TICKS = 16
MOST_BANDS = 9
MOST_COLUMNS = 240
# light to dark along depth, from the input to the output
BANDS = ("#FBE3B5", "#F2C57C", "#E69F4A", "#D57A3A", "#B9573B", "#8F4A5B", "#66497A", "#43478A", "#2A3C78")


def depth_chart(named: NamedRun) -> Chart | None:
    """Gradient norm against depth at the first, the middle and the last measured step."""
    layers = read_layers(named.run, "flow", "gradient_norm")
    if layers is None:
        return None
    picked = evenly(len(layers.steps), 3)
    colours = [PALETTE[6], PALETTE[5], PALETTE[1]][-len(picked) :]
    layout = base_layout(320) | {"showlegend": len(picked) > 1, "hovermode": "x unified"}
    layout["xaxis"] = axis("layer, from input to output", **layer_ticks(layers.names), showgrid=False)
    values = [float(value) for row in picked for value in layers.values[row]]
    layout["yaxis"] = log_axis("gradient norm (loss / parameter)", values)
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"step {layers.steps[row]:,}",
            "x": list(range(len(layers.names))),
            "y": drawable(layers.values[row].tolist(), log=layout["yaxis"].get("type") == "log"),
            "line": {"color": colour, "width": 2},
            "marker": {"size": 6},
            "hovertemplate": "%{y:.4~g}",
        }
        for row, colour in zip(picked, colours, strict=True)
    ]
    return Chart(
        "depth",
        "Gradient norm of each layer against depth",
        "A level line is healthy; a fall towards the input (to the left) is a vanishing gradient, "
        "a rise towards the input an exploding one.",
        " ".join(_describe_depth(layers, row) for row in dict.fromkeys((picked[0], picked[-1])))
        + _verdict(named),
        {"data": data, "layout": layout},
        (_table("Gradient norm of each layer (root mean square over samples)", layers),),
    )


def _describe_depth(layers: Layers, row: int) -> str:
    ends = layers.values[row, 0], layers.values[row, -1]
    return (
        f"Step {layers.steps[row]:,}: {number(float(ends[0]))} in the first layer and {number(float(ends[1]))} in the "
        f"last{_extremes(layers.values[row])}."
    )


def _extremes(values: np.ndarray) -> str:
    found = values[np.isfinite(values)]
    return (
        f" (least {number(float(found.min()))}, greatest {number(float(found.max()))})" if found.size else ""
    )


def _verdict(named: NamedRun) -> str:
    verdicts = [each for each in named.run.series("flow", "verdict")[1] if isinstance(each, str)]
    slopes = named.run.series("flow", "slope")[1]
    if not verdicts:
        return ""
    slope = f", ln|g|² changes by {number(slopes[-1], 3)} a layer towards the input" if slopes else ""
    return f" Verdict at the last step: {verdicts[-1]}{slope}."


def flow_chart(named: NamedRun) -> Chart | None:
    """Gradient norm of every layer over training, as a heat map of its logarithm."""
    layers = read_layers(named.run, "flow", "gradient_norm")
    if layers is None:
        return None
    kept = evenly(len(layers.steps), MOST_COLUMNS)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(layers.values[kept].T)
    steps = [layers.steps[place] for place in kept]
    heat = {
        "type": "heatmap",
        "x": steps,
        "y": list(range(len(layers.names))),
        "z": [
            [None if value is None else round(value, 3) for value in drawable(row.tolist())] for row in logs
        ],
        "text": [[plotly_text(name)] * len(steps) for name in layers.names],
        "colorscale": SEQUENTIAL,
        "colorbar": {"title": {"text": "log₁₀ norm", "side": "right"}, "thickness": 12, "outlinewidth": 0},
        "hovertemplate": "%{text}<br>step %{x:,}<br>log₁₀ norm %{z:.2f}<extra></extra>",
    }
    layout = base_layout(max(260, min(640, 90 + 26 * len(layers.names))))
    layout["xaxis"] = step_axis(steps, showgrid=False)
    layout["yaxis"] = axis("", **layer_ticks(layers.names), showgrid=False, autorange="reversed")
    whole = _extremes(layers.values)
    unusable = int((~np.isfinite(layers.values) | (layers.values <= 0)).sum())
    gap = f" {unusable} values are zero, NaN or infinite and left blank." if unusable else ""
    return Chart(
        "flow",
        "Gradient norm of each layer over training",
        "The input is at the top; a band that darkens with time is a layer whose gradient dies out.",
        f"{len(layers.names)} layers at {len(layers.steps)} steps{whole}. {_describe_depth(layers, -1)}{gap}",
        {"data": [heat], "layout": layout},
        (_table("Gradient norm of each layer over training", layers),),
    )


def share_chart(named: NamedRun) -> Chart | None:
    """Each layer's share of the trace of the kernel over training, as stacked areas."""
    layers = read_layers(named.run, "flow", "trace_share")
    if layers is None:
        return None
    bands = _bands(layers)
    layout = base_layout(320 + 7 * len(bands.names)) | {"showlegend": True, "hovermode": "x unified"}
    layout["legend"] = layout["legend"] | {"traceorder": "normal"}
    layout["xaxis"] = step_axis(bands.steps, showgrid=False)
    layout["yaxis"] = axis("share of tr K", tickformat=".0%", range=[0, 1])
    places = evenly(len(BANDS), len(bands.names)) if len(bands.names) > 1 else [4]
    data = [
        {
            "type": "scatter",
            "mode": "lines" if len(bands.steps) > 1 else "lines+markers",
            "name": plotly_text(name),
            "x": bands.steps,
            "y": drawable(bands.values[:, column].tolist()),
            "stackgroup": "layers",
            "fillcolor": BANDS[places[column]],
            "line": {"color": "rgba(255,255,255,0.7)", "width": 0.6},
            "marker": {"color": BANDS[places[column]]},
            "hovertemplate": "%{y:.1%}",
        }
        for column, name in enumerate(bands.names)
    ]
    finite = np.where(np.isfinite(layers.values), layers.values, -1.0)
    first, last = int(finite[0].argmax()), int(finite[-1].argmax())
    return Chart(
        "share",
        "Share of each layer in the trace of the kernel",
        "The wider its band, the more of the squared gradient a layer holds; light bands are near the input.",
        f"Largest share: {layers.names[first]} with {percent(float(layers.values[0, first]))} at step "
        f"{layers.steps[0]:,}, {layers.names[last]} with {percent(float(layers.values[-1, last]))} at step "
        f"{layers.steps[-1]:,}.",
        {"data": data, "layout": layout},
        (_table("Share of each layer in tr K", layers),),
    )


def _bands(layers: Layers) -> Layers:
    """The layers to draw: with many, neighbours in depth are added up."""
    count = len(layers.names)
    if count <= MOST_BANDS:
        return layers
    edges = [round(edge) for edge in np.linspace(0, count, MOST_BANDS + 1)]
    groups = [(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    names = [layers.names[a] + (f" and {b - a - 1} more" if b - a > 1 else "") for a, b in groups]
    values = np.stack([np.nansum(layers.values[:, a:b], axis=1) for a, b in groups], axis=1)
    return Layers(names, layers.steps, values)


def layer_ticks(names: Sequence[str]) -> Figure:
    """Ticks with the layers' names, shown literally; with many layers, an even selection of them."""
    kept = evenly(len(names), MOST_TICKS)
    return {"tickvals": kept, "ticktext": [plotly_text(names[place], 20) for place in kept]}


def _table(caption: str, layers: Layers) -> Table:
    rows: list[list[Cell]] = [
        [step, *row] for step, row in zip(layers.steps, layers.values.tolist(), strict=True)
    ]
    return Table(caption, ("Step", *layers.names), rows)
