"""Charts over depth at one step: the starting weights, and the maps from layer to layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from pullback.charts.chart import PALETTE, Cell, Chart, Table, axis
from pullback.charts.plots import Curve, curves
from pullback.charts.text import as_dict, as_float, number
from pullback.report.run.depth import layer_ticks
from pullback.report.run.series import NamedRun, read_layers, read_series


def initialisation_chart(named: NamedRun) -> Chart | None:
    """Effective sigma_w of every layer beside the one at which signals keep their length, before the first step."""
    found = next(iter(named.run.of("initialisation")), None)
    scales = as_dict(found.values.get("sigma_w")) if found is not None else {}
    if found is None or not scales:
        return None
    names = list(scales)
    critical, biases, chi, phase = (
        as_dict(found.values.get(name)) for name in ("critical_sigma_w", "sigma_b", "chi", "phase")
    )
    drawn = [Curve("σ_w of the layer", range(len(names)), [as_float(scales[name]) for name in names])]
    if at := [place for place, name in enumerate(names) if name in critical]:
        drawn.append(Curve("critical σ_w", at, [as_float(critical[names[place]]) for place in at], "dash"))
    rows: list[list[Cell]] = [
        [name, *(part.get(name) for part in (scales, biases, critical, chi, phase))] for name in names
    ]
    product = as_float(found.values.get("chi_product"))
    counts = ", ".join(f"{count} {word}" for word, count in Counter(map(str, phase.values())).items())
    summary = (f"Phases of the layers: {counts}; the product of their χ is {number(product)}.",) if phase else ()
    chart = curves(
        "initialisation",
        "Where the starting weights stand",
        "Above the critical scale gradients grow from layer to layer (chaotic), below it they shrink (ordered).",
        drawn,
        x="layer",
        y="σ_w",
        summary=summary,
    )
    table = Table("The starting weights", ("Layer", "σ_w", "σ_b", "critical σ_w", "χ", "phase"), rows)
    xaxis = axis("", **layer_ticks(names), showgrid=False)
    figure = chart.figure | {"layout": chart.figure["layout"] | {"xaxis": xaxis}}
    return replace(chart, figure=figure, tables=(table,))


def jacobian_chart(named: NamedRun) -> Chart | None:
    """Singular values of the maps from layer to layer at the last step at which they were measured."""
    parts = {
        word: read_layers(named.run, "jacobian", name)
        for word, name in (("largest", "largest"), ("mean square", "mean_square"), ("smallest", "smallest"))
    }
    known = {word: layers for word, layers in parts.items() if layers is not None}
    if not known:
        return None
    first = next(iter(known.values()))
    drawn = [
        Curve(word, range(1, len(layers.names) + 1), layers.values[-1].tolist(), colour=PALETTE[place])
        for place, (word, layers) in enumerate(known.items())
    ]
    step = int(first.steps[-1])
    ends = read_series(named.run, "jacobian", "end_to_end_mean_square")[1]
    whole = (f"From the first layer to the last the mean of s² is {number(float(ends[-1]))}.",) if len(ends) else ()
    positive = all(value > 0 for curve in drawn for value in curve.y)
    chart = curves(
        "jacobian",
        f"Singular values of the maps from layer to layer at step {step:,}",
        "A mean of s² of 1 keeps the length of signals on their way in and of gradients on their way back; largest "
        "and smallest far apart keep it only on average.",
        drawn,
        x="map",
        y="s, and mean of s²",
        log_y=positive,
        summary=whole,
    )
    rows: list[list[Cell]] = [
        [at, name, *(layers.values[row, place] for layers in known.values())]
        for row, at in enumerate(first.steps.tolist())
        for place, name in enumerate(first.names)
    ]
    xaxis = chart.figure["layout"]["xaxis"] | {"dtick": max(1, len(first.names) // 10)}
    figure = chart.figure | {"layout": chart.figure["layout"] | {"xaxis": xaxis}}
    return replace(chart, figure=figure, tables=(Table("Singular values s", ("Step", "Map", *known), rows),))
