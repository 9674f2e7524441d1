"""``pullback dynamics landscape``: paths of optimizers over contours, and their losses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pullback import dynamics
from pullback._checks import check_option
from pullback.charts.plots import Curve, curves
from pullback.cli.dynamics.pages.shared import heights, numbers, page_of
from pullback.report.dynamics.charts import colour_of, landscape_chart
from pullback.report.theory.page import TheoryPage

OPTIMIZERS: dict[str, tuple[Callable[..., Any], float]] = {
    "SGD": (torch.optim.SGD, 1e-3),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), 1e-3),
    "Nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), 1e-3),
    "RMSprop": (torch.optim.RMSprop, 1e-2),
    "Adagrad": (torch.optim.Adagrad, 0.1),
    "Adam": (torch.optim.Adam, 0.05),
    "AdamW": (torch.optim.AdamW, 0.05),
    "LBFGS": (torch.optim.LBFGS, 1.0),
}


def _makers(text: str) -> dict[str, Any]:
    """Optimizers by the words typed."""
    makers = {}
    for part in text.split(","):
        name, _, rate = part.strip().partition(":")
        check_option("dynamics landscape", "optimizers", name, tuple(OPTIMIZERS))
        kind, usual = OPTIMIZERS[name]
        lr = numbers(rate, "optimizers")[0] if rate else usual
        makers[f"{name} {lr:g}"] = lambda p, kind=kind, lr=lr: kind(p, lr=lr)
    return makers


def landscape_page(name: str, optimizers: str, steps: int, record: Path | None) -> TheoryPage:
    """Trajectories and losses; nothing is predicted here."""
    world = dynamics.landscape(name)
    trajectories = dynamics.simulate_all(_makers(optimizers), name, None, steps)
    if record is not None:
        from pullback.runs import RunWriter

        for label, each in trajectories.items():
            with RunWriter(record / label.replace(" ", "-"), each.meta) as writer:
                each.write(writer)
    losses = [
        Curve(
            label,
            list(range(steps + 1)),
            [max(v, 1e-16) for v in each.loss.nan_to_num(1e300).tolist()],
            "plain",
            colour_of(place),
        )
        for place, (label, each) in enumerate(trajectories.items())
    ]
    reading = "Of each optimizer, at the rate behind its name."
    positive = len(world.minimisers) > 0 and float(world(world.minimisers).min()) >= 0
    charts = [curves("loss", "Loss", reading, losses, x="step", y="loss", log_y=positive)]
    if len(world.start) == 2:
        x, y, z = heights(world, world.bounds)
        paths = {label: (each.x[:, 0].tolist(), each.x[:, 1].tolist()) for label, each in trajectories.items()}
        charts.insert(0, landscape_chart(x, y, z, paths, world.minimisers.tolist()))
    keys = [(label, float(each.loss[-1]), f"loss after {steps} steps") for label, each in trajectories.items()]
    facts = (f"start {', '.join(f'{v:g}' for v in world.start.tolist())}", f"{steps} steps")
    return page_of(name, facts, keys, "step", [], charts)
