"""Attention of samples without heads, (N, T, d), which torch 2.15 and later make four axes of inside the call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pullback.measure import rank_collapse
from pullback.measure.rank_collapse import attention_reader
from tests.measure.tokens import PADDED, D, H, T

pytestmark = pytest.mark.usefixtures("seeded")
attend = F.scaled_dot_product_attention


def with_an_axis_in_front(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
    """As torch 2.15 attends."""
    mask = None if mask is None else mask.unsqueeze(0)
    return attend(Q.unsqueeze(0), K.unsqueeze(0), V.unsqueeze(0), mask).squeeze(0)


def with_one_head(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
    """What is meant, in four axes."""
    return attend(*(A.unsqueeze(1) for A in (Q, K, V)), None if mask is None else mask.unsqueeze(1)).squeeze(1)


class Attends(nn.Linear):
    """With padding hidden, or without; ``turned``: from memory that torch's fused kernels do not take."""

    def __init__(self, by: Callable[..., Tensor], masked: bool, turned: bool) -> None:
        super().__init__(D, 3 * D)
        self.by, self.masked, self.turned = by, masked, turned

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.zeros(len(x), T, T).masked_fill(PADDED.unsqueeze(1), -torch.inf) if self.masked else None
        parts = super().forward(x).chunk(3, -1)
        return x + self.by(*(A.mT.contiguous().mT if self.turned else A.contiguous() for A in parts), mask)


def outside() -> Any:
    """The place that ``attention_reader`` would see, were the function above torch's own."""
    frame = sys._getframe(2)
    while frame.f_code is with_an_axis_in_front.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return frame, frame.f_lasti


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("by", [attend, with_an_axis_in_front])
def test_samples_are_no_heads(
    x: Tensor, by: Callable[..., Tensor], masked: bool, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_reader, "_place", outside)
    model = Attends(by, masked, turned)
    found = rank_collapse(nn.Sequential(model), x)
    model.by = with_one_head
    meant = rank_collapse(nn.Sequential(model), x)
    assert found.num_inputs == meant.num_inputs == len(x)
    assert found.unread == meant.unread == {}
    for name in ("entropy", "first_token", "effective_rank"):
        one, other = (getattr(each.attention[0], name).value for each in (found, meant))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.residual.value, meant.residual.value, rtol=1e-4, atol=1e-6)


class OneSample(nn.Linear):
    """Heads of one sample, which the model itself puts an axis in front of."""

    def __init__(self) -> None:
        super().__init__(D, 3 * D)

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = super().forward(x).unflatten(-1, (3, H, -1)).permute(1, 2, 0, 3)
        return x + attend(Q.unsqueeze(0), K.unsqueeze(0), V.unsqueeze(0)).squeeze(0).transpose(0, 1).flatten(1)


def test_heads_that_a_model_puts_an_axis_in_front_of_are_heads(x: Tensor) -> None:
    found = rank_collapse(nn.Sequential(OneSample()), x[0])
    assert found.num_inputs == 1
    assert len(found.attention[0].heads) == H


class Passes(TorchFunctionMode):
    """Every call goes through the same line of the same function, as under a mode that a caller has on."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class Biased(nn.Linear):
    """Heads with a bias of their own, the same for every sample."""

    def __init__(self) -> None:
        super().__init__(D, 3 * D)
        self.register_buffer("bias_of_heads", torch.randn(H, T, T))  # of which torch's fused kernel takes no gradient

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = super().forward(x).unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4)
        return x + attend(Q, K, V, self.bias_of_heads.unsqueeze(0)).transpose(1, 2).flatten(2)


def test_two_calls_under_a_mode_of_functions_are_two(x: Tensor) -> None:
    """The bias, of three axes, has one put in front just before the attention."""
    model = nn.Sequential(Biased())
    with Passes():
        found = rank_collapse(model, x)
    assert found.num_inputs == len(x)
    assert len(found.attention[0].heads) == H
    torch.testing.assert_close(found.residual.value, rank_collapse(model, x).residual.value)
