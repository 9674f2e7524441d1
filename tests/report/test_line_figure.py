"""Where panels, axes, colours and legends of a figure of lines lie."""

from __future__ import annotations

from typing import Any

import pytest

from pullback.charts.chart import PALETTE, REFERENCE_COLOUR
from pullback.report.run.line_figure import DASHES, GAP, MOST_POINTS, Line, Metric, Panel, draw_lines

FIRST, SHARE = Metric("p", "a", "first"), Metric("p", "b", "share", panel=1)
PANELS = (Panel("size"), Panel("part of all", percent=True))


def line(metric: Metric, values: list[float], run: int = 0, **more: Any) -> Line:
    return Line(run, f"run {run}", 0, metric, list(range(1, len(values) + 1)), values, **more)


def test_two_panels_share_the_height_the_first_on_top() -> None:
    layout = draw_lines([line(FIRST, [1.0, 2.0]), line(SHARE, [0.1, 0.2])], PANELS, several=False)["layout"]
    assert layout["yaxis2"]["domain"] == [0, pytest.approx(0.5 - GAP / 2)]
    assert layout["yaxis"]["domain"] == [pytest.approx(0.5 + GAP / 2), 1]
    assert layout["xaxis"]["anchor"] == "y2"  # below the lower panel
    assert layout["height"] == 400
    assert layout["showlegend"] is False


@pytest.mark.parametrize(("metric", "name"), [(FIRST, "yaxis"), (SHARE, "yaxis2")])
def test_one_panel_takes_all_of_it(metric: Metric, name: str) -> None:
    layout = draw_lines([line(metric, [0.5, 0.25])], PANELS, several=False)["layout"]
    assert layout[name]["domain"] == [0, 1]
    assert layout["xaxis"]["anchor"] == name.replace("axis", "")
    assert layout["height"] == 300
    assert layout[name].get("tickformat") == (".3~%" if metric is SHARE else None)


def test_axes_hold_the_values_of_their_own_panel() -> None:
    """A panel whose values are far apart is logarithmic; the other, whose are not, stays linear."""
    panels = (Panel("near", "auto"), Panel("far", "auto"))
    layout = draw_lines([line(FIRST, [1.0, 2.0]), line(SHARE, [1.0, 1e6])], panels, several=False)["layout"]
    assert layout["yaxis"].get("type") != "log"
    assert layout["yaxis2"]["type"] == "log"
    empty = draw_lines([line(FIRST, [float("nan")])], PANELS, several=False)["layout"]
    assert empty["yaxis"]["range"] == [0, 1]


def test_colours_and_dashes_tell_metrics_or_runs() -> None:
    second = Metric("p", "c", "second", reference=True)
    alone = draw_lines([line(FIRST, [1.0]), line(second, [2.0])], PANELS, several=False)
    assert [each["line"]["color"] for each in alone["data"]] == [PALETTE[0], REFERENCE_COLOUR]
    assert [each["line"]["dash"] for each in alone["data"]] == ["solid", "dash"]
    assert alone["layout"]["showlegend"] is True
    lines = [line(metric, [1.0, 2.0], run) for run in (0, 1) for metric in (FIRST, second)]
    several = draw_lines(lines, PANELS, several=True)
    drawn, keys = several["data"][:4], several["data"][4:]
    assert [each["line"]["color"] for each in drawn] == [PALETTE[0], PALETTE[0], PALETTE[1], PALETTE[1]]
    assert [each["line"]["dash"] for each in drawn] == [DASHES[0], DASHES[1]] * 2
    assert [each["showlegend"] for each in drawn] == [True, False, True, False]  # a run once
    assert [each["name"] for each in keys] == ["first", "second"]


def test_markers_show_single_points_and_gaps() -> None:
    modes = [
        draw_lines([line(FIRST, values)], PANELS, several=False)["data"][0]["mode"]
        for values in ([1.0] * 24, [1.0] * 25, [1.0] * 24 + [float("nan")])
    ]
    assert modes == ["lines+markers", "lines", "lines+markers"]
    long = draw_lines([line(FIRST, [1.0] * (3 * MOST_POINTS))], PANELS, several=False)["data"][0]
    assert len(long["x"]) <= MOST_POINTS
    assert (long["x"][0], long["x"][-1]) == (1, 3 * MOST_POINTS)
