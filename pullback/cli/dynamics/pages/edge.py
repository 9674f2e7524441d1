"""``pullback dynamics edge``: sharpness against what a rate allows, and the equations of its stabilisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor, nn

import pullback as pb
from pullback import dynamics
from pullback._checks import as_number, check_rate, input_error
from pullback.charts.chart import Chart
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.shared import chart, digits, page_of, some, tanh_network
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage

SAMPLES, LOST = 100, 1e6  # of the network, and a loss that has left
MODEL_RATE, ALPHA, TURNS, START = 0.1, 2e-3, 2, 1.1  # of the function of two parameters


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half of the squared error, (N,)."""
    return ((outputs - targets) ** 2).sum(1) / 2


def edge_page(lr: float, momentum: float, looks: tuple[int, int], seed: int, advance: Callable[[], None]) -> TheoryPage:
    """Full-batch descent of a tanh network on digits, and of the function that explains it."""
    where = "dynamics edge"
    check_rate(where, "lr", lr)
    if not 0 <= as_number(momentum) < 1:
        raise input_error(where, "`momentum` in [0, 1)", repr(momentum), "Pass a momentum below 1")
    limit = 2 * (1 + momentum) / lr
    at, sharpnesses, losses = _trained(lr, momentum, looks, seed, advance)
    name = f"2 (1 + m) / lr = {limit:.4g}" if momentum else f"2 / lr = {limit:.4g}"
    seen = [
        Curve("largest eigenvalue of the Hessian", at, sharpnesses, "line"),
        Curve(name, at, [limit] * len(at), "dash"),
    ]
    reading = "It rises while training goes on, as far as the rate allows, and hovers there: the edge of stability."
    rises = sum(b > a for a, b in pairwise(losses[len(losses) // 2 :]))
    loss = Curve("loss", (shown := some(len(losses), 200)), [losses[k] for k in shown], "plain")
    lines, model_charts = _stabilisation()
    charts = [
        curves("sharpness", "Sharpness along training", reading, seen, x="step", y="sharpness"),
        curves("loss", "Loss", "Not monotone at the edge, and falling over longer times.", [loss], x="step", y="loss",
               log_y=min(losses) > 0),
        *model_charts,
    ]  # fmt: skip
    keys = [
        ("limit", limit, "of the sharpness at this rate"),
        ("sharpness over its limit", fmean(sharpnesses[len(sharpnesses) // 2 :]) / limit, "mean over the second half"),
        ("steps the loss rises", str(rises), "in the second half"),
    ]
    facts = (
        f"lr {lr:g}",
        f"momentum {momentum:g}",
        f"{looks[0]} steps",
        f"{SAMPLES} digits, two layers of 16 tanh units",
    )
    return page_of("The edge of stability", facts, keys, "step", lines, charts)


def _trained(
    lr: float, momentum: float, looks: tuple[int, int], seed: int, advance: Callable[[], None]
) -> tuple[list[int], list[float], list[float]]:
    """Steps at which the sharpness was measured, the sharpness, and the loss before every step.

    Raises:
        InputError: the loss has left.
    """
    steps, every = looks
    x, labels = digits(SAMPLES)
    model, y = tanh_network((64, 16, 16, 10), seed), nn.functional.one_hot(labels, 10).double()
    optimizer, at, sharpnesses, losses = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum), [], [], []
    for step in range(steps + 1):
        loss = half_square(model(x), y).mean()
        losses.append(loss.item())
        if not losses[-1] < LOST:
            raise input_error("dynamics edge", "a rate that training survives", f"{lr:g}", "Pass a smaller --lr")
        if step % every == 0:
            at.append(step)
            sharpnesses.append(float(pb.eigenvalues(pb.Hessian(model, half_square, (x, y)), 1, tol=1e-2).values[0]))
            advance()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return at, sharpnesses, losses


def _stabilisation() -> tuple[list[Line], list[Chart]]:
    """Descent on (2/lr + y) x^2/2 - alpha y: |x| to |x| (1 + lr y), y to y + lr (alpha - x^2/2), a circle if small."""
    centre, first = math.sqrt(2 * ALPHA), 2 * math.log(START)  # of |x|; of ln(x^2 / 2 alpha), which is first * cos
    steps = round(TURNS * 2 * math.pi / (turn := MODEL_RATE * centre))  # radians a step
    at = some(steps + 1, 300)
    swing = [centre * math.exp(first / 2 * math.cos(turn * k)) for k in at]
    above = [-first / 2 * centre * math.sin(turn * k) for k in at]

    def function(p: Tensor) -> Tensor:
        return (2 / MODEL_RATE + p[..., 1]) * p[..., 0].square() / 2 - ALPHA * p[..., 1]

    path = dynamics.simulate(lambda p: torch.optim.SGD(p, lr=MODEL_RATE), function, [START * centre, 0.0], steps).x
    lines, charts = [], []
    for key, name, y, known, found, level in (
        ("oscillation", "self-stabilisation: oscillation", "|x|", swing, path[:, 0].abs(), centre),
        ("stabilisation", "self-stabilisation: sharpness", "sharpness less 2/lr", above, path[:, 1], 0.0),
    ):
        places = at[::6]
        lines.append(Line(name, at, known, places, [float(found[k]) for k in places], [0.0] * len(places)))
        reading = (
            "A sharpness above 2/lr lets |x| grow, which takes it down again. Line: the circle that both describe."
        )
        drawn = chart(lines[-1], key, reading, x="step", y=y, level=level)
        away = max(abs(float(found[k]) - v) for k, v in zip(at, known, strict=True))
        said = f"Points are within {away / (max(known) - min(known)):.2g} of the line's height."
        charts.append(replace(drawn, summary=(said,)))
    return lines, charts
