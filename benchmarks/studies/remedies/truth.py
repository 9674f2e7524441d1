"""What is wrong with a set-up, told by outcome: of trainings that nobody watches, on three seeds each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from benchmarks.studies.remedies.faults import FAULTS, sound
from benchmarks.studies.remedies.setups import Drawn, Setup, described, rates
from benchmarks.studies.remedies.training import train

SEEDS = (0, 1, 2)
MARGIN, LEAST_MARGIN = 0.05, 0.02  # a difference of skill that matters: this share of the larger one, and no less
LEARNS = 0.1  # the skill a set-up has to reach at its best rate, to be one that should train

Skills = list[float]


def compare(after: Sequence[float], before: Sequence[float]) -> str:
    """Whether it is "better", the "same" or "worse".

    Every seed has to be on the same side of all seeds of the other (of three against three, chance does so in one of
    20), and the means have to differ by the margin.
    """
    gap = fmean(after) - fmean(before)
    if abs(gap) < margin(after, before):
        return "same"
    if min(after) > max(before):
        return "better"
    return "worse" if max(after) < min(before) else "same"


def margin(*skills: Sequence[float]) -> float:
    return max(LEAST_MARGIN, MARGIN * max(fmean(each) for each in skills))


@dataclass
class Outcomes:
    """Skills that are known, by set-up and seed: a run that goes on, or rules that changed, train nothing twice."""

    known: dict[str, dict[str, float]] = field(default_factory=dict)

    def skills(self, setup: Setup, seeds: Sequence[int] = SEEDS) -> Skills:
        by_seed = self.known.setdefault(json.dumps(described(setup), sort_keys=True), {})
        for seed in seeds:
            if str(seed) not in by_seed:
                by_seed[str(seed)] = train(setup, seed).skill
        return [by_seed[str(seed)] for seed in seeds]


@dataclass(frozen=True)
class Truth:
    """A verdict on a set-up.

    Attributes:
        setup: with its rate and its fault.
        verdict: "healthy"; "rate too high", "rate too low" or "fault", which are broken; "harmless" (a fault that costs
            nothing), "unclear" (neither as good as the others nor worse by more than chance), or "untrainable" (no rate
            trains it even without the fault).
        best: the rate in the middle of those that do best.
        sweep: rate -> skill, of the twin without the fault, seed 0, of the rates that were tried.
        skills: of the set-up.
        twin: skills of the best rate, or of the same rate without the fault.
    """

    setup: Setup
    verdict: str
    best: float
    sweep: dict[float, float]
    skills: Skills
    twin: Skills

    @property
    def broken(self) -> bool:
        return self.verdict in ("rate too high", "rate too low", "fault")

    def as_json(self) -> dict[str, Any]:
        return {
            "setup": described(self.setup),
            "verdict": self.verdict,
            "best_rate": self.best,
            "sweep": [[rate, reached] for rate, reached in self.sweep.items()],
            "skills": self.skills,
            "twin": self.twin,
        }


def swept(whole: Setup, grid: Sequence[float], outcomes: Outcomes) -> dict[float, float]:
    """Rate -> skill on the first seed, ascending: every second rate but the lowest, and then what lies beside the best.

    Until no neighbour of a rate within the margin is left out. Of the first 31 set-ups all eleven rates say the same of
    which are good, with half as many trainings again.
    """
    reached: dict[int, float] = {}
    places = list(range(2, len(grid), 2))
    while places:
        reached |= {k: outcomes.skills(replace(whole, rate=grid[k]), SEEDS[:1])[0] for k in places}
        near = {k + side for k in _good(reached) for side in (-1, 1)}
        places = sorted(k for k in near if 0 <= k < len(grid) and k not in reached)
    return {grid[k]: reached[k] for k in sorted(reached)}


def _good(reached: Mapping[Any, float]) -> list[Any]:
    """What is within the margin of the best, in its order."""
    top = max(reached.values())
    return [place for place in sorted(reached) if reached[place] >= top - margin([top])]


def truth(drawn: Drawn, outcomes: Outcomes) -> Truth:
    """Look for the best rates of the sound set-up, then judge the one that was drawn."""
    whole = sound(drawn)
    grid = rates(whole.optimizer)
    sweep = swept(whole, grid, outcomes)
    top, good = max(sweep.values()), _good(sweep)
    best = good[len(good) // 2]
    among = grid if drawn.planted == "rate" else good
    at_rate = replace(whole, rate=among[int(drawn.place * len(among))])
    setup = FAULTS[drawn.planted].plant(at_rate) if drawn.planted in FAULTS else at_rate
    if top < LEARNS:
        return Truth(setup, "untrainable", best, sweep, [], [])
    reference = outcomes.skills(replace(whole, rate=best))
    healthy = outcomes.skills(at_rate)
    held = compare(healthy, reference)
    if drawn.planted in FAULTS:
        skills = outcomes.skills(setup)
        costs = compare(skills, healthy)
        as_good = fmean(skills) > fmean(healthy) - margin(skills, healthy)
        verdict = (
            "unclear" if held == "worse" else "fault" if costs == "worse" else "harmless" if as_good else "unclear"
        )
        return Truth(setup, verdict, best, sweep, skills, healthy)
    if held == "worse":
        verdict = "rate too high" if setup.rate > best else "rate too low"
    else:
        as_good = fmean(healthy) >= fmean(reference) - margin(healthy, reference)
        verdict = "healthy" if as_good else "unclear"
    return Truth(setup, verdict, best, sweep, healthy, reference)
