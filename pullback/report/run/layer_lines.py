"""Charts with a line a layer over training: units, activations, effective learning rates."""

from __future__ import annotations

from dataclasses import dataclass

from pullback.charts.chart import Chart
from pullback.charts.numbers import evenly
from pullback.report.run.line_figure import Line, Metric, Panel, draw_lines
from pullback.report.run.lines import describe, table_of
from pullback.report.run.series import NamedRun, read_layers

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


def layer_lines(spec: LayerSpec, named: NamedRun) -> Chart | None:
    """The chart of one run, or None if the metric was never measured."""
    layers = read_layers(named.run, spec.probe, spec.metric)
    if layers is None:
        return None
    lines = [
        Line(0, named.name, place, Metric(spec.probe, f"{spec.metric}.{name}", name), layers.steps, column.tolist())
        for place, (name, column) in enumerate(zip(layers.names, layers.values.T, strict=True))
    ]
    drawn = [lines[place] for place in evenly(len(lines), MOST_LAYERS)]
    left_out = f" {len(drawn)} of {len(lines)} layers are drawn." if len(drawn) < len(lines) else ""
    return Chart(
        spec.key,
        spec.title,
        spec.reading + left_out,
        tuple(describe(line, False, spec.panel) for line in drawn),
        draw_lines(drawn, (spec.panel,), several=False),
        (table_of(spec.title, lines, several=False),),
    )
