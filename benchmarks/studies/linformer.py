"""Attention against sequence length: torch's, fused and with its matrix, beside Linformer's (S1-73).

    .venv/bin/python -m benchmarks.studies.linformer      # results/linformer.json and its table; five minutes

The same inputs and weights, forward and backward, by turns in one process on one thread. Times are processor time,
which other work on the machine does not change much; memory is what tensors take up at most during a call, by torch's
own count of what it allocates, inputs and weights left out.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import environment, render
from pullback.modules import LinformerAttention

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
WIDTH, HEADS, K = 64, 4, 128
WITH_MATRIX = 4096  # beyond, its matrices alone are gigabytes
ROUNDS = 3


def methods(length: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """The three kinds of attention, with the same weights for queries, keys, values and outputs."""
    torch.manual_seed(0)
    full = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    cut = LinformerAttention.from_attention(full, length, K)
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "SDPA": lambda x: full(x, x, x, need_weights=False)[0],
        f"Linformer, k = {K}": lambda x: cut(x, x, x, need_weights=False)[0],
    }
    if length <= WITH_MATRIX:
        found["attention with its matrix"] = lambda x: full(x, x, x, need_weights=True)[0]
    return found


def seconds_of(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Processor seconds of a forward and a backward pass."""
    began = time.process_time()
    call(x).square().sum().backward()
    return time.process_time() - began


def peak_of(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of all tensors that live at once, at most, in such a pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call(x).square().sum().backward()
    changes = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    level = peak = 0
    for each in sorted(changes, key=lambda each: each.start_ns()):
        level += each.nbytes()
        peak = max(peak, level)
    return peak


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed: else calls with arrays above 32 MiB pay for their pages every time."""
    trim_threshold, mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)


def measured() -> dict[str, dict[str, Any]]:
    """Method and length -> its rounds; the first call of each is a warm-up."""
    found: dict[str, dict[str, Any]] = {}
    for length in LENGTHS:
        x = torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(length), requires_grad=True)
        calls = methods(length)
        for name, call in calls.items():
            found[f"{name}, n = {length:,}"] = {"seconds": [], "peak_bytes": peak_of(call, x)}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                found[f"{name}, n = {length:,}"]["seconds"].append(seconds_of(call, x))
    for row in found.values():
        row |= {"median_seconds": statistics.median(row["seconds"]), "min_seconds": min(row["seconds"])}
    return dict(sorted(found.items(), key=lambda item: item[0].partition(", n")[0]))


def targets(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """How times grow with twice the length, at the longest."""
    last, before = LENGTHS[-1], LENGTHS[-2]
    found = []
    for name, text, low, high in (
        (f"Linformer, k = {K}", "in proportion to n: a factor of 2", 1.6, 2.5),
        ("SDPA", "as n^2: a factor of 4", 3.2, 4.8),
    ):
        ratio = rows[f"{name}, n = {last:,}"]["min_seconds"] / rows[f"{name}, n = {before:,}"]["min_seconds"]
        words = f"{name}, n = {last:,} over {before:,}: {text}"
        found.append({"text": words, "reached": f"{ratio:.2f}", "met": low <= ratio <= high})
    cut, full = (rows[f"{name}, n = {last:,}"]["min_seconds"] for name in (f"Linformer, k = {K}", "SDPA"))
    words = f"Linformer, k = {K}, at n = {last:,}: time over that of SDPA"
    return [*found, {"text": f"{words}, below 1", "reached": f"{cut / full:.3f}", "met": cut < full}]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    facts = environment.describe(1)
    rows = measured()
    title = f"Attention against sequence length n (one sequence, width {WIDTH}, {HEADS} heads, forward and backward)"
    result = {
        "title": f"{title}; processor time", "methods": rows, "reported": list(rows), "scale": 1,
        "targets": targets(rows), "environment": facts,
    }  # fmt: skip
    path = environment.RESULTS / "linformer.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    render.write_readme(environment.RESULTS, environment.README)
    print(render.table(result))


if __name__ == "__main__":
    main()
