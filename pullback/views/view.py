"""What is shown of a result, as the HTML of a card and as a figure."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import singledispatch
from typing import Any

from pullback._results import word
from pullback.charts.chart import Cell, Chart, Figure, Table, base_layout
from pullback.charts.document import fragment_html, framed
from pullback.charts.still import still
from pullback.charts.text import plotly_text

GAP = 0.14  # of the width, between pictures that stand side by side
BETWEEN = 0.24  # of the height, between those above each other
IN_A_ROW = 3


@dataclass(frozen=True)
class Card:
    """A finding in a box."""

    severity: str
    name: str
    where: str
    texts: tuple[str, ...]
    evidence: str
    footing: str
    follows: bool


@dataclass(frozen=True)
class View:
    """All that a notebook shows of a result, in this order.

    Attributes:
        title: what it is.
        facts: about it, a line each.
        cards: findings.
        charts: pictures, still ones in the card; side by side in ``figure``.
        alone: pictures in ``figure`` alone, where the card says in words what they show.
        tables: numbers; of long ones an even selection of the rows.
        pictures: PNG files in base64, each with a line.
        page: a whole page of its own, in a frame.
    """

    title: str
    facts: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[tuple[str, str], ...] = ()
    page: str = ""
    alone: tuple[Chart, ...] = ()

    def html(self) -> str:
        """The card: no script, no network, all values as text."""
        drawings = [(chart, still(chart)) for chart in self.charts]
        return fragment_html("pullback.views", "view.html", view=self, drawings=drawings, page=framed(self.page))

    def figure(self) -> Any:
        """The charts as one ``plotly.graph_objects.Figure``."""
        import plotly.graph_objects as go  # a second of loading

        return go.Figure(side_by_side((*self.charts, *self.alone)))


def side_by_side(charts: tuple[Chart, ...]) -> Figure:
    """Charts as one figure, at most three in a row: axes of their own, each under its title."""
    if not charts:
        return {"data": [], "layout": base_layout()}
    columns, rows = min(len(charts), IN_A_ROW), -(-len(charts) // IN_A_ROW)
    share = (1 - GAP * (columns - 1)) / columns
    tall = (1 - BETWEEN * (rows - 1)) / rows
    layout: Figure = base_layout(rows * max(chart.figure["layout"]["height"] for chart in charts))
    layout |= {"margin": {"l": 60, "r": 14, "t": 60, "b": 46}, "annotations": []}
    below = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"}  # titles stand above
    layout["legend"] = below
    traces = []
    for place, chart in enumerate(charts):
        suffix, own = str(place + 1) if place else "", chart.figure["layout"]
        start, top = (place % IN_A_ROW) * (share + GAP), 1 - (place // IN_A_ROW) * (tall + BETWEEN)
        layout[f"xaxis{suffix}"] = own["xaxis"] | {"domain": [start, start + share], "anchor": f"y{suffix}"}
        layout[f"yaxis{suffix}"] = own["yaxis"] | {"domain": [max(0.0, top - tall), top], "anchor": f"x{suffix}"}
        layout["showlegend"] = layout["showlegend"] or own.get("showlegend", False)
        layout["annotations"].append(_heading(chart, start, top))
        bar = {"colorbar": {"thickness": 10, "x": start + share, "xanchor": "left", "outlinewidth": 0}}
        traces += [
            trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"} | (bar if trace["type"] == "heatmap" else {})
            for trace in chart.figure["data"]
        ]
    return {"data": traces, "layout": layout}


def _heading(chart: Chart, left: float, top: float) -> Figure:
    """The title of one of several charts, above it."""
    return {
        "text": plotly_text(chart.title, 80),
        "x": left, "xref": "paper", "xanchor": "left", "y": top, "yref": "paper", "yanchor": "bottom", "yshift": 14,
        "showarrow": False, "font": {"size": 13},
    }  # fmt: skip


@singledispatch
def drawing(result: Any, **options: Any) -> View:
    """The view of a result: of a class that has no drawing, its fields."""
    named = [each.name for each in fields(result) if each.repr] if is_dataclass(result) else []
    rows: list[list[Cell]] = [[name, word(getattr(result, name))] for name in named]
    said = str(result)
    facts = tuple(said.splitlines()) if said != repr(result) else ()
    return View(type(result).__name__, facts[:20], tables=(Table("Fields", ("field", "value"), rows),) if rows else ())
