"""Samples that depend on each other are refused by every kernel call, wherever in the batch they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import pullback as pb
from pullback import reference
from pullback.gradients.capture import captured_rows
from tests.cases import CASES, build
from tests.compare import assert_same
from tests.coupled import COUPLED, COUPLED_BY_LOSS, build_coupled
from tests.thinned import thinned

REFUSED = "depend on the rest of the batch|over samples alone to agree with the gradient of their batch"


@pytest.mark.parametrize("name", thinned(list(COUPLED)))
def test_coupled_samples_are_refused(name: str, tmp_path: Path) -> None:
    model, loss_fn, x, y = build_coupled(name)
    for call in (pb.backward_kernel, pb.GradientMatrix, pb.sketch_kernel):
        with pytest.raises(pb.UnsupportedError, match=REFUSED):
            call(model, loss_fn, x, y)
    with pytest.raises(pb.UnsupportedError, match=REFUSED):
        pb.kernel_to_store(model, loss_fn, TensorDataset(x, y), tmp_path / "store", tile=6, progress=False)
    if name not in (*COUPLED_BY_LOSS, "mean_gradients"):
        for contract in ("trace", "full"):
            with pytest.raises(pb.UnsupportedError, match=REFUSED):
                pb.tangent_kernel(model, x, contract=contract)


def test_a_coupling_that_makes_no_difference() -> None:
    """Gradients through the mean of all samples cancel for a linear head: the kernel is that of single samples."""
    model, _, x, _ = build_coupled("mean_gradients")
    found = pb.tangent_kernel(model, x, contract="full").total
    assert_same(found, reference.tangent_kernel(model, x))


@pytest.mark.parametrize("n", [4, 5, 9])
def test_any_two_samples(n: int) -> None:
    """Whichever two change places: sums over the samples stay as they are."""

    class Swapped(nn.Module):
        def __init__(self, place: Tensor) -> None:
            super().__init__()
            self.linear, self.place = nn.Linear(2, 2), place

        def forward(self, x: Tensor) -> Tensor:
            h = self.linear(x)
            return h[self.place] if len(h) == len(self.place) else h

    x, y = torch.randn(n, 2), torch.randn(n, 2)
    for i in range(n):
        for j in range(i):
            place = torch.arange(n)
            place[[i, j]] = place[[j, i]]
            with pytest.raises(pb.UnsupportedError, match=f"for sample ({i}|{j}) and parameter"):
                pb.backward_kernel(Swapped(place), nn.MSELoss(), x, y)


def test_no_case_is_pointed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where samples are on their own the weighted pass finds nothing, in any layer, dtype or number of outputs."""
    found: list[int] = []
    right = captured_rows.most_dependent

    def seen(*args: Any) -> int:
        found.append(right(*args))
        return found[-1]

    monkeypatch.setattr(captured_rows, "most_dependent", seen)
    for case in CASES:
        for dtype in (torch.float64, torch.float32):
            model, loss_fn, x, y = build(case, 8, dtype)
            pb.backward_kernel(model, loss_fn, x, y)
            if case.name in ("mlp", "conv2d", "recurrent"):
                pb.tangent_kernel(model, x)
    assert len(found) >= 2 * len(CASES)
    assert set(found) == {4}, found  # the middle one


def test_the_first_calls_are_enough() -> None:
    """Two inputs, a table and a detached feature each have a first call of their own."""

    class Three(nn.Module):
        def __init__(self, place: int | None) -> None:
            super().__init__()
            self.left, self.right, self.table = nn.Linear(2, 3), nn.Linear(2, 3), nn.Embedding(5, 3)
            self.head, self.place = nn.Linear(3, 2), place

        def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
            parts = [self.left(a), self.right(b).detach(), self.table(c)]
            if self.place == 3:
                return self.head(sum(parts)).flip(0)
            if self.place is not None:
                h = parts[self.place]
                parts[self.place] = torch.cat([h[:1], h[1:-1].flip(0), h[-1:]]) if len(h) > 2 else h
            return self.head(torch.tanh(sum(parts)))

    x = {"a": torch.randn(6, 2), "b": torch.randn(6, 2), "c": torch.arange(6) % 5}
    y = torch.randn(6, 2)
    pb.backward_kernel(Three(None), nn.MSELoss(), x, y)
    for place in range(4):
        with pytest.raises(pb.UnsupportedError, match=REFUSED):
            pb.backward_kernel(Three(place), nn.MSELoss(), x, y)
