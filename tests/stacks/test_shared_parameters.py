"""Parameters all samples share in calls that mix them with samples: trained masks, sides of a ``where``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.compare import assert_same

Call = Callable[[Tensor, Tensor], Tensor]  # samples (N, 3, 4) and a parameter (3, 1) to (N, 3, 4)

CALLS: dict[str, Call] = {
    "where": lambda h, p: torch.where(h > 0, h, p),
    "where, method": lambda h, p: p.where(h > 0, h),
    "masked_fill": lambda h, p: torch.masked_fill(p, h > 0, 2.0) * h,
    "masked_fill, method": lambda h, p: p.masked_fill(h > 0, 2.0) * h,
    "lerp": lambda h, p: torch.lerp(h, p, 0.3 * h.sigmoid()),
    "lerp, weight": lambda h, p: h.lerp(2 * h, p),
    "addcmul": lambda h, p: torch.addcmul(p, h, h, value=0.5),
    "addcmul, factor": lambda h, p: h.addcmul(h, p),
    "addcdiv": lambda h, p: torch.addcdiv(p, h, h.exp()),
    "logaddexp": lambda h, p: torch.logaddexp(h, p),
    "hypot": lambda h, p: torch.hypot(p, h),
    "atan2": lambda h, p: torch.atan2(h, p),
}


class Mixing(nn.Module):
    """A linear layer, the call, another linear layer."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 2)
        self.shared, self.call = nn.Parameter(torch.rand(3, 1) + 0.5), call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.first(x), self.shared))


def assert_ruled(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Exact, for one sample too, and nothing in the fallback."""
    model, loss_fn = model.double().eval(), nn.MSELoss(reduction="sum")
    for n in (1, len(x)):
        kernel = pb.backward_kernel(model, loss_fn, x[:n], y[:n])
        total = reference.total_kernel(model, loss_fn, x[:n], y[:n])
        assert_same(kernel.total, total)
        rows = reference.per_sample_gradients(model, loss_fn, x[:n], y[:n])["shared"].flatten(1)
        assert rows.any()
        assert_same(kernel.parameters["shared"], rows @ rows.T)
    assert not [a.parameters for a in kernel.plan.layers if "fallback" in a.rule or a.rule == "unused"]


@pytest.mark.parametrize("name", CALLS)
def test_broadcast_calls(name: str) -> None:
    x, y = torch.randn(5, 3, 5, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    assert_ruled(Mixing(CALLS[name]), x, y)


class Relative(nn.Module):
    """Attention with a trained bias per head and pair of positions."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, 12), nn.Parameter(torch.randn(shape)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.first(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)  # (N, heads, T, .) each
        return self.last(F.scaled_dot_product_attention(q, k, v, attn_mask=self.shared).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 3), (1, 2, 3, 3), (2, 1, 3)])
def test_trained_attention_masks(shape: tuple[int, ...]) -> None:
    x, y = torch.randn(5, 3, 5, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    assert_ruled(Relative(shape), x, y)


class Sparing(nn.Module):
    """Uses a parameter only where a batch has anything padded, as models do that leave out masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(5, 2), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        h, padded = self.first(x), (x == 0).all(-1, keepdim=True)
        return h * (1 + padded * self.shared) if padded.any() else h


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_sample_that_takes_another_path_than_its_batch(place: int) -> None:
    """The layers' structure is read off a sample that takes the batch's path."""
    x, y = torch.randn(5, 3, 5, dtype=torch.float64), torch.randn(5, 3, 2, dtype=torch.float64)
    x[place, 1] = 0
    model, loss_fn = Sparing().double(), nn.MSELoss()
    kernel = pb.backward_kernel(model, loss_fn, x, y)
    assert_same(kernel.total, reference.total_kernel(model, loss_fn, x, y))
    assert not [a.parameters for a in kernel.plan.layers if "fallback" in a.rule]
