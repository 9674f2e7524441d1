"""Claims made in words, decided over seeds: "holds", "holds under conditions" or "does not hold".

A claim comes with the numbers that speak for it, one a seed and condition, above zero where that seed agrees. It is
shown under a condition where Student's test finds their mean above zero; it holds if that is so under all conditions,
and under conditions if under some. A claim that is wrong everywhere is said to hold somewhere in one of twenty cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

LEVEL = 0.05  # of a whole claim, shared by its conditions
HEADER = ("claim, conditions", "verdict", "mean ± standard error", "p", "seen there")


@dataclass(frozen=True)
class Evidence:
    """What seeds say under one condition.

    Attributes:
        condition: where they were drawn.
        mean: over seeds.
        stderr: standard error of the mean.
        p: chance of a mean as far above zero, were the true one zero: one-sided, by Student's distribution.
        level: below which ``p`` counts.
    """

    condition: str
    mean: float
    stderr: float
    p: float
    level: float

    @property
    def shown(self) -> bool:
        """Whether the mean is above zero."""
        return self.p < self.level

    @property
    def word(self) -> str:
        """For the table."""
        return "yes" if self.shown else ("the opposite" if 1 - self.p < self.level else "not shown")


@dataclass(frozen=True)
class Claim:
    """A sentence, and the evidence under every condition."""

    text: str
    evidence: tuple[Evidence, ...]

    @property
    def verdict(self) -> str:
        """From the evidence alone."""
        shown = sum(each.shown for each in self.evidence)
        if shown == len(self.evidence):
            return "holds"
        return "holds under conditions" if shown else "does not hold"


def decide(text: str, differences: Mapping[str, Tensor | Sequence[float]]) -> Claim:
    """Weigh a claim.

    Args:
        text: the claim.
        differences: by condition, a number a seed, two seeds at least: above zero where the seed agrees.
    """
    level = LEVEL / len(differences)
    return Claim(text, tuple(_weigh(name, torch.as_tensor(each), level) for name, each in differences.items()))


def _weigh(condition: str, values: Tensor, level: float) -> Evidence:
    """A one-sided test; seeds that all say the same leave no doubt, and an infinite or missing number no answer."""
    values = values.double()
    mean, stderr = float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    alike = 0.5 if mean == 0 else float(mean < 0)
    p = alike if stderr <= 1e-9 * abs(mean) else float(stats.t.sf(mean / stderr, len(values) - 1))
    return Evidence(condition, mean, stderr, p if p == p else 0.5, level)


def table(claims: Sequence[Claim]) -> list[list[str | float]]:
    """Rows under ``HEADER``: a claim with its verdict, then one a condition."""
    rows: list[list[str | float]] = []
    for claim in claims:
        rows.append([claim.text, claim.verdict, "", "", ""])
        rows.extend(
            [f"– {e.condition}", "", f"{e.mean:.3g} ± {e.stderr:.3g}", float(f"{e.p:.3g}"), e.word]
            for e in claim.evidence
        )
    return rows
