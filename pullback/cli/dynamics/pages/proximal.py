"""``pullback dynamics proximal``: the step that a distance asks for, and how far expansions are from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from pullback._checks import check_option, check_rate
from pullback.cli.dynamics.pages.shared import F64, chart, heights, page_of
from pullback.report.dynamics.charts import landscape_chart
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage

ORDERS: dict[str, tuple[int | None, int | None]] = {  # of the function, and of the distance; None: as it is
    "natural gradient": (1, 2),
    "mirror descent": (1, None),
    "damped Newton": (2, 2),
    "proximal point": (None, None),
}
WORDS = {1: "first order", 2: "second order", None: "as it is"}


def _bregman(potential: Any) -> Any:
    """The distance that a convex function makes: how far it lies above its tangent."""

    def distance(new: Tensor, old: Tensor) -> Tensor:
        slope = torch.func.grad(lambda x: potential(x).sum())(old)
        return (potential(new) - potential(old) - slope * (new - old)).sum()

    return distance


DISTANCES = {
    "euclidean": dynamics.half_square,
    "cosh": _bregman(torch.cosh),
    "logistic": _bregman(torch.nn.functional.softplus),  # KL divergence of Bernoulli variables, by their logits
}


def proximal_page(name: str, distance: str, weight: float, points: int) -> TheoryPage:
    """Steps at one weight on the map, and distances from the proximal point's at growing weights."""
    check_option("dynamics proximal", "distance", distance, tuple(DISTANCES))
    check_rate("dynamics proximal", "weight", weight)
    world, price = dynamics.landscape(name), DISTANCES[distance]
    weights = [weight * 4.0**k for k in range(points)]
    steps = {key: [_step(world, w, price, orders) for w in weights] for key, orders in ORDERS.items()}
    steps_of = {each[0].method: [step.step for step in each] for each in steps.values()}  # method -> (points) of (d,)
    exact, leading = steps_of["proximal point"], _leading(world, price)
    lines, charts = [], []
    for key, method in zip(leading, steps_of, strict=False):
        order, size = leading[key]
        if not size:  # nothing is left out
            continue
        away = [float((s - e).norm() / e.norm()) for s, e in zip(steps_of[method], exact, strict=True)]
        lines.append(Line(f"{method}: off the proximal point", weights,
                          [size / w**order for w in weights], weights, away, [0.0] * points))  # fmt: skip
        reading = f"Line: the first term left out, of order 1 / weight{'²' if order == 2 else ''}. Right: small steps."
        drawn = chart(lines[-1], key.replace(" ", "-").lower(), reading, x="weight of the distance",
                      y="relative distance", log="xy")  # fmt: skip
        last = f"At weight {weights[-1]:,.0f} it is {away[-1] * weights[-1] ** order / size:.4g} of that term."
        charts.append(replace(drawn, summary=(last,)))
    if len(world.start) == 2:
        start = world.start
        paths = {method: _path(start, steps[0]) for method, steps in steps_of.items()}
        charts.insert(0, landscape_chart(*heights(world, _around(paths)), paths, []))
    keys = [
        (method, f"({', '.join(f'{v:.4g}' for v in steps_of[method][0].tolist())})",
         f"function: {WORDS[orders[0]]}; distance: {WORDS[orders[1]]}")
        for method, orders in zip(steps_of, ORDERS.values(), strict=True)
    ]  # fmt: skip
    facts = (name, f"{distance} distance", f"weight {weight:g}")
    return page_of("Steps from a distance", facts, keys, "weight", lines, charts)


def _step(world: dynamics.Landscape, weight: float, price: Any, orders: tuple[Any, Any]) -> dynamics.Proximal:
    return dynamics.proximal_step(
        world, world.start, weight, distance=price, loss_order=orders[0], distance_order=orders[1]
    )


def _path(start: Tensor, step: Tensor) -> tuple[list[float], list[float]]:
    """From the start to where the step leads."""
    ends = torch.stack([start, start + step])
    return ends[:, 0].tolist(), ends[:, 1].tolist()


def _around(paths: dict[str, tuple[list[float], list[float]]]) -> list[tuple[float, float]]:
    """Bounds of a map that shows all steps."""
    sides = [[v for path in paths.values() for v in path[axis]] for axis in (0, 1)]
    reach = 0.7 * max(max(side) - min(side) for side in sides)
    return [((max(side) + min(side)) / 2 - reach, (max(side) + min(side)) / 2 + reach) for side in sides]


def _leading(world: dynamics.Landscape, price: Any) -> dict[str, tuple[int, float]]:
    """Order in 1 / weight and size of what each method leaves out, relative to the step.

    The proximal step is s1 / w + s2 / w^2 + ... with G s1 = -g and G s2 = -(H s1 + T s1 s1 / 2), G and T the second and
    third derivatives of the distance; where T is 0, damped Newton's first error is that of f's third derivative.
    """
    start, grad = world.start.to(F64), torch.func.grad
    near = lambda x: price(x, start)
    G, H = (torch.func.jacrev(grad(each))(start) for each in (near, world.function))
    s1 = -torch.linalg.solve(G, grad(world.function)(start))
    # half of the third derivative, twice along s1: the gradient of s1 H(x) s1, by reverse passes alone
    third = lambda f: grad(lambda x: grad(lambda z: grad(f)(z) @ s1)(x) @ s1)(start) / 2
    twist, bend = third(near), third(world.function)
    size = lambda left: float(torch.linalg.solve(G, left).norm() / s1.norm())
    quadratic = float(twist.norm()) == 0
    return {
        "natural gradient": (1, size(H @ s1 + twist)),
        "mirror descent": (1, size(H @ s1)),
        "damped Newton": (2, size(bend)) if quadratic else (1, size(twist)),
    }
