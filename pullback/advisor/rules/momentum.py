"""Momentum that remembers gradients for longer than a run lasts: it only ever gathers speed."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pullback.advisor.change import Change
from pullback.advisor.findings import Finding
from pullback.advisor.reading import CONVENTION, number
from pullback.advisor.rules.words import as_dict
from pullback.advisor.severity import falls_short
from pullback.advisor.thresholds import LONG_MEMORY
from pullback.advisor.training_losses import training_losses
from pullback.runs import Run


def too_long_memory(run: Run) -> Iterator[Finding]:
    """Steps that add up all gradients so far: such a run overshoots, whatever the curvature of the moment bears."""
    momentum, losses = number(as_dict(run.meta.get("optimizer")).get("momentum")), training_losses(run)
    memory = 1 / (1 - momentum) if momentum < 1 else math.inf
    if not momentum > 0 or not memory > len(losses) or len(losses) < LONG_MEMORY or not falls_short(run):
        return
    yield Finding(
        "learning-rate-too-high",
        "warning",
        None,
        (0, int(losses.steps[-1])),
        {"momentum": momentum, "steps it remembers": memory, "steps": float(len(losses))},
        f"1 / (1 - momentum) above the number of steps, of {LONG_MEMORY} or more, in a run that falls short",
        "sum of a geometric series; " + CONVENTION,
        "Lower the momentum to 0.9, or the learning rate tenfold",
        summary=f"The momentum, {momentum:g}, remembers gradients for {memory:,.0f} steps, longer than the run: steps "
        "go on where none leads any more.",
        change=Change("learning_rate", 0.1),
    )
