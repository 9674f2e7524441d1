"""Lanczos on known spectra, with honest residuals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pullback as pb
from pullback.operators.adapt import as_operator
from pullback.spectral import largest_eigenvalues
from pullback.spectral.basis import Basis
from pullback.spectral.lanczos import outer_values, start_vector
from tests.compare import assert_same
from tests.spectral.matrices import Counted, Noisy, planted


@given(st.integers(1, 30), st.integers(0, 10), st.sampled_from(["largest", "smallest", "both"]), st.integers(1, 3))
def test_planted_spectrum(n: int, seed: int, which: str, block: int) -> None:
    values = torch.linspace(-3, 5, n, dtype=torch.float64)
    matrix = planted(values, seed)
    k = min(3, n)
    pairs = pb.eigenvalues(matrix, k, which, tol=1e-9, block_size=block)
    ordered = values.flip(0)
    expected = {
        "largest": ordered[:k],
        "smallest": ordered[-k:],
        "both": torch.cat([ordered[:k], ordered[max(k, n - k) :]]),
    }[which]
    assert pairs.converged
    assert_same(pairs.values, expected, 1e-8, scale=5.0)
    residual = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert_same(pairs.residuals, residual, 1e-12, scale=5.0)
    assert (residual <= 5e-9).all()
    assert_same(pairs.vectors.T @ pairs.vectors, torch.eye(len(expected), dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 4])
def test_twenty_pairs_through_restarts(which: str, dtype: torch.dtype, block: int) -> None:
    """The basis is far smaller than the number of products: thick restarts."""
    values = torch.cat([torch.rand(450), torch.linspace(1.1, 3, 25), torch.linspace(-2, -0.1, 25)]).double()
    matrix = planted(values)
    exact = torch.linalg.eigvalsh(matrix).flip(0)
    expected = {"largest": exact[:20], "smallest": exact[-20:], "both": torch.cat([exact[:20], exact[-20:]])}[which]
    tol = 1e-6 if dtype == torch.float64 else 3e-6  # products in float32 carry 1e-6 of their own
    counted = Counted(matrix.to(dtype))
    pairs = pb.eigenvalues(counted, 20, which, tol=tol, max_basis=75 if which == "both" else 40, block_size=block)
    assert pairs.converged
    assert pairs.num_matvecs == counted.columns > 60
    assert counted.calls <= counted.columns / block + 10
    assert_same(pairs.values.double(), expected, tol)
    assert (pairs.residuals <= tol * exact.abs().max()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [1, 4])
def test_the_basis_stays_orthonormal(dtype: torch.dtype, block: int) -> None:
    """After 200 steps, to the last digits, whatever has converged meanwhile; and T is the operator in it."""
    for values in (
        torch.linspace(0, 1, 300),
        torch.cat([torch.linspace(5, 90, 30), torch.rand(270)]),
        0.7 ** torch.arange(300),
    ):
        matrix = planted(values).to(dtype)
        basis = Basis(Counted(matrix), 200, block, torch.Generator().manual_seed(0), None, "test")
        while basis.size < 200:
            basis.extend()
        rows, eps = basis.rows[: basis.size].double(), torch.finfo(dtype).eps
        assert_same(rows @ rows.T, torch.eye(basis.size, dtype=torch.float64), 20 * eps)
        inside = rows @ matrix.double() @ rows.T
        assert_same(basis.matrix[: basis.size, : basis.size], inside, 20 * eps, scale=float(values.max()))


def test_eigenvalues_met_more_than_once() -> None:
    """A Krylov space holds one vector of each; a new random vector finds the next, until none appears."""
    values = torch.cat([torch.tensor([5.0, 5, 5, 4, 4, 3, 2.5, 2.5, 2.5]), torch.rand(291)]).double()
    matrix = planted(values)
    expected = values[:9]
    once = pb.eigenvalues(matrix, 4, tol=1e-8, repeated=False)
    assert_same(once.values, torch.tensor([5.0, 4, 3, 2.5], dtype=torch.float64), 1e-8)
    for block in (1, 3):
        assert_same(pb.eigenvalues(matrix, 9, tol=1e-8, block_size=block).values, expected, 1e-8)
        assert_same(pb.eigenvalues(-matrix, 9, "smallest", tol=1e-8).values, -expected.flip(0), 1e-8)
    both = pb.eigenvalues(torch.block_diag(matrix, -matrix), 4, "both", tol=1e-8)
    assert_same(both.values, torch.cat([expected[:4], -expected[:4].flip(0)]), 1e-8)
    hidden = planted(torch.cat([torch.full((3,), 100.0), torch.rand(397)]).double())
    assert_same(pb.eigenvalues(hidden, 3, tol=1e-8).values, torch.full((3,), 100.0, dtype=torch.float64), 1e-8)


def test_equal_eigenvalues_are_all_found() -> None:
    """An invariant space ends the recurrence; it goes on outside it."""
    for k in (1, 3):
        pairs = pb.eigenvalues(torch.eye(40, dtype=torch.float64), k)
        assert_same(pairs.values, torch.ones(k, dtype=torch.float64))
        assert pairs.converged
    assert_same(pb.eigenvalues(torch.zeros(4, 4), k=1).values, torch.zeros(1), scale=1.0)
    low_rank = planted(torch.cat([torch.rand(6) + 1, torch.zeros(194)]))
    assert_same(pb.eigenvalues(low_rank, 5, "smallest").values, torch.zeros(5, dtype=torch.float64), 1e-10, scale=1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_spectral_decomposition(dtype: torch.dtype) -> None:
    """S3-03: H = Q L Q^T with Q orthogonal, to 1e-12."""
    matrix = planted(torch.randn(40)).to(dtype)
    matrix = (matrix + matrix.T) / 2
    pairs = pb.eigenvalues(matrix, 40, tol=1e-12 if dtype == torch.float64 else 1e-5)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert pairs.converged
    assert_same(pairs.vectors * pairs.values @ pairs.vectors.T, matrix, tolerance)
    assert_same(pairs.vectors @ pairs.vectors.T, torch.eye(40, dtype=dtype), tolerance)


def test_top_eigenvalue_of_a_hessian_in_training() -> None:
    """S2-18: Lanczos within 1e-4 of the dense Hessian for up to 500 parameters; a few large, many near zero; the
    all-zero start has no gradient in its weights, and stays."""
    model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(60, 8, dtype=torch.float64), torch.randint(3, (60,))
    loss_fn, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.2)
    for step in range(61):
        if step in (0, 60):
            operator = pb.Hessian(model, loss_fn, (x, y))
            assert operator.shape[0] == 375
            exact = torch.linalg.eigvalsh(operator.to_dense())
            pairs = pb.eigenvalues(operator, 2, "both", tol=1e-6)
            assert pairs.converged
            ends = torch.stack([exact[-1], exact[-2], exact[1], exact[0]])
            assert_same(pairs.values, ends, 1e-4, scale=float(exact[-1]))
            assert exact.abs().median() < 0.02 * exact[-1]
            assert exact[0] < 0
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    stuck = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for p in stuck.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.SGD(stuck.parameters(), lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        loss_fn(stuck(x), y).backward()
        optimizer.step()
    assert not stuck[0].weight.any()
    assert not stuck[2].weight.any()


def test_residuals_bound_the_error_and_say_if_not_converged() -> None:
    values = torch.linspace(0, 1, 200, dtype=torch.float64)
    short = pb.eigenvalues(planted(values), max_matvecs=6, tol=1e-8)
    assert not short.converged
    assert short.num_matvecs == 7  # six, and one for the residual
    assert abs(float(short.values[0]) - 1) <= float(short.residuals[0])
    assert "not converged" in str(short)
    long = pb.eigenvalues(planted(values), tol=1e-8, max_matvecs=200)
    assert long.converged
    assert float(long.residuals[0]) <= 1e-8
    assert str(long).startswith("1 (residuals up to")


def test_residuals_are_those_of_the_operator_and_not_of_the_recurrence() -> None:
    """A product that answers differently the second time is seen in them, where it is not seen as asymmetric."""
    pairs = pb.eigenvalues(Noisy(torch.diag(torch.linspace(0, 1, 50, dtype=torch.float64)), 1e-8), tol=1e-11)
    assert not pairs.converged
    assert float(pairs.residuals[0]) > 1e-9


def test_a_warm_start_saves_products() -> None:
    matrix = planted(torch.linspace(0, 1, 100, dtype=torch.float64) ** 3)
    cold = pb.eigenvalues(matrix, tol=1e-6)
    warm = pb.eigenvalues(matrix, tol=1e-6, start=cold.vectors[:, 0])
    assert warm.num_matvecs < cold.num_matvecs
    assert float(warm.values[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_start_that_is_handed_on_is_the_one_that_is_drawn() -> None:
    """To the bit, also where an invariant space asks for further random vectors."""
    matrix = planted(torch.cat([torch.ones(3), torch.full((3,), 2.0), torch.linspace(-1, 0.5, 54)]))
    for k in (1, 4):
        drawn, given = pb.eigenvalues(matrix, k), pb.eigenvalues(matrix, k, start=start_vector(as_operator(matrix, "")))
        assert torch.equal(drawn.values, given.values)
        assert torch.equal(drawn.vectors, given.vectors)


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize(("n", "most"), [(5, 12), (60, 4), (60, 12), (300, 12)])
def test_values_by_the_recurrence_are_those_of_more_products(which: str, n: int, most: int) -> None:
    """Also not converged, and where the whole matrix is formed."""
    matrix = planted(torch.linspace(-1, 2, n, dtype=torch.float64) ** 3, n)
    few, more = Counted(matrix), Counted(matrix)
    start = start_vector(few, seed=n)
    values, residuals = outer_values(few, which, tol=1e-1, max_matvecs=most, start=start)
    pairs = pb.eigenvalues(more, 1, which, tol=1e-1, max_matvecs=most, start=start)
    assert_same(values, pairs.values, 1e-12)
    assert_same(residuals, pairs.residuals, 1e-12, scale=8.0)
    formed = (n, which) == (5, "both")
    assert few.columns == more.columns - (0 if formed else len(values))


def test_values_in_half_precision_are_those_of_more_products() -> None:
    matrix = Counted(planted(torch.linspace(-1, 2, 60)).bfloat16())
    start = start_vector(matrix)
    values, residuals = outer_values(matrix, "both", tol=1e-1, max_matvecs=12, start=start)
    pairs = pb.eigenvalues(matrix, 1, "both", tol=1e-1, max_matvecs=12, start=start)
    assert torch.equal(values, pairs.values)
    assert torch.equal(residuals, pairs.residuals)


def test_any_object_with_a_shape_and_products() -> None:
    matrix = planted(torch.linspace(-1, 2, 60))
    expected = pb.eigenvalues(matrix, 2, tol=1e-8).values
    for other in (matrix.numpy(), scipy.sparse.linalg.aslinearoperator(matrix.numpy()), Counted(matrix)):
        assert_same(pb.eigenvalues(other, 2, tol=1e-8).values, expected, 1e-8)


def test_half_precision_is_computed_in_single() -> None:
    matrix = planted(torch.linspace(-1, 2, 60)).bfloat16()
    matrix = (matrix + matrix.T) / 2
    exact = torch.linalg.eigvalsh(matrix.double())[-1:]
    pairs = pb.eigenvalues(matrix, tol=2e-2)
    assert pairs.values.dtype == torch.float32
    assert_same(pairs.values.double(), exact, 2e-2)


def test_operator_and_random_state_are_left_alone() -> None:
    matrix = planted(torch.linspace(-1, 2, 60))
    before, state = matrix.clone(), torch.get_rng_state()
    first = pb.eigenvalues(matrix, 2, seed=3)
    assert torch.equal(first.values, pb.eigenvalues(matrix, 2, seed=3).values)
    assert torch.equal(matrix, before)
    assert torch.equal(state, torch.get_rng_state())
    assert isinstance(np.asarray(first.values), np.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_is_the_operators() -> None:
    matrix = planted(torch.linspace(-1, 2, 60)).cuda()
    pairs = pb.eigenvalues(matrix, 2, tol=1e-8)
    assert pairs.vectors.device == matrix.device
    assert_same(pairs.values.cpu(), pb.eigenvalues(matrix.cpu(), 2, tol=1e-8).values, 1e-8)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40))
def test_stack_of_matrices(layers: int, n: int, rank: int) -> None:
    """Also of low rank, where the recurrence ends early; a zero matrix gives zero."""
    factors = torch.randn(layers, n, min(rank, n), dtype=torch.float64)
    stack = factors @ factors.mT
    stack[0] *= 0
    found, _ = largest_eigenvalues(stack, num_matvecs=n)
    exact = torch.linalg.eigvalsh(stack)[:, -1]
    assert_same(found, exact, 1e-8, scale=float(exact.max().clamp(min=1)))
    few, _ = largest_eigenvalues(stack, num_matvecs=min(n, 4))  # its bounds: test_bounds.py
    assert (few <= exact * (1 + 1e-9) + 1e-9).all()


def test_errors() -> None:
    with pytest.raises(pb.InputError, match="`which` to be one of 'largest', 'smallest', 'both', got 'middle'"):
        pb.eigenvalues(torch.eye(3), which="middle")
    with pytest.raises(pb.InputError, match="eigenvalues: expected `k` from 1 to 3, got 4"):
        pb.eigenvalues(torch.eye(3), k=4)
    with pytest.raises(pb.InputError, match=r"a square operator, got shape \(3, 2\)"):
        pb.eigenvalues(torch.zeros(3, 2))
    with pytest.raises(pb.InputError, match="`tol` above 0"):
        pb.eigenvalues(torch.eye(3), tol=0)
    with pytest.raises(pb.InputError, match="`block_size` at least 1, got 0"):
        pb.eigenvalues(torch.eye(3), block_size=0)
    with pytest.raises(pb.InputError, match="`max_basis` at least 4, got 3"):
        pb.eigenvalues(torch.eye(30), k=2, max_basis=3)
    with pytest.raises(pb.InputError, match="`max_matvecs` at least 2, got 1"):
        pb.eigenvalues(torch.eye(30), k=2, max_matvecs=1)
    with pytest.raises(pb.InputError, match="eigenvalues: expected finite products, got nan or inf"):
        pb.eigenvalues(torch.full((30, 30), torch.nan))
    lopsided = torch.triu(torch.ones(30, 30))
    for k in (1, 20):  # by products, and by the whole matrix
        with pytest.raises(
            pb.InputError, match=r"expected a symmetric operator, got <u, A v> and <A u, v> that differ"
        ):
            pb.eigenvalues(lopsided, k)
    with pytest.raises(pb.InputError, match="an operator that answers alike each time"):
        pb.eigenvalues(Noisy(torch.eye(30, dtype=torch.float64), 0.1), 1)


def test_one_pair_that_is_exact_is_not_all() -> None:
    """Of a matrix that is taken whole: an entry by itself, and a part that is known to the rounding of float32."""
    drawn = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    matrix = torch.block_diag(torch.tensor([[5.0]]), (drawn + drawn.T) / 8)
    found = pb.eigenvalues(matrix, 3, tol=1e-10)
    assert float(found.residuals[0]) == 0 < float(found.residuals[1:].max())
    assert not found.converged
    assert pb.eigenvalues(matrix, 3, tol=1e-5).converged
