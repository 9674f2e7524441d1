"""``pullback dynamics outputs``: descent in outputs, pulled back to the parameters of Rosenbrock's function."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import dynamics
from pullback._checks import check_rate
from pullback.charts.chart import Chart
from pullback.charts.plots import Curve, curves
from pullback.charts.text import number
from pullback.cli.dynamics.pages.shared import F64, beside, chart, heights, page_of
from pullback.report.dynamics.charts import colour_of, landscape_chart
from pullback.report.theory.page import TheoryPage

START = [-1.2, 1.0]


def outputs_page(lr: float, parameter_lr: float, steps: int) -> TheoryPage:
    """Outputs 1 - x and 10 (y - x^2), whose sum of squares is Rosenbrock's function: three ways down."""
    check_rate("dynamics outputs", "lr", lr)
    check_rate("dynamics outputs", "parameter-lr", parameter_lr)
    outputs = lambda x: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
    square = lambda z: z.square().sum()
    follow = lambda rate, method: dynamics.output_space_descent(outputs, square, START, steps, rate, method)
    descent, newton = follow(lr, "outputs"), follow(2 * lr, "gauss_newton")  # the loss's curvature in outputs is 2
    plain, whole = follow(parameter_lr, "parameters"), follow(1.0, "gauss_newton")
    known = _recursion(descent.outputs[0], lr, steps)
    lines = [
        beside("first output", known[:, 0], descent.outputs[:, 0]),
        beside("second output", known[:, 1], descent.outputs[:, 1]),
        beside("loss", known.square().sum(1), descent.loss),
    ]
    reading = "By recursion: both outputs shrink by 1 - 2 lr a step; the second loses 10 times the square of x's step."
    charts = [
        chart(line, key, reading, x="step", y=y, log=log)
        for line, key, y, log in zip(
            lines, ("first", "second", "loss"), ("1 - x", "10 (y - x²)", "loss"), ("", "", "y"), strict=True
        )
    ]
    ways = {"parameters": plain, f"outputs, rate {lr:g}": descent, "Gauss-Newton, rate 1": whole}
    paths = {name: (each.x[:, 0].tolist(), each.x[:, 1].tolist()) for name, each in ways.items()}
    world = dynamics.landscape("rosenbrock")
    bounds = [(-2.0, 2.0), (min(-1.0, float(whole.x[:, 1].min()) - 0.4), 2.5)]
    charts.insert(0, landscape_chart(*heights(world, bounds), paths, world.minimisers.tolist(), ("x", "y")))
    charts.append(_ways(ways))
    charts.append(_in_outputs(ways, descent.outputs[0]))
    apart = float((descent.x - newton.x).abs().max())
    keys = [
        ("outputs beside Gauss-Newton", number(apart, 2), "largest distance of the two, the latter at twice the rate"),
        *((name, number(float(each.loss[-1]), 3), f"loss after {steps} steps") for name, each in ways.items()),
        ("Gauss-Newton, two steps", number(float(whole.loss[2]), 3), "loss after two steps of rate 1"),
    ]
    facts = ("Rosenbrock's function", f"lr {lr:g} in outputs, {parameter_lr:g} in parameters", f"{steps} steps")
    return page_of("Descent in outputs", facts, keys, "step", lines, charts)


def _recursion(start: Tensor, lr: float, steps: int) -> Tensor:
    """Outputs step by step, (steps + 1, 2): the second bends by -10 times the square of x's step."""
    path = [start.to(F64)]
    for _ in range(steps):
        one, two = path[-1].unbind()
        path.append(torch.stack([(1 - 2 * lr) * one, (1 - 2 * lr) * two - 10 * (2 * lr * one) ** 2]))
    return torch.stack(path)


def _ways(ways: dict[str, dynamics.OutputPath]) -> Chart:
    """Loss against steps."""
    drawn = []
    for place, (name, each) in enumerate(ways.items()):
        losses = [max(v, 1e-16) for v in each.loss.nan_to_num(1e300, 1e300).tolist()]
        drawn.append(Curve(name, list(range(len(losses))), losses, "plain", colour_of(place)))
    reading = "The same function, by the gradient in its parameters, and by that in its outputs pulled back."
    return curves("ways", "Loss, three ways", reading, drawn, x="step", y="loss", log_y=True)


def _in_outputs(ways: dict[str, dynamics.OutputPath], start: Tensor) -> Chart:
    """Paths where the loss is a circle."""
    drawn = [Curve("small rates", [float(start[0]), 0.0], [float(start[1]), 0.0], "dash")]
    for place, (name, each) in enumerate(ways.items()):
        if name != "parameters":
            z = each.outputs
            style = "points" if "outputs" in name else "line"
            drawn.append(Curve(name, z[:, 0].tolist(), z[:, 1].tolist(), style, colour_of(place)))
    reading = (
        "The loss is the squared distance from the origin: descent in outputs goes straight there as its rate falls."
    )
    return curves("outputs", "The way in outputs", reading, drawn, x="1 - x", y="10 (y - x²)")
