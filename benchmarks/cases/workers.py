"""One store made by two processes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import targets as to_reach
from benchmarks.methods import store
from benchmarks.methods.problem import Call

TITLE = (
    "MLP 3072-128x5-10, ReLU, cross-entropy, N = 8,000, float32: backward kernel on disk, one thread in each process "
    "(torchrun, gloo); peak memory of all processes together, above their data"
)
ONE, TWO = "one process", "two processes"


def build(scale: float) -> int:
    return max(2, round(8_000 * scale))


METHODS: dict[str, Callable[[int], Call]] = {
    TWO: store.to_store(threads=1, workers=2),
    ONE: store.to_store(threads=1),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [to_reach.speed(rows, TWO, ONE, 1.8)]
