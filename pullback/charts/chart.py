"""What a chart of the report consists of, and the looks all charts share.

A figure is a plain dict in Plotly's own form: it can be put on the page, exported as an image, and tested
without a browser.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pullback.charts.numbers import finite
from pullback.charts.text import superscript

Cell = str | int | float | None
Figure = dict[str, Any]

# Okabe and Ito's colours, which stay apart for colour-blind readers; orange and sky blue are deepened a
# little, so that every one has a contrast of 3:1 on the light and on the dark page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#C46BA0", "#C08000", "#3596CC", "#808080")
REFERENCE_COLOUR = "#808080"
SEVERITY = {"info": "#3596CC", "warning": "#C08000", "critical": "#D0402B"}  # the gravest last
QUIET, GRID = "#59636e", "#e4e7eb"  # replaced on the page by those of the reader's colour scheme
DIVERGING = [[0.0, "#8f3b00"], [0.25, "#e08a4f"], [0.5, "#f4f3f0"], [0.75, "#5aa5d6"], [1.0, "#00497a"]]
SEQUENTIAL = "Cividis"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"


@dataclass(frozen=True)
class Table:
    """The numbers of a chart, in full; the page shows an even selection of the rows.

    ``drawn`` says that the columns after the first are the lines of the chart, in their order.
    """

    caption: str
    header: tuple[str, ...]
    rows: Sequence[list[Cell]]
    drawn: bool = False


@dataclass(frozen=True)
class Frame:
    """One position of the slider under a chart: what to show, and which traces and layout show it."""

    label: str
    visible: list[bool]
    layout: Figure


@dataclass(frozen=True)
class Chart:
    """A chart and all that is said about it.

    Attributes:
        key: identifies it on the page and names its files.
        title: what it shows.
        reading: one sentence on how to read it.
        summary: the numbers in words, a sentence for each line or state of the chart.
        figure: the Plotly figure.
        tables: the numbers; the first one is the chart's own data.
        frames: positions of the slider, the last one shown first; none means no slider.
        data: what the CSV file holds, if not the first table; made when it is asked for.
    """

    key: str
    title: str
    reading: str
    summary: tuple[str, ...]
    figure: Figure
    tables: tuple[Table, ...]
    frames: tuple[Frame, ...] = ()
    data: Callable[[], Table] | None = None


@cache
def ramp_colour(place: int, count: int) -> str:
    """The colour of one of ``count`` things in an order (layers by depth, many runs), the same wherever it is drawn.

    Hues run from orange over green and blue to violet. Neighbours differ in lightness too, between bounds within which
    a line has a contrast of 3:1 on the light and on the dark page.
    """
    hue = 0.08 + 0.72 * (place / (count - 1) if count > 1 else 0.7)
    low, high, wanted = 0.0, 1.0, (0.16, 0.26)[place % 2]
    for _ in range(20):
        red, green, blue = colorsys.hls_to_rgb(hue, (low + high) / 2, 0.75)
        light = sum(w * _linear(c) for w, c in ((0.2126, red), (0.7152, green), (0.0722, blue)))
        low, high = ((low + high) / 2, high) if light < wanted else (low, (low + high) / 2)
    return "#" + "".join(f"{round(255 * each):02x}" for each in (red, green, blue))


def _linear(channel: float) -> float:
    """A channel of sRGB as a share of light."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def base_layout(height: int = 300) -> Figure:
    """Layout shared by all charts: transparent, quiet, legend above the plot."""
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 60, "r": 14, "t": 10, "b": 46},
        "font": {"family": FONT, "size": 12, "color": QUIET},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"namelength": -1},
        "showlegend": False,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "tracegroupgap": 0},
    }


def axis(title: str, **options: Any) -> Figure:
    """An axis with a title, outside ticks and a hairline grid."""
    looks = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "ticks": "outside", "tickcolor": GRID}
    label = {"text": title, "standoff": 8}
    numbers = {"exponentformat": "power", "minexponent": 5, "separatethousands": True}
    return {"title": label, "automargin": True, **numbers, **looks, **options}


def colour_bar(ticks: Sequence[float], texts: Sequence[str]) -> Figure:
    """The key of a heat map, lying above it so that narrow screens keep the width for the map."""
    place = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 1, "yref": "container", "yanchor": "top"}
    labels = {"tickvals": list(ticks), "ticktext": list(texts), "ticklen": 3}
    return {"thickness": 9, "outlinewidth": 0, "lenmode": "pixels", "len": 200, **labels, **place}


def below_colour_bar(layout: Figure) -> Figure:
    """A layout with the room above the plot that ``colour_bar`` takes."""
    return layout | {"margin": layout["margin"] | {"t": 40}}


def step_axis(steps: Sequence[int], **options: Any) -> Figure:
    """The axis of training steps; whole numbers only, also when there are very few."""
    low, high = (min(steps), max(steps)) if steps else (0, 1)
    if high - low < 5:
        options = {"range": [low - 0.5, high + 0.5], "dtick": 1, **options}
    return axis("training step", exponentformat="none") | options


OVER_STEPS = {"meta": {"over": "steps"}}  # of a layout: its horizontal axis is that of the steps, and can show others


def wants_log(values: Sequence[float] | np.ndarray, spread: float = 30.0) -> bool:
    """Whether a logarithmic axis suits: all numbers are positive and far apart."""
    numbers = finite(values)
    return bool(len(numbers) and numbers.min() > 0 and numbers.max() / numbers.min() > spread)


def log_axis(title: str, values: Sequence[float] | np.ndarray, **options: Any) -> Figure:
    """A logarithmic axis over the positive values; a linear one if there are none.

    Rounding can leave numbers near zero far below the rest: the axis reaches at most twelve decades below the upper
    quartile, so that what falls further by itself, or in one of several runs, is seen.
    Ticks stand at 1, 2 and 5 over a short range and at whole decades over a long one.
    """
    known = finite(values)
    positive = known[known > 0]
    if not len(positive):
        return axis(title, **options)
    top = math.log10(positive.max())
    bottom = max(math.log10(positive.min()), math.log10(np.quantile(positive, 0.75, method="higher")) - 12)
    span = max(top - bottom, 0.1)
    reach = {"type": "log", "range": [bottom - 0.06 * span, top + 0.06 * span]}
    if span >= 2:
        stride = math.ceil(span / 5)
        decades = range(math.floor(bottom / stride) * stride, math.ceil(top) + 1, stride)
        ticks = [10.0**decade for decade in decades]
    else:
        multiples = (1, 2, 5) if span >= 0.6 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
        ticks = [m * 10.0**d for d in range(math.floor(bottom) - 1, math.ceil(top) + 1) for m in multiples]
    powers = bottom < -3 or top > 5
    return axis(title, **reach, tickvals=ticks, ticktext=[tick_text(tick, powers) for tick in ticks]) | options


def tick_text(value: float, powers: bool) -> str:
    """A tick of a logarithmic axis, as a power of ten or written out."""
    if not powers:
        return f"{value:,.10g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    power = "10" + superscript(exponent)
    return power if abs(mantissa - 1) < 1e-6 else f"{mantissa:.2g}×{power}"
