"""``KernelSeries``: kernels of one model again and again, while its weights move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pullback import reference
from pullback.kernels import KernelSeries
from tests.compare import assert_different, assert_same

CE = nn.CrossEntropyLoss()


def weight_normed() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(4, 3))


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LeakyReLU(0.2, inplace=True), nn.Linear(4, 3))


@pytest.mark.parametrize("size", [0.3, 3e-9])
@pytest.mark.parametrize("make", [weight_normed, in_place])
def test_the_weights_of_now_count(make: Callable[[], nn.Module], size: float) -> None:
    """A normalised weight is computed anew after a step, also after a very small one."""
    model, y = make().double(), torch.arange(4) % 3
    series = KernelSeries(model, CE)
    for _ in range(3):
        x = torch.randn(4, 3, dtype=torch.float64)
        expected = reference.total_kernel(model, CE, x, y)
        assert_same(series(x, y).total, expected)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1 + size * torch.randn_like(p))
        assert_different(reference.total_kernel(model, CE, x, y), expected, size / 10)
    assert_same(series(x, y, anew=True).total, reference.total_kernel(model, CE, x, y))


def test_single_blocks_are_products_in_full_precision() -> None:
    """Also where they are asked for under autocast, as those of ``backward_kernel`` are."""
    model, x, y = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 3)), torch.randn(4, 30), torch.arange(4) % 3
    first, second = (KernelSeries(model, CE)(x, y) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = first.parameters["0.weight"]
    assert torch.equal(found, second.parameters["0.weight"])
