"""Time and memory of a store against the number of samples."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import targets as to_reach
from benchmarks.methods import store
from benchmarks.methods.problem import Call

TITLE = (
    "MLP 3072-128x5-10, ReLU, cross-entropy, float32: backward kernel on disk, `memory_limit` 2 GB; peak memory "
    "above the data"
)
LARGEST = 32_000
SIZES = {f"N = {LARGEST // k:,}": LARGEST // k for k in (8, 4, 2, 1)}


def build(scale: float) -> int:
    return max(2, round(LARGEST * scale))


METHODS: dict[str, Callable[[int], Call]] = {name: store.to_store(factor=n / LARGEST) for name, n in SIZES.items()}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.exponent(rows, SIZES, 2.05),
        to_reach.flat(rows, SIZES, 1.25),
    ]
