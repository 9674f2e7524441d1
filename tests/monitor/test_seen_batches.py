"""The last batches are held as references, and only what the loop has left as it was is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pullback as pb
from pullback.kernels import KernelSeries
from pullback.monitor.probes import PROBES, Observation
from pullback.monitor.seen_batches import MOST, MOST_BYTES, SeenBatches


def seen(*batches: tuple[Any, Any]) -> SeenBatches:
    kept = SeenBatches()
    for x, y in batches:
        kept.see(x, y)
    return kept


def a_batch(samples: int, width: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(samples, width), torch.arange(samples) % 4


def test_the_newest_come_first_and_no_more_than_are_needed() -> None:
    torch.manual_seed(0)
    batches = [a_batch(50) for _ in range(6)]
    found = seen(*batches).samples()
    assert [x is kept for (x, _), (kept, _) in zip(reversed(batches), found, strict=False)] == [True] * 4
    assert 150 < MOST <= sum(len(y) for _, y in found) == 200


def test_a_sample_counts_once() -> None:
    torch.manual_seed(0)
    x, y = a_batch(8)
    found = seen((x, y), (x[[1, 2]].clone(), y[[1, 2]])).samples()
    assert [len(labels) for _, labels in found] == [2, 6]
    assert torch.equal(found[1][1], y[[0, 3, 4, 5, 6, 7]])


def test_what_was_written_over_is_passed_over() -> None:
    """By torch, which counts writes, and by NumPy, which does not: there two batches lie in one place."""
    torch.manual_seed(0)
    first, second = a_batch(5), a_batch(5)
    kept = seen(first, second)
    first[1].fill_(0)
    assert [len(y) for _, y in kept.samples()] == [5]
    buffer = np.zeros((5, 3), np.float32)
    kept = SeenBatches()
    for step in range(3):
        buffer[:] = np.random.default_rng(step).normal(size=(5, 3))
        kept.see(torch.from_numpy(buffer), torch.arange(5))
    assert len(kept.samples()) == 1


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (torch.randn(4, 3), torch.randn(4)),
        (torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.long)),
        (torch.randn(4, 3), torch.zeros(5, dtype=torch.long)),
        ([torch.randn(4, 3)], torch.zeros(4, dtype=torch.long)),
        (torch.randn(4), torch.zeros(4, dtype=torch.long)),
        (torch.eye(4).to_sparse(), torch.zeros(4, dtype=torch.long)),
        (torch.randn(4, 3), None),
    ],
)
def test_what_has_no_classes_is_not_held(x: Any, y: Any) -> None:
    assert seen(a_batch(4), (x, y)).samples() == []


def test_tensors_of_inference_mode_are_not_held() -> None:
    with torch.inference_mode():
        x = torch.randn(4, 3)
    assert seen((x, torch.arange(4))).samples() == []


@pytest.mark.parametrize("y", [torch.tensor([0, -100, 1, 1]), torch.tensor([0, 3, 1, 1]), torch.zeros(4, 2).long()])
def test_labels_that_are_no_classes_of_the_model_are_left_out(y: torch.Tensor) -> None:
    x, model = torch.randn(4, 3), nn.Linear(3, 3)
    rows = KernelSeries(model, nn.CrossEntropyLoss()).rows
    observed = Observation(
        model, nn.CrossEntropyLoss(), x, y, None, None, rows, step=2, earlier=lambda: [(x, y)]
    )  # fmt: skip
    assert PROBES["labels"](observed, dear=True).values == {}
    observed.y, observed.earlier = torch.tensor([0, 2, 1, 1]), lambda: [(x, torch.tensor([0, 2, 1, 1]))]
    assert PROBES["labels"](observed, dear=True).values["num_samples"] == 4


def test_large_samples_are_few() -> None:
    width = MOST_BYTES // 4 // 10
    batches = [(torch.zeros(1, 1).expand(4, width), torch.arange(4)) for _ in range(5)]
    kept = seen(*batches)
    assert len(kept._kept) == 2
    kept.clear()
    assert kept.samples() == []


def test_the_end_looks_at_more_samples_than_the_last_batch_has(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(400, 5), torch.randint(3, (400,))
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = nn.CrossEntropyLoss()
    with pb.Monitor(model, loss_fn, tmp_path / "run", optimizer=optimizer) as monitor:
        for step in range(50):
            batch = slice(8 * step, 8 * step + 8)
            optimizer.zero_grad()
            loss = loss_fn(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            monitor.step(x[batch], y[batch], loss=loss)
    last = list(pb.load_run(tmp_path / "run").of("labels"))[-1]
    outputs = model(x[-last.values["num_samples"] :]).tolist()
    places = [
        1 + sum(s > row[label] for s in row) for row, label in zip(outputs, y[-len(outputs) :].tolist(), strict=True)
    ]
    assert last.step == 50
    assert len(outputs) > 60
    assert last.values["label_ranks"] == {str(p): places.count(p) for p in sorted(set(places))}
