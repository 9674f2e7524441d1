"""``pullback dynamics second-order``: loss against steps and against work, beside SGD and Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pullback import dynamics
from pullback._checks import PullbackError, check_option, check_rate
from pullback.charts.chart import Chart
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.counted_operations import operations
from pullback.cli.dynamics.pages.shared import digits, page_of, tanh_network
from pullback.report.dynamics.charts import colour_of
from pullback.report.theory.page import TheoryPage

LOSS = nn.CrossEntropyLoss()
Make = Callable[[nn.Module, float], Any]
METHODS: dict[str, Make] = {
    "Newton": lambda m, lr: dynamics.Newton(m, LOSS, lr, 0.1, indefinite="damp"),
    "damped Newton": lambda m, lr: dynamics.DampedNewton(m, LOSS, lr),
    "saddle-free Newton": lambda m, lr: dynamics.SaddleFreeNewton(m, LOSS, lr, 0.1),
    "Hessian-free": lambda m, lr: dynamics.HessianFree(m, LOSS, lr),
    "Gauss-Newton": lambda m, lr: dynamics.LevenbergMarquardt(m, LOSS, lr, 0.1),
    "natural gradient": lambda m, lr: dynamics.NaturalGradient(m, LOSS, lr, 0.1, form="parameters"),
    "natural gradient (kernel)": lambda m, lr: dynamics.NaturalGradient(
        m, LOSS, lr, 0.1, fisher="sampled", form="kernel"
    ),
    "SGD": lambda m, lr: torch.optim.SGD(m.parameters(), 0.3 * lr, 0.9),
    "Adam": lambda m, lr: torch.optim.Adam(m.parameters(), 0.03 * lr),
}  # fmt: skip
FIRST_ORDER = ("SGD", "Adam")
HEIGHT = 460  # of charts whose legend is a column on a phone
MORE = 60  # steps of SGD and Adam for each of the others


def chosen_methods(text: str) -> list[str]:
    """Methods by the words typed."""
    for name in (chosen := list(METHODS) if text == "all" else [each.strip() for each in text.split(",")]):
        check_option("dynamics second-order", "methods", name, (*METHODS, "all"))
    return chosen


def second_order_page(
    chosen: list[str], steps: int, size: tuple[int, int], lr: float, seed: int, advance: Callable[[], None]
) -> TheoryPage:
    """A tanh network on digits of 4 x 4 pixels, all samples at each step; ``size``: samples and hidden units."""
    check_rate("dynamics second-order", "lr", lr)
    samples, hidden = size
    x, y = digits(samples, pooled=True)
    model = tanh_network((16, hidden, 10), seed)
    one = operations(lambda: LOSS(model(x), y).backward())  # the gradient over all samples
    count, courses = sum(p.numel() for p in model.parameters()), {}
    for name in chosen:
        courses[name] = _followed(name, steps, lr, (16, hidden, 10), seed, (x, y), one)
        advance()
    in_steps = {
        name: list(zip(map(float, range(steps + 1)), loss, strict=False)) for name, (loss, *_) in courses.items()
    }
    in_work = {name: list(zip(work, loss, strict=True))[1:] for name, (loss, work, _) in courses.items()}
    charts = [
        _chart("steps", "A step is one update from all samples. Broken lines: first order.", in_steps, "step", ""),
        _chart("work", "Operations, in those of one gradient: products and factorisations of matrices are counted.",
               in_work, "gradients over all samples", "x"),
    ]  # fmt: skip
    keys = [_key(name, steps, *each) for name, each in courses.items()]
    facts = (f"{len(x)} digits of 4 x 4 pixels", f"{count} parameters", f"{steps} steps", "float64")
    return page_of("Second-order methods", facts, keys, "step", [], charts)


def _followed(
    name: str, steps: int, lr: float, sizes: Sequence[int], seed: int, data: tuple[Tensor, Tensor], one: float
) -> tuple[list[float], list[float], str]:
    """Loss before each step and at the end, work done by then in gradients, and what ended it early."""
    model, (x, y), first = tanh_network(sizes, seed), data, name in FIRST_ORDER
    optimizer, losses, work = METHODS[name](model, lr), [float(LOSS(model(x), y).detach())], [0.0]
    for _ in range(steps * (MORE if first else 1)):
        done = one
        if first:
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
        else:
            try:
                done = operations(lambda: optimizer.step(x, y))
            except PullbackError as error:
                return losses, work, f", then refused: {error}"
        losses.append(float(LOSS(model(x), y).detach()))
        work.append(work[-1] + done / one)
        if not math.isfinite(losses[-1]):
            return losses, work, ", then diverged"
    return losses, work, ""


def _key(name: str, steps: int, losses: list[float], work: list[float], ended: str) -> tuple[str, float, str]:
    """The loss after as many steps as there were, and what they cost."""
    last = min(steps, len(losses) - 1)
    each = f", {work[last] / last:.3g} gradients' work a step" if last and name not in FIRST_ORDER else ""
    return name, losses[last], f"loss after {last} steps{each}{ended}"


def _chart(key: str, reading: str, courses: Mapping[str, list[tuple[float, float]]], x: str, log: str) -> Chart:
    drawn = [
        Curve(name, [at for at, _ in points], [max(loss, 1e-16) for _, loss in points],
              "dash" if name in FIRST_ORDER else "plain", colour_of(list(METHODS).index(name)))
        for name, points in courses.items()
        if points
    ]  # fmt: skip
    ends = {name: points[-1] for name, points in courses.items() if points}
    least = min(ends, key=lambda name: ends[name][1], default="")
    said = (f"The least is that of {least}, {ends[least][1]:.3g}." if ends else "No step was taken.",)
    return curves(key, f"Loss against {key}", reading, drawn, x=x, y="loss", log_x=bool(log), log_y=True, summary=said,
                  height=HEIGHT)  # fmt: skip
