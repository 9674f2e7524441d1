"""The (2,2,1) norm against closed forms, a brute search and the inequality it is made for."""

from __future__ import annotations

import math

import pytest
import torch

import pullback as pb
from pullback.measure import NormBounds, norm_221


def test_diagonal():
    """S4-13: T_ijk = sigma''(w_k x) x^2 on i = j = k has the norm x^2 max |sigma''|, from both sides."""
    w, x = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1.3
    t = torch.tanh(w * x)
    bend = -2 * t * (1 - t * t) * x * x
    T = torch.zeros(40, 40, 40, dtype=torch.float64)
    T[range(40), range(40), range(40)] = bend
    found = norm_221(T)
    assert found.lower == pytest.approx(float(bend.abs().max()), rel=1e-12)
    assert found.upper == pytest.approx(float(bend.abs().max()), rel=1e-12)
    assert found.exact
    assert found.label == "exact"


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 4, 5), (5, 2, 1), (1, 1, 6)])
def test_between_the_bounds(shape):
    """Random unit vectors never exceed the upper bound and, where few angles decide, come near the lower one."""
    make = torch.Generator().manual_seed(sum(shape))
    T = torch.randn(shape, generator=make, dtype=torch.float64)
    found = norm_221(T)
    a, b = (torch.randn(20000, n, generator=make, dtype=torch.float64) for n in shape[:2])
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    sums = torch.einsum("ijk,si,sj->sk", T, a, b).abs().sum(1)
    assert float(sums.max()) <= found.lower * (1 + 1e-9)
    assert float(sums.max()) > 0.8 * found.lower
    assert found.lower <= found.upper <= 3 * found.lower


def test_one_slice_is_a_spectral_norm():
    T = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = float(torch.linalg.matrix_norm(T[:, :, 0], 2))
    found = norm_221(T)
    assert found.lower == pytest.approx(expected, rel=1e-12)
    assert found.exact


def test_the_inequality_it_is_made_for():
    """S4-14: |sum_k v_k T_k| <= |T|_{2,2,1} max |v|, with the lower bound already, for 1000 tensors and vectors."""
    make = torch.Generator().manual_seed(2)
    for _ in range(1000 // 25):
        T = torch.randn(3, 3, 4, generator=make, dtype=torch.float64)
        found = norm_221(T)
        for v in torch.randn(25, 4, generator=make, dtype=torch.float64):
            assert float(torch.linalg.matrix_norm(T @ v, 2)) <= found.upper * float(v.abs().max()) * (1 + 1e-12)
        vertex = torch.sign(v)
        assert float(torch.linalg.matrix_norm(T @ vertex, 2)) <= found.lower * (1 + 1e-9)


def test_labels():
    assert NormBounds(1.0, 1.5).label == "between both bounds"
    assert NormBounds(1.0, math.inf).label == "lower bound, no upper one"
    assert NormBounds(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])).exact
    assert not NormBounds(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.1])).exact


@pytest.mark.parametrize("bad", [torch.ones(2, 2), torch.ones(2, 2, 2, dtype=torch.long), torch.ones(2, 0, 2)])
def test_what_is_no_tensor_is_refused(bad):
    with pytest.raises(pb.InputError, match=r"norm_221: expected a floating tensor \(I, J, K\), got"):
        norm_221(bad)


def test_nan_is_refused():
    with pytest.raises(pb.InputError, match="norm_221: expected finite entries, got nan or infinity"):
        norm_221(torch.full((2, 2, 2), torch.nan))
