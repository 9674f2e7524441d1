"""Charts with a line a layer over training: units, activations, effective learning rates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pullback.charts.chart import Chart
from pullback.charts.numbers import evenly
from pullback.report.run.line_charts import describe, table_of
from pullback.report.run.line_figure import Line, Metric, Panel, draw_lines, scales_of
from pullback.report.run.series import NamedRun, layer_colours, read_layers, skipped_by

MOST_LAYERS = 8  # drawn; the table has all


@dataclass(frozen=True)
class LayerSpec:
    """All that distinguishes one such chart from the next."""

    key: str
    title: str
    reading: str
    probe: str
    metric: str
    panel: Panel


EFFECTIVE_RANK = LayerSpec(
    "activations",
    "Effective rank of each layer's activations",
    "How many directions the samples spread over behind a layer, from 1 (all alike) to the smaller of its width and "
    "the number of samples: a line near 1 is a layer that cannot tell samples apart.",
    "activations",
    "effective_rank",
    Panel("effective rank", "auto"),
)
TOKENS = LayerSpec(
    "tokens",
    "What tokens have of their own behind each layer",
    "The size of what differs from token to token within a sample, over that of the tokens: near 0 a layer has made "
    "them one, and attention behind it has nothing to choose from.",
    "attention",
    "relative_residual",
    Panel("relative residual", "auto"),
)
ROWS = LayerSpec(
    "attention",
    "Entropy of each layer's attention",
    "Over its most, mean over heads: near 1 a head looks at all tokens alike, near 0 at one alone, and queries and "
    "keys get no gradient.",
    "attention",
    "entropy",
    Panel("relative entropy", percent=True),
)
DEAD = LayerSpec(
    "dead",
    "Dead units of each layer",
    "The share of units that pass no gradient on at any measured sample; they cannot come back by themselves.",
    "activations",
    "dead",
    Panel("dead units", percent=True),
)
EFFECTIVE_RATE = LayerSpec(
    "effective-rate",
    "Effective learning rate of layers before a normalisation",
    "The scale of these weights does not matter, and their direction learns at lr / |w|² (lr / |w| with Adam): as the "
    "weights grow, it falls, whatever the schedule says.",
    "effective_lr",
    "effective",
    Panel("effective learning rate", "auto"),
)
UPDATES = LayerSpec(
    "updates",
    "How far a step moves the weights of each layer",
    "Over their size: around a thousandth is common, a tenth and more overshoots, far less than others is a layer "
    "that stands still.",
    "updates",
    "ratio",
    Panel("|dw| / |w|", "auto"),
)
SATURATED = LayerSpec(
    "saturated",
    "Saturated units of each layer",
    "The share of answers of units that lie where their activation is flat; hardly any gradient comes through them.",
    "activations",
    "saturated",
    Panel("saturated", percent=True),
)
LAYER_COSINE = LayerSpec(
    "layer-cosine",
    "Agreement of the samples in each layer",
    "The mean cosine of the layer's own gradients of every two samples: a layer below 0 is pulled both ways.",
    "classes",
    "layer_cosine",
    Panel("mean cosine"),
)
SHIFT = LayerSpec(
    "shift",
    "Internal covariate shift of each layer",
    "By how much a step of the layers before changes a layer's own gradient, over its size: above 1 a layer steps by "
    "a gradient that no longer holds.",
    "shift",
    "change",
    Panel("|g − g′| / |g|", "auto"),
)
SHIFT_COSINE = LayerSpec(
    "shift-cosine",
    "Direction of each layer's gradient, before and after",
    "The cosine of a layer's own gradient before and after the layers before it took their step: 1 keeps it.",
    "shift",
    "cosine",
    Panel("cosine"),
)
BATCH_NORM = LayerSpec(
    "batch-norm",
    "Values that batch norm takes its statistics of",
    "The smallest number of values behind a mean and a variance: with fewer than 16 a sample's output hangs on its "
    "company.",
    "batch_norm",
    "smallest_count",
    Panel("values", "auto"),
)
SPECS = (
    UPDATES, EFFECTIVE_RANK, DEAD, SATURATED, LAYER_COSINE, TOKENS, ROWS, EFFECTIVE_RATE, SHIFT, SHIFT_COSINE,
    BATCH_NORM,
)  # fmt: skip


def layer_lines(spec: LayerSpec, named: NamedRun) -> Chart | None:
    """The chart of one run, or None if the metric was never measured."""
    layers = read_layers(named.run, spec.probe, spec.metric)
    if layers is None:
        return None
    colours = layer_colours(named.run, layers.names)
    skipped = skipped_by(named.run, spec.probe, spec.metric)
    lines = [
        Line(0, named.name, place, Metric(spec.probe, f"{spec.metric}.{name}", name, colour=colours[name]),
             layers.steps, column, skipped=skipped)
        for place, (name, column) in enumerate(zip(layers.names, layers.values.T, strict=True))
    ]  # fmt: skip
    drawn = [lines[place] for place in evenly(len(lines), MOST_LAYERS)]
    left_out = f" {len(drawn)} of {len(lines)} layers are drawn." if len(drawn) < len(lines) else ""
    return Chart(
        spec.key,
        spec.title,
        spec.reading + left_out,
        tuple(describe(line, False, spec.panel, scales_of([line], (spec.panel,))[0]) for line in drawn),
        draw_lines(drawn, (spec.panel,), several=False),
        (replace(table_of(spec.title, lines, several=False), drawn=len(drawn) == len(lines)),),
    )
