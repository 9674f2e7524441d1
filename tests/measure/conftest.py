"""What the tests of rank collapse share: tokens, and weights that are the same in every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.measure.tokens import D, N, T, drawn


@pytest.fixture
def x() -> Tensor:
    return drawn(N, T, D)


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)
