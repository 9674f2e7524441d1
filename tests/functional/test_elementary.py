"""Replaced operations against torch's own values, and against entries of determinants expanded by hand."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.functional.elementary import algebra, layers
from tests.compare import assert_same
from tests.thinned import thinned


def leibniz(A: Tensor) -> Tensor:
    """The determinant as a sum over permutations, a polynomial in the entries."""
    total = torch.zeros((), dtype=A.dtype)
    for places in permutations(range(len(A))):
        swaps = sum(a > b for i, a in enumerate(places) for b in places[i + 1 :])
        total = total + (-1) ** swaps * torch.stack([A[i, j] for i, j in enumerate(places)]).prod()
    return total


@pytest.mark.parametrize(("size", "lost"), thinned([1, 2, 3, 4, 5], [0, 1, 2]))
def test_determinants_of_any_rank(size: int, lost: int) -> None:
    """Value, gradient and Hessian, also of singular matrices, where torch's are nan."""
    make = torch.Generator().manual_seed(size)
    A = torch.randn(size, size, generator=make, dtype=torch.float64)
    A[:, : min(lost, size - 1)] = A[:, -1:]
    assert_same(algebra.det(A), leibniz(A), 1e-12, scale=1.0)
    for derivative in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian):
        assert_same(derivative(algebra.det, A), derivative(leibniz, A), 1e-11, scale=1.0)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_instance_norm_by_its_own_or_by_the_kept_statistics(affine: bool, own: bool) -> None:
    x = torch.randn(3, 2, 5, dtype=torch.float64)
    weight, bias = (torch.randn(2, dtype=torch.float64) for _ in range(2)) if affine else (None, None)
    kept = [torch.tensor([0.5, -0.5]).double(), torch.tensor([2.0, 0.3]).double()]
    torchs = [each.clone() for each in kept]
    found = layers.instance_norm(x, *kept, weight, bias, own, 0.3, 1e-5)
    assert_same(found, F.instance_norm(x, *torchs, weight, bias, own, 0.3, 1e-5), 1e-14)
    for ours, theirs in zip(kept, torchs, strict=True):  # kept only where they are not used
        assert_same(ours, theirs, 1e-15)
