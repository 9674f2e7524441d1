"""Which steps of simulated trainings are measured, and at what work: ``tests/data/turns.txt``, which reviews see.

``test_schedule`` holds the schedule to its promises; here is that no threshold moves by itself. Who changes one on
purpose writes the file anew: ``python -m tests.monitor.test_kept_turns``.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from pullback.monitor.plan import Allowed, cheap_part, dear_parts, is_dear
from pullback.monitor.probes.work import Work
from tests.monitor.test_schedule import watched

FILE = Path(__file__).parents[1] / "data" / "turns.txt"
WORKS = {
    "free": Work(),
    "of some": Work(2.0, most=16),
    "fixed": Work(fixed=30.0),
    "dear": Work(9.0),
    "both": Work(1, 5),
}


def simulated() -> list[str]:
    found = []
    for every, share, batch, each in product((1, 7, 50), (None, 0.01, 0.05, 0.4), (3, 40), (0.0, 1.5, 12.0)):
        made, turns = watched(every, share, 450, batch, each)
        shown = made if len(made) < 12 else [*made[:8], f"({len(made)})", *made[-3:]]
        work = " ".join(f"{value:.6g}" for value in (turns.budget.cheap, turns.budget.dear, turns.budget.training))
        left = f"{turns.left_out} {turns.fewer_samples} {sorted(turns.without.items())}"
        found.append(f"every {every}, {share}, batch {batch}, {each}: {shown} work {work} left out {left}")
    return found


def parts() -> list[str]:
    """Samples that probes share, and who is left out; samples of the dear ones, and who waits."""
    found = [f"dear: {[name for name, work in WORKS.items() if is_dear(work)]}"]
    for cheap, most, spent, available, first in product((5, 40, 400), (8, 60, 900), (0, 3), (2, 30), (True, False)):
        allowed = Allowed(cheap, 1e9, frozenset(), False, most)
        found.append(f"{cheap} {most} {spent} {available} {first}: "
                     f"{cheap_part(WORKS, allowed, spent, available, first=first)}")  # fmt: skip
    for passes, available in product((1, 7, 29, 31, 60, 500), (2, 30)):
        found.append(f"{passes} {available}: {dear_parts(WORKS, WORKS, passes, available)}")
    return found


def test_turns_are_those_that_are_kept() -> None:
    assert [*simulated(), *parts()] == FILE.read_text().splitlines()


if __name__ == "__main__":
    FILE.write_text("\n".join([*simulated(), *parts()]) + "\n")
