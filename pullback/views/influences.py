"""Influences: training samples ranked by what they do, with the samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from pullback.charts.chart import PALETTE, Cell, Chart, Table
from pullback.charts.numbers import evenly
from pullback.charts.plots import Curve, curves
from pullback.charts.still import encoded
from pullback.charts.text import clean, number
from pullback.influence import Influence, LeaveOneOut
from pullback.views.view import View, drawing

MOST_ROWS = 20
MOST_VALUES = 6  # of one sample, in a cell
SIDE = 4  # pixels from which on two axes are a picture


@drawing.register
def influence_view(influence: Influence) -> View:
    """The samples with the largest effects, with their inputs and targets, and the effects of all by rank."""
    end = "converged" if influence.converged else "not converged"
    counts = "" if influence.axis is None else f", axis {influence.axis} counts training samples"
    facts = (
        *([f"{influence.meaning}."] if influence.meaning else []),
        f"values of shape {tuple(influence.values.shape)}{counts}",
        f"solves {end}, residual {number(influence.residual, 2)}, {influence.num_matvecs:,} products",
    )
    if influence.axis is None:
        chart = ranked_chart("Influence on every query", influence.values.flatten().cpu().tolist(), "In their order.")
        return View("Influence of the weight decay", facts, charts=(chart,))
    order, effects = influence.ranking, influence.effects.cpu().tolist()
    rows = [[place, effects[place], *_told(influence.samples.get(place))] for place in order[:MOST_ROWS]]
    signed = influence.values.numel() == len(order)
    reading = "By size, largest first." if signed else "Root of the summed squares over all queries, without a sign."
    table = Table("Largest effects", ("sample", "influence", "target", "input"), rows)
    pictures = []
    for place in order[:MOST_ROWS]:
        x, y = influence.samples.get(place, (None, None))
        if image := picture(x):
            pictures.append(
                (image, f"{place}: {number(effects[place], 3)}" + (f", {words(y)}" if y is not None else ""))
            )
    charts = (ranked_chart("Influence of every training sample", [effects[place] for place in order], reading),)
    return View("Influence", facts, charts=charts, tables=(table,), pictures=tuple(pictures))


@drawing.register
def leave_one_out_view(result: LeaveOneOut) -> View:
    """The samples whose loss would be largest without them."""
    losses, leverage = (each.detach().cpu().tolist() for each in (result.losses, result.leverage))
    order = sorted(range(len(losses)), key=lambda place: -losses[place] if math.isfinite(losses[place]) else 0.0)
    facts = (
        f"{result.estimate}, {len(losses):,} samples; mean loss {number(sum(losses) / len(losses))}, "
        f"effective number of parameters {number(sum(leverage))}",
    )
    rows: list[list[Cell]] = [[place, losses[place], leverage[place]] for place in order[:MOST_ROWS]]
    table = Table("Largest losses", ("sample", "loss without it", "leverage"), rows)
    charts = (ranked_chart("Loss of every sample without it", [losses[place] for place in order]),)
    return View("Leave one out", facts, charts=charts, tables=(table,))


def ranked_chart(title: str, values: list[float], reading: str = "By size, largest first.") -> Chart:
    """Values by their place."""
    kept = evenly(len(values), 400)
    drawn = Curve("effect", [place + 1 for place in kept], [values[place] for place in kept], "points", PALETTE[0])
    return curves("ranked", title, reading, [drawn], x="rank", y="effect", summary=(reading,))


def _told(sample: Any) -> list[Cell]:
    return ["", ""] if sample is None else [words(sample[1]), words(sample[0])]


def words(value: Any) -> str:
    """A sample in a few words: its first numbers, and its shape where there are more."""
    if isinstance(value, Tensor):
        flat = value.flatten()
        first = ", ".join(number(each, 3) for each in flat[:MOST_VALUES].tolist())
        return first if len(flat) <= MOST_VALUES else f"{first}, … {tuple(value.shape)}"
    return clean(value)[:80]


def picture(x: Any) -> str:
    """An input as a PNG in base64, its own range from black to white; empty of what is no picture."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return ""
    shape = tuple(x.shape)
    if len(shape) == 2:
        x = x.unsqueeze(0)
    elif len(shape) != 3 or shape[0] not in (1, 3):
        return ""
    if min(x.shape[1:]) < SIDE or not bool(x.isfinite().all()):
        return ""
    stride = max(1, max(x.shape[1:]) // 96)
    pixels = x[:, ::stride, ::stride].double()
    low, high = float(pixels.min()), float(pixels.max())
    grey = ((pixels - low) / ((high - low) or 1.0) * 255).round().expand(3, -1, -1)
    return encoded(grey.permute(1, 2, 0).numpy().astype(np.uint8))
