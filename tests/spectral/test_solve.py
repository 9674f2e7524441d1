"""Linear systems: conjugate gradients against dense solves and Krylov spaces, and the Neumann series."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from tests.compare import assert_same
from tests.spectral.matrices import Counted, Noisy, planted

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "taylor_spectral.json").read_text())["cg_diag(1,10,100)_b1"]
DIAGONAL = torch.diag(torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64))
ONES = torch.ones(3, dtype=torch.float64)


def energy_error(matrix: Tensor, x: Tensor, exact: Tensor) -> float:
    """|x - exact| in the norm of A, which conjugate gradients minimise."""
    error = x - exact
    return float((error @ matrix @ error).sqrt())


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_known_iterates(kind: str) -> None:
    """S2-35: diag(1, 10, 100), b = 1: iterates, and errors in the norm of A; one product an iteration."""
    exact = torch.linalg.solve(DIAGONAL, ONES)
    for k in range(4):
        counted = Counted(DIAGONAL)
        b = ONES if kind == "torch" else ONES.numpy()
        solution = pb.solve(counted, b, tol=0, max_iters=k)
        x = torch.as_tensor(solution.x)
        assert solution.iterations == k
        assert counted.columns == k + 1 if k else counted.columns <= 1  # the last is the residual's
        if k:
            assert_same(x, torch.tensor(KNOWN["iterates"][k - 1], dtype=torch.float64), 1e-12, scale=1.0)
            assert energy_error(DIAGONAL, x, exact) == pytest.approx(KNOWN["A_norm_error_per_iter"][k - 1], abs=1e-12)
    assert energy_error(DIAGONAL, 0 * ONES, exact) == pytest.approx(KNOWN["initial_A_norm_error"])


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 5))
def test_iterates_are_the_best_of_their_krylov_space(n: int, k: int, seed: int) -> None:
    """S2-36: x_k minimises 1/2 x^T A x - b^T x over span(b, A b, ..., A^(k-1) b), found here by explicit bases."""
    k = min(k, n)
    matrix = planted(torch.linspace(1, 9, n), seed)
    b = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    krylov = [b]
    for _ in range(k - 1):
        krylov.append(matrix @ krylov[-1])
    basis, _ = torch.linalg.qr(torch.stack(krylov, 1))
    best = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
    for right in (b, b.numpy()):
        assert_same(torch.as_tensor(pb.solve(matrix, right, tol=0, max_iters=k).x), best, 1e-8)


def test_as_many_iterations_as_distinct_eigenvalues() -> None:
    """S2-36: two distinct eigenvalues, two iterations."""
    matrix = planted(torch.cat([torch.full((30,), 2.0), torch.full((20,), 7.0)]))
    b = torch.randn(50, dtype=torch.float64)
    assert pb.solve(matrix, b, tol=1e-10).iterations == 2
    assert pb.solve(matrix, b.numpy(), tol=1e-10).iterations == 2


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_the_number_of_iterations_is_the_one_asked_for(kind: str) -> None:
    """S2-37: with tol=0 niter is niter, also long after the residual is rounding; SciPy's default would have stopped
    at 1e-5. In float64, and in float32 where the model is."""
    matrix = planted(torch.linspace(1, 100, 40))
    b = torch.randn(40, dtype=torch.float64)
    right = b if kind == "torch" else b.numpy()
    exact = torch.linalg.solve(matrix, b)
    for iterations in (0, 1, 17, 200):
        solution = pb.solve(matrix, right, tol=0, max_iters=iterations)
        assert solution.iterations == iterations
        assert len(solution.history) == iterations + 1
        again, _ = scipy.sparse.linalg.cg(matrix.numpy(), b.numpy(), rtol=0, atol=0, maxiter=min(iterations, 17))
        if iterations <= 17:
            assert_same(torch.as_tensor(solution.x), torch.as_tensor(again), 1e-10, scale=1.0)
    assert_same(torch.as_tensor(solution.x), exact, 1e-12)
    small = pb.solve(
        DIAGONAL, ONES if kind == "torch" else ONES.numpy(), tol=0, max_iters=500
    )  # zero over zero, if let
    assert_same(torch.as_tensor(small.x), torch.tensor([1, 0.1, 0.01], dtype=torch.float64), 1e-12)
    single = pb.solve(matrix.float(), right.float() if kind == "torch" else right.astype(np.float32), tol=1e-5)
    assert single.converged
    assert_same(torch.as_tensor(single.x).double(), exact, 1e-3)


@given(st.integers(1, 30), st.integers(1, 4), st.floats(0, 3), st.sampled_from(["torch", "numpy"]), st.booleans())
def test_against_dense_solves(n: int, columns: int, damping: float, kind: str, vector: bool) -> None:
    """S2-41: damping adds lambda x exactly; several right-hand sides at once."""
    matrix = planted(torch.linspace(0.5, 20, n), n)
    b = torch.randn(n, columns, dtype=torch.float64)
    b = b[:, 0] if vector else b
    solution = pb.solve(matrix, b if kind == "torch" else b.numpy(), damping=damping, tol=1e-11)
    exact = torch.linalg.solve(matrix + damping * torch.eye(n, dtype=torch.float64), b)
    assert solution.converged
    assert isinstance(solution.x, Tensor if kind == "torch" else np.ndarray)
    x = torch.as_tensor(solution.x)
    assert_same(x, exact, 1e-9)
    residual = (b - matrix @ x - damping * x).norm(dim=0) / b.norm(dim=0)
    assert float(residual.max()) == pytest.approx(solution.residual, abs=1e-14)
    assert tuple(solution.history.shape) == (solution.iterations + 1, *b.shape[1:])
    assert_same(torch.as_tensor(solution.history)[0], torch.ones_like(b[0]), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_arrays_are_tensors_on_the_way(dtype: torch.dtype) -> None:
    """The numbers are those of tensors; x is in the dtype computed in; any real array will do, writeable or not."""
    matrix = planted(torch.linspace(1, 9, 12)).to(dtype)
    work = torch.float32 if dtype == torch.bfloat16 else dtype
    rounding = 100 * torch.finfo(work).eps
    wide = np.random.default_rng(0).integers(-9, 9, (12, 6))
    frozen = wide[:, 0].astype(np.float32)
    frozen.flags.writeable = False
    arrays = [
        wide[:, 0],
        wide[:, ::2],
        wide[::-1, 1] > 0,
        wide[:, 2].astype(">f4"),
        np.asfortranarray(wide[:, :2]),
        frozen,
    ]
    arrays += [wide[:, 3].astype(np.longdouble), wide[:, :1].astype(np.float16)]
    for b in arrays:
        before = b.copy()
        found = pb.solve(matrix, b, tol=1e-2)
        tensor = pb.solve(matrix, torch.as_tensor(b.astype(np.float64)).to(work), tol=1e-2)
        assert (found.x.shape, found.x.dtype) == (b.shape, tensor.x.numpy().dtype)
        assert_same(torch.as_tensor(found.x), tensor.x, rounding, scale=1.0)
        assert found.history.dtype == np.float64
        assert_same(torch.as_tensor(found.history), tensor.history.double(), rounding, scale=1.0)
        assert found.residual == pytest.approx(tensor.residual, abs=rounding)
        assert (found.iterations, found.converged) == (tensor.iterations, True)
        assert (b == before).all()


def test_stops_at_negative_curvature() -> None:
    """Truncated: x made before it, and the curvature; for arrays as for tensors."""
    matrix, b = torch.diag(torch.tensor([4.0, 2.0, -3.0])).double(), torch.tensor([4.0, 2.0, 0.01]).double()
    for right in (b, b.numpy()):
        found = pb.solve(matrix, right, indefinite="stop")
        assert isinstance(found.x, type(right))
        assert found.curvature is not None
        assert -3 <= found.curvature <= 0
        kept = pb.solve(matrix, right, tol=0, max_iters=found.iterations)
        assert_same(torch.as_tensor(found.x), torch.as_tensor(kept.x), 1e-14)
        with pytest.raises(
            pb.InputError, match=r"solve: expected `b` \(3,\) with indefinite='stop', got shape \(3, 1\)"
        ):
            pb.solve(matrix, right[:, None], indefinite="stop")


def test_damping_of_the_solve_is_that_of_the_operator() -> None:
    """S2-41: solve(A, b, damping) and solve(damp(A), b) are the same iterates."""
    matrix = planted(torch.linspace(0.01, 5, 30))
    b = torch.randn(30, dtype=torch.float64)
    damped = pb.damp(Counted(matrix), 0.3)
    v = torch.randn(30, dtype=torch.float64)
    assert_same(damped @ v, matrix @ v + 0.3 * v, 1e-14)
    first, second = pb.solve(matrix, b, damping=0.3, tol=0, max_iters=7), pb.solve(damped, b, tol=0, max_iters=7)
    assert_same(first.x, second.x, 1e-11)


def test_columns_share_products_and_stop_by_themselves() -> None:
    matrix = planted(torch.linspace(1, 50, 60))
    values, vectors = torch.linalg.eigh(matrix)
    b = torch.stack([vectors[:, 3], torch.zeros(60, dtype=torch.float64), torch.randn(60, dtype=torch.float64)], 1)
    counted = Counted(matrix)
    solution = pb.solve(counted, b, tol=1e-9)
    assert solution.converged
    assert counted.calls == solution.iterations + 1
    assert counted.columns < 1.2 * solution.iterations + 6  # the first is done at once, the second has nothing to do
    assert_same(solution.x[:, 0], vectors[:, 3] / values[3], 1e-9)
    assert not solution.x[:, 1].any()


def test_preconditioner_and_start() -> None:
    scales = torch.logspace(0, 6, 80, dtype=torch.float64)
    coupling = planted(torch.linspace(1, 2, 80))
    matrix = scales.sqrt()[:, None] * coupling * scales.sqrt()
    b = torch.randn(80, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    inverse = torch.diag(1 / matrix.diagonal())
    for right in (b, b.numpy()):
        plain = pb.solve(matrix, right, tol=1e-10, max_iters=2000)
        for given_inverse in (inverse, Counted(inverse), lambda r: inverse @ r):
            better = pb.solve(matrix, right, tol=1e-10, max_iters=2000, preconditioner=given_inverse)
            assert better.converged
            assert better.iterations < plain.iterations / 5
            assert_same(torch.as_tensor(better.x), exact, 1e-6)
        near = exact * (1 + 1e-4)
        warm = pb.solve(matrix, right, tol=1e-6, start=near if right is b else near.numpy(), preconditioner=inverse)
        assert warm.iterations < pb.solve(matrix, right, tol=1e-6, preconditioner=inverse).iterations
        assert warm.history[0] < 1e-3
        assert warm.converged
        mixed = pb.solve(matrix, right, tol=1e-6, start=near.numpy() if right is b else near, preconditioner=inverse)
        assert (mixed.x == warm.x).all()
        both = [
            pb.solve(matrix, f(right), tol=1e-10, preconditioner=lambda r: inverse @ r) for f in (lambda v: v, twice)
        ]
        assert_same(torch.as_tensor(both[1].x)[:, 1], torch.as_tensor(both[0].x), 1e-8)
        for wrong, got in (
            (lambda r: r[:, 0], r"shape \(80,\)"),
            (lambda r: r.numpy(), "ndarray"),
            (lambda r: r[:, :0], r"shape \(80, 0\)"),
        ):
            words = rf"solve: expected `preconditioner` to make a tensor \(80, 1\) of .* shape, got {got}\. Let"
            with pytest.raises(pb.InputError, match=words):
                pb.solve(matrix, right, preconditioner=wrong)


def twice(b: Any) -> Any:
    """Two right-hand sides of the kind of the one."""
    return torch.stack([b, b], 1) if isinstance(b, Tensor) else np.stack([b, b], 1)


def test_gauss_newton_solve() -> None:
    """S2-42: (G + lambda I) x = b with a number of iterations: the error falls monotonically in the norm of the matrix,
    the residual need not."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 2, dtype=torch.float64)
    operator = pb.GaussNewton(model, nn.MSELoss(), (x, y))
    b = torch.randn(operator.shape[0], dtype=torch.float64)
    dense = operator.to_dense() + 1e-2 * torch.eye(len(b), dtype=torch.float64)
    exact = torch.linalg.solve(dense, b)
    errors = [
        energy_error(dense, pb.solve(operator, b, damping=1e-2, tol=0, max_iters=k).x, exact) for k in range(0, 25, 2)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-3 * errors[0]
    assert_same(pb.solve(operator, b, damping=1e-2, tol=1e-10).x, exact, 1e-8)


def test_not_converged_is_data() -> None:
    matrix = planted(torch.logspace(-6, 0, 80))
    b = torch.randn(80, dtype=torch.float64)
    for right in (b, b.numpy()):
        solution = pb.solve(matrix, right, tol=1e-10, max_iters=5)
        assert not solution.converged
        assert solution.iterations == 5
        assert str(solution).startswith("not converged after 5 iterations")
    single = pb.solve(planted(torch.linspace(1, 50, 80)).float(), b.float(), tol=1e-9, max_iters=3000)
    assert not single.converged  # float32 cannot hold such a residual, and says so instead of looping
    assert single.iterations < 3000
    consistent = pb.solve(planted(torch.cat([torch.ones(5), torch.zeros(40)])), torch.zeros(45).double())
    assert consistent.converged
    assert consistent.iterations == 0


def test_singular_but_consistent() -> None:
    """A Gauss-Newton matrix without damping: b in its range is solved for, also with iterations to spare."""
    matrix = planted(torch.cat([torch.linspace(1, 3, 8), torch.zeros(30)]))
    b = matrix @ torch.randn(38, dtype=torch.float64)
    exact = torch.linalg.pinv(matrix, rtol=1e-10) @ b
    for right in (b, b.numpy()):
        assert_same(torch.as_tensor(pb.solve(matrix, right, tol=1e-10).x), exact, 1e-8)
        assert_same(torch.as_tensor(pb.solve(matrix, right, tol=0, max_iters=60).x), exact, 1e-8)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_indefinite_operators_are_named(kind: str) -> None:
    matrix = planted(torch.linspace(-2, 5, 30))
    b = torch.randn(30, dtype=torch.float64)
    right = b if kind == "torch" else b.numpy()
    words = (
        r"solve: expected a positive definite operator, got curvature p\^T A p / p\^T p = -?[\d.e-]+ along the search "
        r"direction of iteration \d+\. Pass a `damping` above minus the smallest eigenvalue, or a Gauss-Newton matrix"
    )
    with pytest.raises(pb.InputError, match=words):
        pb.solve(matrix, right)
    assert pb.solve(matrix, right, damping=2.1, tol=1e-8).converged
    with pytest.raises(
        pb.InputError, match=r"curvature p\^T A p / p\^T p = 0 along the search direction of iteration 1"
    ):
        pb.solve(0 * matrix, right)


def test_neumann_series() -> None:
    """S2-46: converges to the solution of conjugate gradients if |I - a A| < 1, as that power, and only then."""
    matrix = planted(torch.linspace(0.5, 2, 25))
    b = torch.randn(25, 2, dtype=torch.float64)
    exact = pb.solve(matrix, b, tol=1e-12).x
    for step in (None, 0.3, 0.95):
        solution = pb.neumann_solve(matrix, b, step=step, tol=1e-10)
        assert solution.converged
        assert_same(solution.x, exact, 1e-9)
    step, terms = 0.4, 6
    contraction = torch.eye(25, dtype=torch.float64) - step * matrix
    partial = step * sum(torch.linalg.matrix_power(contraction, k) @ b for k in range(terms))
    short = pb.neumann_solve(matrix, b, step=step, tol=0, max_iters=terms)
    assert_same(short.x, partial, 1e-12)
    assert short.iterations == terms
    none = pb.neumann_solve(matrix, b, step=step, max_iters=0)
    assert (none.iterations, none.residual, none.converged) == (0, 1.0, False)
    assert (none.x == 0).all()
    told = r"Raise `damping` by more than 0\.25: with a negative eigenvalue no step converges"
    with pytest.raises(pb.InputError, match=told):
        pb.neumann_solve(matrix - torch.eye(25, dtype=torch.float64), b, 0.25, step=0.5)
    told = r"Choose a `step` below 2 / \(largest eigenvalue\) = 0\.(8|79999\d*|80000\d*)\."
    with pytest.raises(pb.InputError, match=told):
        pb.neumann_solve(matrix, b, 0.5, step=0.9)
    for wrong in (b[:-1], b.unsqueeze(0), torch.tensor(1.0), [1.0] * 25):
        with pytest.raises(pb.InputError, match=r"neumann_solve: expected `b` \(25,\) or \(25, K\)"):
            pb.neumann_solve(matrix, wrong)
    for named in ({"tol": -1e-9}, {"damping": -1e-9}):
        with pytest.raises(pb.InputError, match="`tol` and `damping` of at least 0"):
            pb.neumann_solve(matrix, b, **named)
    assert not short.converged or short.residual == 0
    ratios = short.history[1:] / short.history[:-1]
    assert (ratios <= float(torch.linalg.matrix_norm(contraction, 2)) + 1e-12).all()
    damped = pb.neumann_solve(matrix, b[:, 0], damping=0.5, tol=1e-10)
    assert_same(damped.x, pb.solve(matrix, b[:, 0], damping=0.5, tol=1e-12).x, 1e-9)
    words = (
        r"neumann_solve: expected a step for which the series converges, got step=1.01, diverging at iteration \d+\. "
        r"Choose a `step` below 2 / \(largest eigenvalue\) = 1"
    )
    with pytest.raises(pb.InputError, match=words):
        pb.neumann_solve(matrix, b, step=1.01)
    with pytest.raises(pb.InputError, match=r"Raise `damping` by more than 0\.5: with a negative eigenvalue no step"):
        pb.neumann_solve(matrix - torch.eye(25, dtype=torch.float64), b, step=0.5)


def test_neumann_series_with_products_that_differ_each_time() -> None:
    """S2-46: what conjugate gradients cannot do: x fluctuates about the solution, the less the smaller the step."""
    matrix = planted(torch.linspace(0.5, 2, 10))
    b = torch.randn(10, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, b)
    errors = [
        float((pb.neumann_solve(Noisy(matrix, 0.05), b, step=a, tol=0, max_iters=2000).x - exact).norm() / exact.norm())
        for a in (0.5, 0.02)
    ]
    assert errors[0] < 0.5
    assert errors[1] < errors[0] / 2
    with pytest.raises(pb.InputError, match="Choose a smaller `step`"):
        pb.neumann_solve(Noisy(matrix, 0.05), b, step=3.0)


def test_state_is_left_alone() -> None:
    matrix, b = planted(torch.linspace(1, 2, 20)), torch.randn(20, dtype=torch.float64)
    before, state = b.clone(), torch.get_rng_state()
    start = torch.ones(20, dtype=torch.float64)
    pb.solve(matrix, b, start=start)
    pb.solve(matrix, b.numpy(), start=start.numpy())
    pb.neumann_solve(matrix, b)
    for begin in (start, start.numpy()):
        pb.solve(matrix, b if begin is start else b.numpy(), start=begin, max_iters=0).x[:] = 7
    assert torch.equal(b, before)
    assert (start == 1).all()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_operators_device() -> None:
    matrix = planted(torch.linspace(1, 2, 20)).cuda()
    b = torch.randn(20, dtype=torch.float64)
    solution = pb.solve(matrix, b.cuda(), tol=1e-10)
    assert solution.x.device == matrix.device
    assert_same(solution.x.cpu(), torch.linalg.solve(matrix.cpu(), b), 1e-8)


def test_errors() -> None:
    matrix, b = torch.eye(4), torch.ones(4)
    for call, words in (
        (lambda: pb.solve(matrix, torch.ones(3)), r"solve: expected `b` \(4,\) or \(4, K\), got shape \(3,\)"),
        (lambda: pb.solve(matrix, [1.0] * 4), r"expected `b` \(4,\) or \(4, K\), got list"),
        (lambda: pb.solve(matrix[:2], b), r"solve: expected a square operator, got shape \(2, 4\)"),
        (lambda: pb.solve(matrix, b * torch.nan), "solve: expected a finite `b`, got nan or inf"),
        (lambda: pb.solve(matrix, b.numpy() * np.inf), "solve: expected a finite `b`, got nan or inf"),
        (lambda: pb.solve(matrix, b.numpy() * 1j), "solve: expected real entries, got complex64. Convert the array to"),
        (
            lambda: pb.solve(matrix, b.numpy(), start=b.numpy().astype(object)),
            "solve: expected real entries, got object",
        ),
        (lambda: pb.solve(matrix, b.numpy()[:3]), r"solve: expected `b` \(4,\) or \(4, K\), got shape \(3,\)"),
        (lambda: pb.solve(matrix, b, damping=-1.0), "solve: expected `damping` of at least 0, got -1.0"),
        (lambda: pb.solve(matrix, b, tol=0), "expected `tol` above 0, or 0 and `max_iters`, got tol=0, max_iters=None"),
        (lambda: pb.solve(matrix, b, tol=-1.0), "expected `tol` above 0, or 0 and `max_iters`, got tol=-1.0"),
        (lambda: pb.solve(matrix, b, max_iters=-1), "solve: expected `max_iters` of at least 0, got -1"),
        (
            lambda: pb.solve(matrix, b, start=torch.ones(4, 1)),
            r"expected `start` of the shape \(4,\) of `b`, got shape",
        ),
        (lambda: pb.solve(matrix, b, preconditioner=torch.eye(3)), r"expected a preconditioner \(4, 4\), got shape"),
        (lambda: pb.neumann_solve(matrix, torch.ones(3)), r"neumann_solve: expected `b` \(4,\) or \(4, K\), got shape"),
        (lambda: pb.neumann_solve(matrix, [1.0]), r"neumann_solve: expected `b` \(4,\) or \(4, K\), got list"),
        (lambda: pb.neumann_solve(matrix, b, tol=-1.0), "expected `tol` and `damping` of at least 0, got -1.0 and 0.0"),
        (lambda: pb.neumann_solve(matrix, b, step=0.0), "neumann_solve: expected `step` above 0, got 0.0"),
        (lambda: pb.neumann_solve(matrix, b, max_iters=-1), "expected `max_iters` at least 0, got -1"),
    ):
        with pytest.raises(pb.InputError, match=words):
            call()
