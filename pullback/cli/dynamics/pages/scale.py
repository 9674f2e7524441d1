"""``pullback dynamics scale``: growth of weights whose scale the loss does not see."""

from __future__ import annotations

import math

import torch

from pullback import dynamics
from pullback.cli.dynamics.pages.shared import beside, chart, page_of
from pullback.report.theory.page import TheoryPage


def scale_page(lr: float, decay: float, steps: int) -> TheoryPage:
    """Growth by recursion, and of weights that torch's optimizer turns."""
    known = dynamics.scale_invariant_growth(lr, 1.0, steps, weight_decay=decay)
    turning = lambda w: torch.atan2(w[..., 1], w[..., 0])
    make = lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay)
    squares = dynamics.simulate(make, turning, [1.0, 0.0], steps).x.square().sum(-1)
    growth = beside("|w|²", known.squared_norm, squares)
    rate = beside("effective rate", known.effective_rate, lr / squares)
    level = None if known.equilibrium == math.inf else known.equilibrium
    charts = [
        chart(growth, "norm", "It grows like the root of the steps, up to where decay holds it.", x="step", y="|w|²",
               level=level),
        chart(rate, "rate", "lr / |w|², at which the direction turns.", x="step", y="lr / |w|²", log="y"),
    ]  # fmt: skip
    keys = [("equilibrium |w|²", known.equilibrium, "of growth and decay"), ("last |w|²", float(squares[-1]), "found")]
    facts = (f"lr {lr:g}", f"weight decay {decay:g}", "gradient 1 at |w| = 1")
    return page_of("Weights without scale", facts, keys, "step", [growth, rate], charts)
