"""Which pairs of samples a store is known by."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pullback.functional import ModelView
from pullback.functional.readout import loss_readout
from pullback.kernels.store.data_blocks import Blocks
from pullback.kernels.store.loss_sample import sample_of


@pytest.mark.parametrize(
    ("count", "starts"),
    [(1, [0]), (2, [0]), (3, [0, 1]), (5, [0, 1, 2, 3]), (11, [0, 3, 6, 9]), (101, [0, 33, 66, 99])],
)
def test_pairs_are_spread_over_all_samples(count: int, starts: list[int]) -> None:
    """The first and the last samples are among them; losses and the derivative's size are autograd's."""
    model, loss_fn = nn.Linear(3, 2).double(), nn.CrossEntropyLoss()
    x, y = torch.randn(count, 3, dtype=torch.float64), torch.arange(count) % 2
    view, readout = ModelView.of(model), loss_readout(loss_fn)
    found = sample_of(view, readout, Blocks((x, y), torch.device("cpu"), "test"), "test")
    assert [each["start"] for each in found] == starts
    for start, each in zip(starts, found, strict=True):
        stop = min(start + 2, count)
        z = model(x[start:stop]).detach().requires_grad_()
        losses = nn.functional.cross_entropy(z, y[start:stop], reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), z)
        assert each["losses"] == pytest.approx(losses.tolist(), rel=1e-12)
        assert each["slope"] == pytest.approx(float(slope.square().sum()), rel=1e-12)
    other = sample_of(view, readout, Blocks((x + 1, y), torch.device("cpu"), "test"), "test")
    assert all(a["data"] != b["data"] for a, b in zip(found, other, strict=True))
