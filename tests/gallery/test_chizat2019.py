"""Page on lazy training: its data, and that only small scales learn features."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.slow


def test_features_are_learned_at_small_scales(filled):
    """The kernel moves by more than its own size and helps; at large scales it stays."""
    page = filled("chizat2019_lazy")
    assert all(row.holds for row in page.rows)
    (table,) = page.tables
    shares = {name: mean for name, mean, _ in table.rows}
    network, *_ = shares.values()
    assert network > 0.85
    assert shares["kernel of the start, ridge by leave-one-out"] < network
    assert shares["kernel after training at α = 0.25, ridge by leave-one-out"] > network - 0.05


def test_pairs_are_of_their_images(load):
    """Shapes, mean squares, targets of both signs, drawn again alike, and other pairs with another seed."""
    task_of = load("chizat2019_lazy").Task.drawn
    task, again, other = task_of(0, 50, 7), task_of(0, 50, 7), task_of(1, 50, 7)
    assert task.x.shape == (50, 2 * 64 + 7)
    assert torch.allclose(task.x.square().mean(1), torch.ones(50, dtype=torch.float64))
    assert set(task.y.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(task.x, again.x)
    assert not torch.equal(task.x, other.x)
    assert task.share_right(task.y_test) == 1


def test_outputs_start_at_zero_and_scale(load):
    model = load("chizat2019_lazy").Scaled(5, 0, 3.0)
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(model(x), torch.zeros(4, 1, dtype=torch.float64))
    assert all(not p.requires_grad for p in model.start.parameters())
    with torch.no_grad():
        for p in model.network.parameters():
            p.mul_(2)
    assert torch.allclose(model(x), 3 * (model.network(x) - model.start(x)))
