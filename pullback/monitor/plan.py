"""What one measurement takes on: how many samples, which dear probes, and how many passes that makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pullback.monitor.probes import Observation, Probe
from pullback.monitor.probes.work import KERNEL_FIRST, Work

FEWEST = 4  # samples of a measurement that must not be left out, and of a dear probe
ENOUGH = 16  # of one that may be


@dataclass(frozen=True)
class Allowed:
    """What a measurement may take.

    Args:
        cheap: passes of the probes that always run.
        dear: passes of those that do not.
        wanted: names of dear probes whose turn it is.
        extras: whether it is the turn of what makes no passes and is dear in other ways.
    """

    cheap: float = math.inf
    dear: float = math.inf
    wanted: frozenset[str] = frozenset()
    extras: bool = False


@dataclass(frozen=True)
class Plan:
    """A measurement before it is made.

    Args:
        num_samples: N, that all probes share.
        available: samples there are, up to what a measurement looks at.
        dear: samples of each dear probe that joins, by name.
        extras: whether probes add their dearer parts, which make no passes of the model.
        cheap: passes of the probes that always run.
        dearer: passes of the others.
        waiting: dear probes whose turn it was and that are put off.
    """

    num_samples: int
    available: int = 0
    dear: Mapping[str, int] = field(default_factory=dict)
    extras: bool = False
    cheap: float = 0.0
    dearer: float = 0.0
    waiting: tuple[str, ...] = ()

    def has(self, probe: Probe) -> bool:
        """Whether a probe takes part."""
        return not probe.at_start and (not probe.sparse or probe.name in self.dear)


def works(probes: Iterable[Probe], seen: Observation) -> dict[str, Work]:
    """What each probe costs, by name; one that cannot tell will hardly run, and counts as free."""
    found = {}
    for probe in probes:
        if not probe.at_start:
            try:
                found[probe.name] = probe.work if isinstance(probe.work, Work) else probe.work(seen)
            except Exception:
                found[probe.name] = Work()
    return found


def cheap_passes(of: Sequence[Work], samples: int, *, first: bool) -> float:
    """Passes of the probes that always run, with the kernel that they share."""
    return samples + KERNEL_FIRST * first + sum(work.of(samples) for work in of)


def most_samples(of: Sequence[Work], passes: float, available: int, *, first: bool) -> int:
    """The most samples, up to those there are, that cost no more than so many passes; 0 if none do."""
    low, high = 0, available
    while low < high:
        middle = (low + high + 1) // 2
        if cheap_passes(of, middle, first=first) <= passes:
            low = middle
        else:
            high = middle - 1
    return low


def dear_parts(
    of: Mapping[str, Work], wanted: Iterable[str], passes: float, available: int
) -> tuple[dict[str, int], float, tuple[str, ...]]:
    """Samples of each dear probe that can be afforded, the passes of all, and the names of those that cannot."""
    chosen: dict[str, int] = {}
    taken, waiting = 0.0, []
    for name in wanted:
        work = of[name]
        samples = work.affordable(passes - taken, available)
        if work.is_free or samples >= min(FEWEST, work.taken(available)):
            chosen[name] = available if work.is_free else samples
            taken += work.of(samples)
        else:
            waiting.append(name)
    return chosen, taken, tuple(waiting)
