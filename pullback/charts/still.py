"""Still pictures of figures, for places that run no script: what to draw, in pixels, for the template ``still.html``.

Only what this package's figures are made of: lines, points and bars with their errors, one map, linear and logarithmic
axes.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

import numpy as np

from pullback.charts.chart import DIVERGING, PALETTE, Chart, Figure
from pullback.charts.numbers import evenly, extremes
from pullback.charts.text import number

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 42
MOST_POINTS = 400  # of one line: more than a picture of this width can show
RADIUS = 2.5
LETTER = 6.3  # pixels of one, about
MOST_LEFT = 150
LINE = 14  # pixels between two ticks above each other, at least
APART = 55  # and beside each other


@dataclass(frozen=True)
class Stroke:
    """A line, or shapes that are filled."""

    path: str
    colour: str
    filled: bool
    dash: str


@dataclass(frozen=True)
class Axis:
    """From numbers to pixels: ``low`` and ``high``, as logarithms where it is logarithmic, to ``start`` and ``end``."""

    title: str
    log: bool
    low: float
    high: float
    start: float
    end: float
    ticks: list[tuple[float, str]]

    def at(self, values: Iterable[float]) -> list[float]:
        """Pixels, inside the axis; NaN of what it cannot show."""
        return [round(min(max(each, -2000.0), 4000.0), 1) if each == each else math.nan for each in self._all(values)]

    def _all(self, values: Iterable[float]) -> Iterable[float]:
        for value in values:
            if self.log:
                value = math.log10(value) if value > 0 else math.nan
            share = (value - self.low) / (self.high - self.low)
            yield self.start + share * (self.end - self.start) if math.isfinite(share) else math.nan


@dataclass(frozen=True)
class Still:
    """All that the template draws."""

    label: str
    x: Axis
    y: Axis
    strokes: list[Stroke]
    image: str
    names: list[tuple[str, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: float = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def still(chart: Chart, points: int = MOST_POINTS) -> Still:
    """A chart as a picture that needs no script; of longer lines at most ``points`` points, their extremes."""
    traces, layout = chart.figure["data"], chart.figure["layout"]
    maps = [trace for trace in traces if trace["type"] == "heatmap"]
    lines = [trace for trace in traces if trace["type"] in ("scatter", "bar")]
    y = _axis(layout.get("yaxis", {}), _span(traces, "y"), HEIGHT - BOTTOM, TOP)
    left = min(max(LEFT, 24 + LETTER * max((len(text) for _, text in y.ticks), default=0)), MOST_LEFT)
    x = _axis(layout.get("xaxis", {}), _span(traces, "x"), left, WIDTH - RIGHT)
    strokes = [each for place, trace in enumerate(lines) for each in _strokes(trace, x, y, place, points)]
    shown = [
        (place, trace) for place, trace in enumerate(lines) if layout["showlegend"] and trace.get("showlegend", True)
    ]
    names = [(unescape(trace["name"]), _colour(trace, place)) for place, trace in shown]
    label = f"{chart.title}. {' '.join(chart.summary)}"
    return Still(label, x, y, strokes, png(maps[0]) if maps else "", names, left=left)


def _span(traces: Sequence[Figure], name: str) -> list[float]:
    """All numbers of the traces along an axis; of bars zero as well, and of points the ends of their errors."""
    found: list[float] = []
    for trace in traces:
        values = _numbers(trace, name)
        errors = trace.get("error_y", {}).get("array", []) if name == "y" else []
        found += [v + side * e for v, e in zip(values, errors, strict=False) for side in (-1, 1)] or values
        if values and (trace["type"] == "heatmap" or (trace["type"] == "bar" and name == "x")):
            found += [min(values) - 0.5, max(values) + 0.5]
        if trace["type"] == "bar" and name == "y":
            found.append(0.0)
    return [value for value in found if math.isfinite(value)]


def _numbers(trace: Figure, name: str) -> list[float]:
    """Numbers along an axis; words are counted, as are the cells of a map."""
    values = trace.get(name)
    if values is None and trace["type"] == "heatmap":
        return [float(each) for each in range(len(trace["z"] if name == "y" else trace["z"][0]))]
    if any(isinstance(each, str) for each in values or ()):
        return [float(each) for each in range(len(values or ()))]
    return [math.nan if each is None else float(each) for each in values or ()]


def _axis(given: Figure, values: Sequence[float], start: float, end: float) -> Axis:
    """An axis as the figure asks for it, or over all of its numbers."""
    log = given.get("type") == "log"
    if log:
        values = [math.log10(value) for value in values if value > 0]
    low, high = given["range"] if given.get("range") else (min(values, default=0.0), max(values, default=1.0))
    if high == low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    if not given.get("range"):
        room = 0.03 * (high - low)
        low, high = low - room * (low != 0), high + room * (high != 0)
    made = Axis(unescape(given.get("title", {}).get("text", "")), log, low, high, start, end, [])
    at, texts = given.get("tickvals"), given.get("ticktext")
    if at is None:
        at = _ticks(*sorted((low, high)))
        at, texts = ([10.0**each for each in at], None) if log else (at, None)
    told = texts or [number(each) for each in at]
    inside = [
        (place, unescape(str(text)))
        for place, text in zip(made.at(at), told, strict=True)
        if min(start, end) - 1 <= place <= max(start, end) + 1
    ]
    made.ticks.extend(
        inside[each] for each in evenly(len(inside), int(abs(end - start) / (LINE if end < start else APART)))
    )
    return made


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    stride = next(size * each for each in (1, 2, 5, 10) if size * each >= rough)
    return [stride * each for each in range(math.ceil(low / stride), math.floor(high / stride) + 1)]


def _colour(trace: Figure, place: int) -> str:
    wanted = trace.get("line", {}).get("color") or trace.get("marker", {}).get("color")
    return wanted if isinstance(wanted, str) else PALETTE[place % len(PALETTE)]


def _strokes(trace: Figure, x: Axis, y: Axis, place: int, points: int) -> list[Stroke]:
    """What a trace consists of."""
    colour, kept = _colour(trace, place), extremes(np.array(_numbers(trace, "y")), points).tolist()
    xs, ys = (
        axis.at([numbers[at] for at in kept])
        for axis, numbers in ((x, _numbers(trace, "x")), (y, _numbers(trace, "y")))
    )
    whole = [(a, b) for a, b in zip(xs, ys, strict=True) if a == a and b == b]
    if trace["type"] == "bar":
        half = 0.4 * (x.end - x.start) / max(1.0, x.high - x.low)
        (zero,) = y.at([0.0])
        path = "".join(f"M{a - half:.1f} {zero}H{a + half:.1f}V{b}H{a - half:.1f}Z" for a, b in whole)
        return [Stroke(path, colour, True, "")]
    mode, strokes = trace.get("mode", "lines"), []
    errors = trace.get("error_y", {}).get("array")
    if errors:
        ends = [y.at([v - e, v + e]) for v, e in zip(_numbers(trace, "y"), errors, strict=True)]
        bars = [(a, *ends[at]) for a, at in zip(xs, kept, strict=True) if a == a]
        path = "".join(f"M{a} {low}V{high}" for a, low, high in bars if low == low and high == high)
        strokes.append(Stroke(path, colour, False, ""))
    if "lines" in mode:
        dashed = "4 3" if trace.get("line", {}).get("dash") == "dash" else ""
        strokes.append(Stroke(_joined(xs, ys), colour, False, dashed))
    if "markers" in mode:
        dots = "".join(
            f"M{a - RADIUS:.1f} {b}a{RADIUS} {RADIUS} 0 1 0 5 0a{RADIUS} {RADIUS} 0 1 0-5 0Z" for a, b in whole
        )
        strokes.append(Stroke(dots, colour, True, ""))
    return strokes


def _joined(xs: Sequence[float], ys: Sequence[float]) -> str:
    """A line through the points, broken where there is none."""
    told, broken = [], True
    for a, b in zip(xs, ys, strict=True):
        if a != a or b != b:
            broken = True
            continue
        told.append(f"{'M' if broken else 'L'}{a} {b}")
        broken = False
    return "".join(told)


def png(trace: Figure) -> str:
    """The cells of a map as an image, the first row above, base64."""
    z = np.array([[math.nan if v is None else v for v in row] for row in trace["z"]], dtype=float)
    scale = trace.get("colorscale", DIVERGING)
    places = [each[0] for each in scale]
    channels = np.array([[int(each[1][at : at + 2], 16) for at in (1, 3, 5)] for each in scale], dtype=float)
    share = np.clip((z - trace["zmin"]) / ((trace["zmax"] - trace["zmin"]) or 1.0), 0, 1)
    known = np.isfinite(share)
    pixels = np.stack([np.interp(np.where(known, share, 0.0), places, channels[:, each]) for each in range(3)], 2)
    pixels[~known] = 128
    return encoded(pixels.round().astype(np.uint8))


def encoded(pixels: np.ndarray[Any, Any]) -> str:
    """Pixels (H, W, 3), 0 to 255, as a PNG in base64."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()
