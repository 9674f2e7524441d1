"""``pullback dynamics batch``: updates against batch size, and Adam's step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import dynamics
from pullback._checks import check_positive
from pullback.cli.dynamics.pages.shared import F64, chart, numbers, page_of
from pullback.report.theory.charts import Line
from pullback.report.theory.page import TheoryPage


def batch_page(curvatures: str, noise: float, target: float, points: int, seeds: int) -> TheoryPage:
    """Updates to the target in closed form and as means over runs; Adam's step in the same way."""
    check_positive("dynamics batch", "noise", noise)
    problem = dynamics.Quadratic(numbers(curvatures, "curvatures"))
    d, sizes = len(problem.eigenvalues), [16 * 4**k for k in range(points)]
    curve = dynamics.batch_size_curve(problem, torch.ones(d, dtype=F64), target, sizes, noise_covariance=noise)
    steps, errors = [], []
    for size, lr, known in zip(sizes, curve.lr.tolist(), curve.steps.tolist(), strict=True):
        count = int(known) + 20 if known < math.inf else 20
        starts = torch.ones(seeds, d, dtype=F64)
        make = lambda p, lr=lr: torch.optim.SGD(p, lr=lr)
        loss = dynamics.simulate(make, problem, starts, count, noise_covariance=noise / size).loss - float(
            problem.loss(problem.minimiser)
        )
        halves = [_first(loss[part::4].mean(0), target) for part in range(4)]
        steps.append(_first(loss.mean(0), target))
        errors.append(float(torch.tensor(halves, dtype=F64).std()) / 2)
    updates = Line("updates to the target", sizes, curve.steps.tolist(), sizes, steps, errors)
    at = torch.tensor(sizes, dtype=F64)
    known = dynamics.adam_effective_step(0.1, 1.0, at)
    moved, spread = [], []
    for size in sizes:
        adam = lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.9, 0.99))
        slope = lambda x: 0.1 * x.sum(-1)
        path = dynamics.simulate(adam, slope, torch.zeros(seeds, 1, dtype=F64), 300, noise_covariance=1 / size).x[
            ..., 0
        ]
        each = (path[:, 100] - path[:, -1]) / (200 * 1e-3)
        moved.append(float(each.mean()))
        spread.append(float(each.std()) / math.sqrt(seeds))
    effective = Line("Adam's step over its rate", sizes, known.tolist(), sizes, moved, spread)
    charts = [
        chart(updates, "updates", "Each batch size at its best rate; level where noise has ceased to matter.",
               x="batch size", y="updates", log="xy", level=curve.least),
        chart(effective, "adam", "A gradient of mean 0.1 and variance 1: larger batches take larger steps.",
               x="batch size", y="step / lr", log="x"),
    ]  # fmt: skip
    keys = [
        ("updates without noise", curve.least, "no batch size can do with fewer"),
        ("saturation", curve.saturation, "the smallest batch of these within twice as many"),
    ]
    facts = (f"curvatures {curvatures}", f"variance {noise:g}", f"target {target:g}", f"{seeds} runs a point")
    return page_of("Batch size", facts, keys, "batch size", [updates, effective], charts)


def _first(losses: Tensor, target: float) -> float:
    below = losses < target
    return float(below.to(torch.uint8).argmax()) if bool(below.any()) else math.nan
