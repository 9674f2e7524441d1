"""The page of ``pullback theory linearity``: laws of the width as lines, networks as points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pullback._results import Estimate
    from pullback.measure import Linearity
    from pullback.modules import WideNetwork
    from pullback.report.theory.charts import Line
    from pullback.report.theory.page import TheoryPage


def lines_of(model: WideNetwork, measured: Linearity) -> list[Line]:
    """Hessian norm, largest derivative in a hidden activation, and K(x, x), each with its law.

    Laws are powers of the width through the narrowest networks' mean: -1/2, times sqrt(log m) from two hidden layers
    on, and 0 where the output is not linear or a layer stays narrow. K(x, x) has a limit of its own where it is known.
    """
    from torch import nn

    linear = isinstance(model.output, nn.Identity) and model.bottleneck is None
    deep = len(model.widths) > 1

    def law(first: float, falls: bool) -> list[float]:
        shape = [math.sqrt((math.log(m) if deep else 1.0) / m) if falls else 1.0 for m in measured.widths]
        return [first * value / shape[0] for value in shape]

    norm, signal = _numbers(measured.hessian_norm), measured.q_inf_hidden.flatten(1).mean(1).tolist()
    errors = [_spread([float(one.q_inf_hidden.mean()) for one in row]) for row in measured.draws]
    kernels = [[float(one.kernel_diagonal.mean()) for one in row] for row in measured.draws]
    kernel = [sum(row) / len(row) for row in kernels]
    limit = measured.diagonal_limit
    level = kernel[-1] if limit is None else float(limit.flatten()[0])
    return [
        _line("Hessian norm", measured.widths, law(norm[0][0], linear), *norm),
        _line(
            "largest derivative in a hidden unit",
            measured.widths,
            law(signal[0], model.bottleneck is None),
            signal,
            errors,
        ),
        _line("K(x, x)", measured.widths, [level] * len(kernel), kernel, [_spread(row) for row in kernels]),
    ]


def linearity_page(facts: Sequence[str], measured: Linearity, lines: Sequence[Line]) -> TheoryPage:
    """The page with its charts."""
    from pullback.measure.linearity.family import verdict
    from pullback.report.theory.charts import line_chart
    from pullback.report.theory.page import TheoryPage

    readings = (
        ("hessian", "Where it falls, outputs become linear in the weights within any ball.", "xy"),
        ("signals", "What the Hessian is made of: it falls in all kinds but behind a bottleneck.", "xy"),
        ("kernel", "The kernel itself stays: what vanishes with the Hessian is its change in training.", "x"),
    )
    charts = tuple(
        line_chart(line, key, reading, x="width m", y=line.name, log=log)
        for line, (key, reading, log) in zip(lines, readings, strict=True)
    )
    slope = measured.slopes["hessian_norm"]
    keys = (
        ("exponent of m in |H|", str(slope), "with its 95 percent interval"),
        ("becomes linear", verdict(measured), "the exponent is then -1/2, and 0 if not"),
    )
    return TheoryPage("Linearity against the width", tuple(facts), keys, "width", lines, charts)


def _numbers(estimate: Estimate) -> tuple[list[float], list[float]]:
    """Mean over inputs and outputs at each width, and the standard error."""
    return estimate.value.flatten(1).mean(1).tolist(), estimate.stderr.flatten(1).mean(1).tolist()


def _spread(values: Sequence[float]) -> float:
    """Standard error of a mean of draws."""
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _line(
    name: str, widths: Sequence[int], law: Sequence[float], measured: Sequence[float], errors: Sequence[float]
) -> Line:
    from pullback.report.theory.charts import Line

    return Line(name, list(widths), law, list(widths), measured, errors)
