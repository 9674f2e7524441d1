"""Norms that neither underflow nor copy, and what they say of numbers that are none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.functional import agreement


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), piece=st.sampled_from([1, 3, 7, 1000]))
def test_norms_in_pieces_are_those_of_the_whole(shape: list[int], piece: int) -> None:
    values = 1e-30 * torch.randn(shape)  # squares underflow in float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "PIECE", piece)
        rows, whole = agreement.row_norms(values), agreement.norms([values, values.new_zeros(0)])
    torch.testing.assert_close(
        rows, values.double().flatten(1).norm(dim=1) if len(shape) > 1 else values.double().abs()
    )
    assert float(whole[0]) == pytest.approx(float(values.double().norm()), rel=1e-12)
    assert float(whole[1]) == 0


def test_nan_agrees_with_nothing() -> None:
    some = torch.tensor([1.0, float("nan")])
    assert not agreement.agree(some, some)
    assert agreement.first_above(agreement.norms([some]), torch.tensor([torch.inf], dtype=torch.float64)) == 0
