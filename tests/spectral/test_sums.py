"""Sums over long vectors in float32: as exact as the dtype, whatever their length and the number of threads."""

from __future__ import annotations

import pytest
import torch

from pullback.operators.operator import Operator
from pullback.spectral import eigenvalues
from pullback.spectral.sums import PART, inner_products, lengths


@pytest.mark.parametrize("n", [1, PART, PART + 1, 2**21])
def test_long_vectors_are_added_up_in_float64(n):
    """Against float64 throughout: a vector of one sign, whose running sum swallows what comes in, and a mixed one."""
    make = torch.Generator().manual_seed(0)
    rows = torch.stack([torch.randn(n, generator=make), torch.rand(n, generator=make)])
    block = torch.rand(n, 2, generator=make)
    within = PART**0.5 * torch.finfo(torch.float32).eps  # of a running sum over a part
    exact, size = rows.double() @ block.double(), rows.double().norm(dim=1)[:, None] * block.double().norm(dim=0)
    assert float(((inner_products(rows, block) - exact).abs() / size).max()) < within
    assert float(((inner_products(rows, block[:, 0]) - exact[:, 0]).abs() / size[:, 0]).max()) < within
    assert torch.allclose(lengths(block), block.double().norm(dim=0), rtol=within, atol=0)
    assert torch.allclose(lengths(rows[1]), rows[1].double().norm(), rtol=within, atol=0)


def test_products_of_a_long_float32_operator_are_seen_as_symmetric():
    """1 + v v^T: eigenvalue 2 along a v of positive entries, found to what float32 allows."""
    n = 2**22
    v = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    v = (v / v.norm()).float()

    class Raised(Operator):
        symmetric = True

        def _matmat(self, matrix):
            return matrix + v[:, None] * (v.double() @ matrix.double()).to(matrix)

    found = eigenvalues(Raised((n, n), torch.float32, torch.device("cpu")), 1, tol=1e-4, max_matvecs=6)
    assert float(found.values[0]) == pytest.approx(2, abs=2e-4)
    assert float(found.residuals[0]) < 2e-4
