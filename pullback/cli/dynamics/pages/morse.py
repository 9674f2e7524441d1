"""``pullback dynamics morse``: critical points with their index, and coordinates in which one is a sum of squares."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import dynamics
from pullback._checks import InputError, check_count, check_rate, input_error
from pullback.charts.chart import PALETTE, Chart
from pullback.charts.plots import Curve, curves
from pullback.charts.text import counted
from pullback.cli.dynamics.pages.shared import F64, chart, heights, page_of
from pullback.report.dynamics.charts import landscape_chart
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage

GRID, STEPS, ALONG = 5, 30, 21  # starts on a side, steps of each; points of a line
KINDS = {0: "minima, index 0", 1: "saddles, index 1", 2: "maxima, index 2"}


def morse_page(name: str, place: int, reach: float) -> TheoryPage:
    """All critical points that Newton's method finds from a grid, and one of them in Morse's coordinates."""
    where = "dynamics morse"
    world = dynamics.landscape(name)
    if len(world.start) != 2:
        raise input_error(where, "a landscape of two coordinates", f"{name}, of {len(world.start)}", "Take another")
    check_rate(where, "reach", reach)
    sides = [torch.linspace(low, high, GRID, dtype=F64) for low, high in world.bounds]
    critical = dynamics.critical_points(world, torch.cartesian_prod(*sides), steps=STEPS)
    low, high = torch.tensor(world.bounds, dtype=F64).T
    critical = [point for point in critical if bool(((low <= point.x) & (point.x <= high)).all())]  # none on far plains
    plain = [point for point in critical if point.index is not None]
    if not plain:
        got = f"{name}, with {len(critical)} that are degenerate"
        raise input_error(where, "a landscape with a critical point that has an index", got, "Take double_well")
    check_count(where, "point", place, 0, len(plain))
    chosen = plain[place - 1] if place else next((point for point in plain if point.index == 1), plain[0])
    try:
        net, ways = _net(world, chosen, reach), [_along(world, chosen, reach, direction) for direction in (0, 1)]
    except InputError as error:
        expected = "a reach within which the curvature is like that at the point"
        raise input_error(where, expected, f"{reach:g}", "Pass a smaller --reach") from error
    reading = "Points: the function along an axis. Line: its value at the point and ± squares of coordinates."
    charts = [_map(world, plain), _by_index(plain), net]
    charts += [chart(line, f"along-{k + 1}", reading, x=f"x{'₁₂'[k]}", y="f") for k, line in enumerate(ways)]
    at = ", ".join(f"{v:.4g}" for v in chosen.x.tolist())
    counts = {index: sum(point.index == index for point in plain) for index in KINDS}
    keys = [
        *((KINDS[index], str(count), "found from a grid of starts") for index, count in counts.items()),
        ("degenerate", str(len(critical) - len(plain)), "where the index is not defined"),
        ("point", f"({at})", f"index {chosen.index}, of the coordinates; --point takes another"),
    ]
    return page_of(f"Morse index and coordinates: {name}", (name, f"reach {reach:g}"), keys, "place", ways, charts)


def _map(world: dynamics.Landscape, points: list[dynamics.CriticalPoint]) -> Chart:
    """Contours and critical points, a colour an index."""
    drawn = landscape_chart(*heights(world, world.bounds), {}, [])
    for index, name in KINDS.items():
        at = [point.x.tolist() for point in points if point.index == index]
        colour = ("#ffffff", PALETTE[1], "#000000")[index]
        mark = {"size": 9, "color": colour, "line": {"width": 1, "color": "#808080"}}
        x, y = [a for a, _ in at], [b for _, b in at]
        drawn.figure["data"].append(
            {"type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "marker": mark}
        )
    drawn.figure["layout"]["showlegend"] = True
    return Chart(drawn.key, "Critical points", "White: minima. Orange: saddles. Black: maxima.", (), drawn.figure,
                 drawn.tables)  # fmt: skip


def _by_index(points: list[dynamics.CriticalPoint]) -> Chart:
    """Index against the height of critical points."""
    drawn = [Curve("critical points", [p.value for p in points], [float(p.index or 0) for p in points], "points")]
    reading = (
        "The higher a critical point lies, the more of its directions lead down, if the function is like a random one."
    )
    ends = (f"{round(points[place].value, 9):.4g}" for place in (0, -1))
    said = (f"{counted(len(points), 'critical point')}, from {' to '.join(ends)}.",)
    return curves(
        "index", "Index against the value", reading, drawn, x="f", y="index", y_range=(-0.2, 2.2), summary=said
    )


def _net(world: dynamics.Landscape, point: dynamics.CriticalPoint, reach: float) -> Chart:
    """Lines of constant x1 and x2 around the point, in Morse's coordinates."""
    steps, fine = torch.linspace(-reach, reach, 7, dtype=F64), torch.linspace(-reach, reach, 25, dtype=F64)
    drawn, signs = [], torch.zeros(2)
    for k, fixed in enumerate(steps):
        for direction in (0, 1):
            offset = torch.stack([fixed.expand(25), fine] if direction == 0 else [fine, fixed.expand(25)], 1)
            y, signs = dynamics.morse_coordinates(world, point.x, point.x + offset)
            name = f"x{'₁₂'[direction]} constant"
            drawn.append(Curve(name, y[:, 0].tolist(), y[:, 1].tolist(), "plain", PALETTE[direction], legend=k == 0))
    form = " ".join(f"{'+' if s > 0 else '−'} y{'₁₂'[k]}²" for k, s in enumerate(signs.tolist()))
    reading = (
        f"Here the function is exactly {point.value:.4g} {form}: a net of straight lines, as these coordinates see it."
    )
    return curves(
        "net",
        "Morse's coordinates around the point",
        reading,
        drawn,
        x="y₁",
        y="y₂",
        summary=(f"Signs {form}: index {point.index}.",),
    )


def _along(world: dynamics.Landscape, point: dynamics.CriticalPoint, reach: float, direction: int) -> Line:
    """The function through the point: as it is, and as a sum of squares."""
    t = torch.linspace(-reach, reach, ALONG, dtype=F64)
    offset = torch.zeros(ALONG, 2, dtype=F64)
    offset[:, direction] = t
    places = point.x + offset
    y, signs = dynamics.morse_coordinates(world, point.x, places)
    known: Tensor = point.value + (signs * y.square()).sum(1)
    at = places[:, direction].tolist()
    return Line(f"function along x{'₁₂'[direction]}", at, known.tolist(), at, world(places).tolist(), [0.0] * ALONG)
