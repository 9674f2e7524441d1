"""What one measurement takes on: how many samples, which dear probes, and how many passes that makes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pullback.monitor.probes import Observation, Probe
from pullback.monitor.probes.work import FORWARD, KERNEL_FIRST, Work

LEAST, FEWEST = 3, 4  # samples of a measurement that must not be left out: at least, and if it can be; of a dear probe
ENOUGH = 16  # of one that may be


@dataclass(frozen=True)
class Allowed:
    """What a measurement may take.

    Args:
        cheap: passes of the probes that always run.
        dear: passes of those that do not.
        wanted: names of dear probes whose turn it is.
        extras: whether it is the turn of what makes no passes and is dear in other ways.
        most: passes of all together.
    """

    cheap: float = math.inf
    dear: float = math.inf
    wanted: frozenset[str] = frozenset()
    extras: bool = False
    most: float = math.inf


@dataclass(frozen=True)
class Plan:
    """A measurement before it is made.

    Args:
        num_samples: N, that all probes share; 0 where none can be afforded.
        available: samples there are, up to what a measurement looks at.
        dear: samples of each dear probe that joins, by name.
        extras: whether probes add their dearer parts, which make no passes of the model.
        cheap: passes of the probes that always run, and of what was looked at to plan them.
        dearer: passes of the others.
        waiting: dear probes whose turn it was and that are put off.
        without: probes of every measurement that cannot be afforded in this one.
    """

    num_samples: int
    available: int = 0
    dear: Mapping[str, int] = field(default_factory=dict)
    extras: bool = False
    cheap: float = 0.0
    dearer: float = 0.0
    waiting: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def is_left_out(self) -> bool:
        """Whether there are samples, and too little to spend on any."""
        return self.available > 0 and not self.num_samples

    def has(self, probe: Probe) -> bool:
        """Whether a probe takes part."""
        return not probe.at_start and (probe.name in self.dear if probe.sparse else probe.name not in self.without)


def works(probes: Iterable[Probe], observed: Observation) -> dict[str, Work]:
    """What each probe costs, by name; one that cannot tell will hardly run, and counts as free."""
    works_of = {}
    for probe in probes:
        if not probe.at_start:
            try:
                works_of[probe.name] = probe.work if isinstance(probe.work, Work) else probe.work(observed)
            except Exception:
                works_of[probe.name] = Work()
    return works_of


def asking(probes: Iterable[Probe]) -> float:
    """Passes to tell what they cost: some look at one sample."""
    return FORWARD * sum(probe.looks and not isinstance(probe.work, Work) for probe in probes if not probe.at_start)


def is_dear(work: Work) -> bool:
    """Whether a probe of every measurement makes more passes of few samples than the kernel that all share."""
    return work.of(FEWEST) > FEWEST


def cheap_part(
    of: Mapping[str, Work], allowed: Allowed, spent: float, available: int, *, first: bool
) -> tuple[int, tuple[str, ...]]:
    """Samples that the probes of every measurement share, 0 if there can be none, and the names of those left out.

    Where it is more than may be spent there are fewer samples first, then go the dear ones, and at last all that make
    passes of their own, dearest first.
    """
    kept, least, fewest = dict(of), min(LEAST, available), min(FEWEST, available)
    share, most = allowed.cheap - spent, allowed.most - spent
    while True:
        of_kept = list(kept.values())
        count = most_samples(of_kept, min(share, most), available, first=first)
        count = max(count, most_samples(of_kept, most, fewest, first=first))
        dearest = max(kept, key=lambda name: kept[name].of(fewest), default=None)
        if dearest is None or kept[dearest].is_free:
            return (count if count >= least else 0), tuple(name for name in of if name not in kept)
        beyond = is_dear(kept[dearest]) and cheap_passes(of_kept, fewest, first=first) > share
        if count >= least and not beyond:
            return count, tuple(name for name in of if name not in kept)
        del kept[dearest]


def cheap_passes(of: Sequence[Work], samples: int, *, first: bool) -> float:
    """Passes of the probes that always run, with the kernel that they share."""
    return samples + KERNEL_FIRST * first + sum(work.of(samples) for work in of)


def most_samples(of: Sequence[Work], passes: float, available: int, *, first: bool) -> int:
    """The most samples, up to those there are, that cost no more than so many passes; 0 if none do."""
    if cheap_passes(of, available, first=first) <= passes:  # as most often
        return available
    low, high = 0, max(0, available - 1)
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
