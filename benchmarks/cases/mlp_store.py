"""A kernel larger than memory, tile by tile on disk, against the time of its matrix products alone."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import targets as to_reach
from benchmarks.methods import store
from benchmarks.methods.problem import Call

TITLE = (
    "MLP 3072-128x5-10, ReLU, cross-entropy, N = 50,000, float32: backward kernel on disk (10 GB, half of it stored), "
    "`memory_limit` 2 GB; peak memory above the level after imports, the data (0.6 GB) included"
)
OURS = "pullback.kernel_to_store"
ROUNDS = 1


def build(scale: float) -> int:
    return max(2, round(50_000 * scale))


METHODS: dict[str, Callable[[int], Call]] = {
    OURS: store.to_store(level="above_imports"),
    "gemm": store.product_floor,
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within(rows, OURS, "gemm", 1.5),
        to_reach.below(rows, OURS, 2e9),
    ]
