"""Batches too small to tell anything are measured together with those before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.modules import MLP
from pullback.monitor.probes import Observation
from pullback.monitor.recent import FEW, TOGETHER, Recent

CE = nn.CrossEntropyLoss()


def pairs(count: int, size: int, *shape: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def test_the_last_batches_are_measured_together(tmp_path: Path) -> None:
    model, batches = MLP([6, 8, 3]), pairs(20, 2, 6)
    buffers = torch.empty(2, 6), torch.empty(2, dtype=torch.long)
    with pb.Monitor(model, CE, tmp_path / "run", every=20, budget=None, probes=["noise", "gradients"]) as monitor:
        for x, y in batches:  # as loops do that fill the same tensors again and again
            buffers[0].copy_(x)
            buffers[1].copy_(y)
            monitor.step(*buffers)
    run = pb.load_run(tmp_path / "run")
    assert run.series("noise", "num_samples")[1] == [TOGETHER]
    assert run.series("noise", "batch_size")[1] == [2]
    x, y = (torch.cat(parts) for parts in zip(*batches[-TOGETHER // 2 :], strict=True))
    expected = float(pb.backward_kernel(model.eval(), CE, x, y).total.sum().sqrt()) / TOGETHER
    assert run.series("gradients", "mean_gradient_norm")[1] == [pytest.approx(expected, rel=1e-5)]


def keep(recent: Recent, x: Any, y: Any) -> None:
    recent.see(x)
    recent.add(x, y)


def test_only_what_is_shaped_alike_is_joined() -> None:
    recent = Recent()
    (x, y), (older, targets), (flagged, _) = pairs(3, 2, 6)
    keep(recent, {"a": older[:, :4]}, y)
    keep(recent, older, targets)
    keep(recent, older[:, :4], y)
    keep(recent, None, None)  # a trainer that shows its batches only now and then
    joined, labels = recent.together(x, y)
    assert torch.equal(joined, torch.cat([x, older]))
    assert torch.equal(labels, torch.cat([y, targets]))
    joined, _ = recent.together({"a": x[:, :4], "flag": True}, y)
    assert joined["a"].shape == (2, 4)
    keep(recent, {"a": flagged[:, :4], "flag": True}, y)
    joined, _ = recent.together({"a": x[:, :4], "flag": True}, y)
    assert joined["a"].shape == (4, 4)
    assert joined["flag"] is True


def test_a_sample_that_comes_again_is_no_second_sample() -> None:
    """Epochs over few samples, or one batch again and again: copies in the data would be found where there are none."""
    recent, batches = Recent(), pairs(3, 2, 6)
    for x, y in [*batches, *batches]:
        keep(recent, x, y)
    joined, _ = recent.together(*batches[0])
    assert joined.shape == (6, 6)
    tokens = torch.arange(6).view(2, 3)
    keep(recent, tokens, y)
    assert recent.together(tokens, y)[0] is tokens
    assert len(recent.together(tokens.flip(1), y)[0]) == 4  # the same tokens in another order


def test_a_sample_is_known_again_at_any_place_of_a_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 1000, generator=generator), torch.zeros(64, dtype=torch.long)
    for place in range(0, 62, 2):
        recent = Recent()
        keep(recent, x[place : place + 2], y[:2])
        turned = x[[place + 1, 63]]
        assert recent.together(turned, y[:2])[0] is turned


def test_a_copy_that_fails_does_not_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, ((x, y), *_) = Recent(), pairs(1, 2, 6)

    def full(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("pullback.monitor.recent._copied", full)
    keep(recent, x, y)
    assert recent.together(x, y)[0] is x
    recent.see(object())
    assert recent.batch_size is None


def test_large_batches_are_left_alone() -> None:
    recent, ((x, y), *_) = Recent(), pairs(1, FEW, 6)
    keep(recent, x[:2], y[:2])
    keep(recent, x, y)
    assert recent.together(x, y)[0] is x
    assert recent.together(x[1:], y[1:])[0].shape == (2, 6)  # what came before a large batch is long past


def test_where_memory_is_short_the_batch_alone_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.monitor.probes import PROBES, Probe
    from pullback.monitor.probes.kernel import measure

    def hungry(seen: Observation) -> Any:
        if len(seen.x) > 2:
            raise torch.OutOfMemoryError
        return measure(seen)

    monkeypatch.setitem(PROBES, "kernel", Probe("kernel", hungry))
    with pb.Monitor(MLP([6, 8, 3]), CE, tmp_path / "run", every=5, budget=None, probes=["kernel"]) as monitor:
        for x, y in pairs(15, 2, 6):
            monitor.step(x, y)
    run = pb.load_run(tmp_path / "run")
    assert [record.step for record in run.records if record.error] == [5]
    assert run.series("kernel", "num_samples") == ([10, 15], [2, 2])


def test_a_measurement_of_other_samples_keeps_the_batch_size_of_the_loop(tmp_path: Path) -> None:
    (x, y), *_ = pairs(1, 64, 6)
    with pb.Monitor(MLP([6, 8, 3]), CE, tmp_path / "run", every=50, budget=None, probes=["noise"]) as monitor:
        monitor.measure(x, y)  # before the loop
        for pair in pairs(3, 2, 6):
            monitor.step(*pair)
        monitor.measure(x, y)
    assert pb.load_run(tmp_path / "run").series("noise", "batch_size") == ([0, 3], [64, 2])


def test_what_is_kept_and_let_go() -> None:
    """At most 32 samples beside the batch at hand; none where memory is short, of large batches, or of no batch."""
    recent = Recent()
    for size in (1, 2):
        for _ in range(40):
            x = torch.randn(size, 3)
            recent.see(x)
            recent.add(x, x)
        assert recent.num_available == 32
        assert len(recent._kept) == 32 // size  # what a long run holds
        assert len(recent.together(torch.randn(size, 3), torch.randn(size, 3))[0]) == 32
    recent.stop()
    recent.see(x)
    assert recent.num_available == 2
    recent.add(x, x)
    assert recent.num_available == 2
    recent.see(torch.randn(3, 3))
    assert recent.num_available == 3
    recent.see(object())
    assert (recent.batch_size, recent.num_available) == (None, 1)
