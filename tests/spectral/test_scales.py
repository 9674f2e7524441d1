"""What is estimated of c A is c times what is estimated of A: no constant of a size of its own is built in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from tests.compare import assert_same

N = 40
MAKE = torch.Generator().manual_seed(0)
ROOT = torch.randn(N, N, generator=MAKE, dtype=torch.float64)
A = ROOT @ ROOT.T / N - 0.5 * torch.eye(N, dtype=torch.float64)
B = torch.randn(N, generator=MAKE, dtype=torch.float64)
SIZES = (2.0**-60, 2.0**-20, 2.0**20, 2.0**60)  # powers of two, which round nothing

FIRST_ORDER: dict[str, Callable[[Tensor], tuple[Any, ...]]] = {
    "frobenius_norm": lambda a: of(pb.frobenius_norm(a, 12)),
    "frobenius_norm, exact": lambda a: of(pb.frobenius_norm(a, N)),
    "trace": lambda a: of(pb.trace(a, 12)),
    "hutchinson": lambda a: of(pb.trace(a, 12, method="hutchinson")),
    "diagonal": lambda a: of(pb.diagonal(a, 12)),
    "spectral_norm": lambda a: of(pb.spectral_norm(a)),
    "eigenvalues": lambda a: ((found := pb.eigenvalues(a, 2, "both")).values, found.residuals),
    "rayleigh_quotient": lambda a: (pb.rayleigh_quotient(a, B),),
    "density": lambda a: (torch.tensor((found := pb.spectral_density(a, 10, 3)).width), found.grid, 1 / found.density),
}


def of(estimate: pb.Estimate) -> tuple[Any, ...]:
    return torch.as_tensor(estimate.value).double(), torch.as_tensor(estimate.stderr).double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_estimates_grow_with_the_matrix(name: str, size: float) -> None:
    for found, plain in zip(FIRST_ORDER[name](size * A), FIRST_ORDER[name](A), strict=True):
        assert_same(torch.as_tensor(found) / size, torch.as_tensor(plain), 1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_kinds_and_solutions_do_not_depend_on_the_size(size: float) -> None:
    plain, found = pb.morse_index(A), pb.morse_index(size * A)
    assert (found.index, found.nullity, found.positive) == (plain.index, plain.nullity, plain.positive)
    few = pb.morse_index(size * A, dense_limit=1)
    assert few.index == plain.index
    one, other = pb.solve(A.abs().max() * torch.eye(N).double() + A, B), None
    other = pb.solve(size * (A.abs().max() * torch.eye(N).double() + A), B)
    assert other.converged
    assert other.iterations == one.iterations
    assert_same(other.x * size, one.x, 1e-9)
    kind = pb.classify_stationary_point(size * A, torch.zeros(N, dtype=torch.float64))
    assert kind.kind == pb.classify_stationary_point(A, torch.zeros(N, dtype=torch.float64)).kind == "saddle"
