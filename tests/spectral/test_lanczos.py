"""Lanczos on known spectra, with honest residuals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import pullback as pb
from pullback.spectral import largest_eigenvalues
from tests.compare import assert_same


def planted(values: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return q @ torch.diag(values) @ q.T


@given(st.integers(1, 30), st.integers(0, 10), st.sampled_from(["largest", "smallest", "both"]))
def test_planted_spectrum(n: int, seed: int, which: str) -> None:
    values = torch.linspace(-3, 5, n, dtype=torch.float64)
    matrix = planted(values, seed)
    k = min(3, n)
    pairs = pb.eigenvalues(matrix, k, which, tol=1e-9, max_matvecs=n)
    ordered = values.flip(0)
    expected = {
        "largest": ordered[:k],
        "smallest": ordered[-k:],
        "both": torch.cat([ordered[:k], ordered[max(k, n - k) :]]),
    }[which]
    assert pairs.converged
    assert_same(pairs.values, expected, 1e-8, scale=5.0)
    residual = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert (residual <= 1e-7).all()
    assert_same(pairs.vectors.T @ pairs.vectors, torch.eye(len(expected), dtype=torch.float64), 1e-8)


def test_equal_eigenvalues_are_all_found() -> None:
    """An invariant space ends the recurrence; it goes on outside it."""
    pairs = pb.eigenvalues(torch.eye(6, dtype=torch.float64), k=3)
    assert_same(pairs.values, torch.ones(3, dtype=torch.float64))
    assert pairs.converged
    assert_same(pb.eigenvalues(torch.zeros(4, 4), k=1).values, torch.zeros(1), scale=1.0)


def test_residuals_bound_the_error_and_say_if_not_converged() -> None:
    values = torch.linspace(0, 1, 200, dtype=torch.float64)
    short = pb.eigenvalues(planted(values), max_matvecs=6, tol=1e-8)
    assert not short.converged
    assert short.num_matvecs == 7  # six, and one for the residual
    assert abs(float(short.values[0]) - 1) <= float(short.residuals[0])
    long = pb.eigenvalues(planted(values), tol=1e-8, max_matvecs=200)
    assert long.converged
    assert float(long.residuals[0]) <= 1e-8


def test_a_warm_start_saves_products() -> None:
    matrix = planted(torch.linspace(0, 1, 100, dtype=torch.float64) ** 3)
    cold = pb.eigenvalues(matrix, tol=1e-6)
    warm = pb.eigenvalues(matrix, tol=1e-6, start=cold.vectors[:, 0])
    assert warm.num_matvecs < cold.num_matvecs
    assert float(warm.values[0]) == pytest.approx(1.0, abs=1e-6)


def test_global_random_state_is_not_used() -> None:
    before = torch.get_rng_state()
    pb.eigenvalues(torch.eye(5))
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_stack_of_matrices(layers: int, n: int, rank: int) -> None:
    """Also of low rank, where the recurrence ends early; a zero matrix gives zero."""
    factors = torch.randn(layers, n, min(rank, n), dtype=torch.float64)
    stack = factors @ factors.mT
    stack[0] *= 0
    found, _ = largest_eigenvalues(stack, num_matvecs=n)
    exact = torch.linalg.eigvalsh(stack)[:, -1]
    assert_same(found, exact, 1e-8, scale=float(exact.max().clamp(min=1)))
    few, bounds = largest_eigenvalues(stack, num_matvecs=min(n, 4))
    assert ((few - exact).abs() <= bounds + 1e-9 * exact.max()).all() or min(n, 4) < rank
    assert (few <= exact * (1 + 1e-9) + 1e-9).all()


def test_errors() -> None:
    with pytest.raises(pb.InputError, match="`which` to be one of 'largest', 'smallest', 'both', got 'middle'"):
        pb.eigenvalues(torch.eye(3), which="middle")
    with pytest.raises(pb.InputError, match="`k` from 1 to 3, got 4"):
        pb.eigenvalues(torch.eye(3), k=4)
    with pytest.raises(pb.InputError, match=r"a square operator, got shape \(3, 2\)"):
        pb.eigenvalues(torch.zeros(3, 2))
    with pytest.raises(pb.InputError, match="`tol` above 0"):
        pb.eigenvalues(torch.eye(3), tol=0)
