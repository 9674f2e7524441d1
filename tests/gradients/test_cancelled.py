"""A parameter asked for alone whose gradient is zero because its terms cancel: nothing beside it to measure by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.gradients.rules import RULES

CE = nn.CrossEntropyLoss()
KEYS = ["keys.bias"]


class Attention(nn.Module):
    """Softmax does not see what is added to all scores of a row, and so not the bias of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values, self.out = (
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.softmax(self.queries(x) @ self.keys(x).mT / 6**0.5, -1) @ self.values(x)
        return self.out(mixed.mean(1))  # type: ignore[no-any-return]


class Shift(nn.Module):
    """Layer norm does not see a number that is added to all of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.keys, self.out = nn.Linear(6, 6), nn.Module(), nn.Linear(6, 3)
        self.keys.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.layer_norm(self.inner(x) + self.keys.bias, (6,)).tanh().mean(1))  # type: ignore[no-any-return]


def made(kind: type[nn.Module], dtype: torch.dtype, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    return kind().to(dtype), torch.randn(9, 5, 6, dtype=dtype), torch.arange(9) % 3


CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "kernel": lambda m, x, y: pb.backward_kernel(m, CE, x, y, params=KEYS).total,
    "in batches": lambda m, x, y: pb.backward_kernel(m, CE, x, y, params=KEYS, memory_limit=2**19).total,
    "tangent": lambda m, x, y: pb.tangent_kernel(m, x, params=KEYS).total,
    "rows": lambda m, x, y: pb.GradientMatrix(m, CE, x, y, params=KEYS).to_dense(),
    "hessian": lambda m, x, y: pb.Hessian(m, CE, (x, y), params=KEYS).to_dense(),
    "gauss_newton": lambda m, x, y: pb.GaussNewton(m, CE, (x, y), params=KEYS).to_dense(),
    "influence": lambda m, x, y: pb.self_influence(m, CE, (x, y), damping=0.1, params=KEYS).values,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Attention, Shift])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_zero_but_for_rounding_is_answered(name: str, kind: type[nn.Module], dtype: torch.dtype) -> None:
    found = CALLS[name](*made(kind, dtype))
    assert float(found.abs().max()) < 1e3 * torch.finfo(dtype).eps


def test_the_report_says_so_too() -> None:
    model, x, y = made(Attention, torch.float32)
    assert pb.check_gradients(model, CE, x, y, params=KEYS).ok


@pytest.mark.parametrize("sample", [0, 4])
def test_rows_that_are_wrong_by_more_than_rounding_are_found(sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 1e-9 in float64, where the whole gradient is near 1 and a true one of the bias near 1e-17."""
    rule = RULES[F.linear]

    def spoiled(factor: Any) -> Any:
        if not isinstance(factor.gradients, dict):  # of the weight
            return factor
        wrong = {name: 1e-9 * (torch.arange(len(g)) == sample).view(-1, 1, 1) for name, g in factor.gradients.items()}
        return replace(factor, gradients={name: g + wrong[name] for name, g in factor.gradients.items()})

    def broken(call: Any) -> list[Any]:
        factors = rule.build(call)
        return [spoiled(factor) for factor in (factors if isinstance(factors, list) else [factors])]

    monkeypatch.setitem(RULES, F.linear, replace(rule, build=broken))
    model, x, y = made(Attention, torch.float64)
    with pytest.raises((pb.SelfCheckError, pb.UnsupportedError), match=r"`keys.bias`.* a difference of"):
        pb.backward_kernel(model, CE, x, y, params=KEYS)


class Lopsided(torch.autograd.Function):
    """Zero, with a gradient whose own derivative is not symmetric, of the size of 1e-9."""

    @staticmethod
    def forward(ctx: Any, b: Tensor) -> Tensor:
        ctx.save_for_backward(b)
        return b.new_zeros(())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (b,) = ctx.saved_tensors
        return slope * 1e-9 * (torch.triu(torch.ones(len(b), len(b), dtype=b.dtype), 1) @ b)


def test_second_derivatives_that_are_wrong_by_more_than_rounding_are_found() -> None:
    class Wrong(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + Lopsided.apply(self.keys.bias)

    model, x, y = made(Wrong, torch.float64)
    with pytest.raises(pb.SelfCheckError, match="expected a symmetric matrix"):
        pb.Hessian(
            model, lambda z, t: z.sum(1) + F.cross_entropy(z, t, reduction="none"), (x, y), params=KEYS
        ).to_dense()
