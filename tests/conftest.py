"""Settings all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

settings.register_profile("pullback", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("pullback")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same random state and leaves the default dtype alone."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
