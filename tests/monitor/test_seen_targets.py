"""The targets of every batch against loops over them, and what a run's record says of their order."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import fmean, pvariance

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.monitor.seen_targets import SeenTargets


def seen(*batches: Tensor) -> dict[str, object]:
    targets = SeenTargets()
    for batch in batches:
        targets.see(batch)
    return targets.take()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
@pytest.mark.parametrize("column", [False, True])
def test_classes_are_counted_batch_by_batch(dtype: torch.dtype, column: bool) -> None:
    torch.manual_seed(0)
    batches = [torch.randint(2 if dtype == torch.bool else 5, (size,)).to(dtype) for size in (8, 8, 3, 1)]
    found = seen(*(batch[:, None] if column else batch for batch in batches))
    whole = [batch.tolist().count(label) for label in range(5) for batch in batches]
    table = np.array(whole).reshape(5, 4)
    there = [label for label in range(5) if table[label].sum()]
    assert found["counts"] == {str(label): int(table[label].sum()) for label in there}
    squares = {str(label): sum(n * n / len(b) for n, b in zip(table[label], batches, strict=True)) for label in there}
    assert found["squares"] == pytest.approx(squares, rel=1e-12)
    assert (found["batches"], found["num_samples"]) == (4, 20)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (20,)])
def test_numbers_are_summed_batch_by_batch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    batches = [100 + 3 * torch.randn(size, *shape, dtype=torch.float64) for size in (8, 5, 1)]
    rows = [batch.reshape(len(batch), -1) for batch in batches]
    if rows[0].shape[1] > 16:
        rows = [row.mean(1, keepdim=True) for row in rows]
    found = seen(*batches)
    columns = [[each for row in rows for each in row[:, k].tolist()] for k in range(rows[0].shape[1])]
    assert found["sums"] == pytest.approx([sum(column) for column in columns], rel=1e-12)
    assert found["square_sums"] == pytest.approx([sum(v * v for v in column) for column in columns], rel=1e-12)
    by_batch = [[sum(row[:, k].tolist()) ** 2 / len(row) for row in rows] for k in range(len(columns))]
    assert found["squared_sums"] == pytest.approx([sum(each) for each in by_batch], rel=1e-12)


@pytest.mark.parametrize(
    "batch",
    [torch.tensor(1), torch.zeros(0), torch.zeros(3, dtype=torch.complex64), {},
     (torch.zeros(3), torch.zeros(3)), torch.tensor([1, -100]), torch.tensor([0, 256])],
)  # fmt: skip
def test_what_is_no_class_or_number_a_sample_is_passed_over(batch: object) -> None:
    assert seen(batch) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 6), (1, 6), (3, 2, 5)])
@pytest.mark.parametrize("most", [4, 50_000])
def test_tokens_are_counted_without_those_that_stand_for_none(shape: tuple[int, ...], most: int) -> None:
    torch.manual_seed(3)
    batches = [torch.randint(-1, most, shape) for _ in range(70)]
    every = Counter(token for batch in batches for token in batch.flatten().tolist() if token >= 0)
    whole = sum(every.values())
    entropy = -sum(n / whole * math.log(n / whole) for n in every.values()) + (len(every) - 1) / (2 * whole)
    targets = SeenTargets()
    for batch in batches[:30]:
        targets.see(batch)
    targets.take()
    for batch in batches[30:]:
        targets.see(batch)
    assert targets.take() == pytest.approx({"token_entropy": entropy, "num_tokens": whole}, rel=1e-12)


def test_of_very_many_labels_some_are_counted() -> None:
    found = seen(torch.arange(3 * 2**16).remainder(5).reshape(4, -1))
    assert found["num_tokens"] == 2**16
    assert found["token_entropy"] == pytest.approx(math.log(5), rel=1e-3)
    assert seen(torch.full((2, 3), -100)) == {}


def test_sums_start_anew_when_taken_and_when_targets_change() -> None:
    targets = SeenTargets()
    targets.see(torch.tensor([0, 1]))
    assert targets.take()["counts"] == {"0": 1, "1": 1}
    assert targets.take() == {}
    targets.see(torch.tensor([0, 1]))
    targets.see(torch.tensor([[0.5], [1.0]]))
    assert targets.take()["num_samples"] == 2


def trained(folder: Path, y: Tensor, size: int = 10, steps: int = 120) -> pb.Run:
    """Epochs over targets in their order, of a model that learns nothing of the inputs."""
    torch.manual_seed(2)
    classes = not y.is_floating_point()
    model = nn.Linear(3, int(y.max()) + 1 if classes else y.shape[1])
    loss_fn = nn.CrossEntropyLoss() if classes else nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(len(y), 3)
    with pb.Monitor(model, loss_fn, folder, optimizer=optimizer, probes="light") as monitor:
        for step in range(steps):
            part = torch.arange(step * size, (step + 1) * size) % len(y)
            optimizer.zero_grad()
            loss = loss_fn(model(x[part]), y[part])
            loss.backward()
            optimizer.step()
            monitor.step(x[part], y[part], loss=loss)
    return pb.load_run(folder)


def named(run: pb.Run) -> set[str]:
    return {finding.name for finding in pb.diagnose(run)}


@pytest.mark.parametrize("kind", ["classes", "numbers", "second output"])
def test_an_order_that_few_measurements_do_not_show(tmp_path: Path, kind: str) -> None:
    """An epoch of 40 batches, of which each measurement sees one: sorted is told, the same samples shuffled are not."""
    torch.manual_seed(3)
    y = torch.randint(4, (400,)) if kind == "classes" else torch.randn(400, 2)
    order = (y if kind == "classes" else y[:, 1 if kind == "second output" else 0]).argsort(stable=True)
    assert "data-not-shuffled" in named(trained(tmp_path / "sorted", y[order]))
    assert "data-not-shuffled" not in named(trained(tmp_path / "shuffled", y))


def test_the_share_between_batches_is_that_of_an_analysis_of_variance(tmp_path: Path) -> None:
    torch.manual_seed(4)
    y = torch.randn(60, 1).sort(0).values
    run = trained(tmp_path / "run", y, steps=12)
    (finding,) = (each for each in pb.diagnose(run) if each.name == "data-not-shuffled")
    batches = [y[k * 10 % 60 : k * 10 % 60 + 10, 0].tolist() for k in range(12)]
    whole = [v for batch in batches for v in batch]
    within = sum(10 * pvariance(batch) for batch in batches)
    between = sum(10 * (fmean(batch) - fmean(whole)) ** 2 for batch in batches)
    share = (between - 11 * within / (120 - 12)) / (between + within)
    assert finding.evidence["share of the spread that lies between batches"] == pytest.approx(share, rel=1e-5)


def test_a_rare_class_that_no_measured_batch_holds(tmp_path: Path) -> None:
    y = torch.zeros(400, dtype=torch.long)
    y[torch.tensor([37, 211, 305])] = 1  # in the 4th, 22nd and 31st of 40 batches
    y[torch.tensor([118, 252])] = 2
    run = trained(tmp_path / "run", y, steps=40)
    (finding,) = (each for each in pb.diagnose(run) if each.name == "class-imbalance")
    assert finding.evidence["share of the class"] == 395 / 400
    assert (finding.severity, finding.change) == ("warning", pb.Change("balance_classes"))


def test_a_run_that_is_read_up_to_a_step_or_resumed_counts_no_batch_twice(tmp_path: Path) -> None:
    y = torch.arange(400) % 4
    run = trained(tmp_path / "run", y, steps=50)

    def counted(of: pb.Run) -> int:
        return sum(record.values["num_samples"] for record in of.of("all_targets"))

    assert counted(run) == 500
    assert [counted(run.until(step)) for step in (1, 2, 4, 8)] == [10, 20, 40, 80]


def test_labels_among_the_inputs_are_counted_like_any_others(tmp_path: Path) -> None:
    """Of models that return their own loss, from the second batch on: before it is not known where they are."""

    class Own(nn.Linear):
        def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = super().forward(features)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    torch.manual_seed(0)
    model = Own(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [{"features": torch.randn(8, 3), "labels": torch.randint(4, (8,))} for _ in range(6)]
    with pb.Monitor(model, None, tmp_path / "run", optimizer=optimizer) as monitor:
        for batch in batches:
            loss = model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(batch, None, loss=loss)
    counts: Counter[str] = Counter()
    for record in pb.load_run(tmp_path / "run").of("all_targets"):
        counts.update(record.values["counts"])
    assert counts == Counter(str(label) for batch in batches[1:] for label in batch["labels"].tolist())


def test_labels_that_wait_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a large batch are counted at once, of small ones after some batches."""
    monkeypatch.setattr("pullback.monitor.seen_targets.MOST_WAITING", 8)
    seen = SeenTargets()
    seen.see(torch.arange(7))
    assert [len(each) for each in seen._labels] == [7]
    seen.see(torch.arange(1))
    assert seen._labels == []
    assert seen.take()["counts"] == {"0": 2} | {str(label): 1 for label in range(1, 7)}
