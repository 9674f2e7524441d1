"""The base class, the algebra of operators, and what is taken for an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

import pullback as pb
from pullback.operators import Operator, as_operator
from tests.compare import assert_different, assert_same
from tests.thinned import thinned


def network(n: int, width: int, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small smooth model with two outputs, inputs and labels."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2)).double().eval()
    return model, torch.randn(n, 3, dtype=torch.float64), torch.randint(2, (n,))


def of_data(make: Callable[..., Operator], **options: Any) -> Callable[[int, int, int], Operator]:
    """A maker of operators of a model with a loss."""

    def made(n: int, width: int, seed: int) -> Operator:
        model, x, y = network(n, width, seed)
        return make(model, nn.CrossEntropyLoss(), (x, y), **options)

    return made


def random_matrix(rows: int, columns: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, columns, dtype=torch.float64)


def of_model(make: Callable[[nn.Module, Tensor, Tensor], Operator]) -> Callable[[int, int, int], Operator]:
    return lambda n, width, seed: make(*network(n, width, seed))


MAKERS: dict[str, Callable[[int, int, int], Operator]] = {
    "dense": lambda n, width, seed: as_operator(random_matrix(n, width, seed)),
    "numpy": lambda n, width, seed: as_operator(random_matrix(n, width, seed).numpy()),
    "sparse": lambda n, width, seed: as_operator(scipy.sparse.csr_array(random_matrix(n, width, seed).numpy())),
    "jacobian": of_model(lambda model, x, y: pb.Jacobian(model, x)),
    "input jacobian": of_model(lambda model, x, y: pb.Jacobian(model, x, wrt="input")),
    "pullback metric": of_model(lambda model, x, y: pb.pullback_metric(model, x, torch.eye(2).double())),
    "gradients": of_model(lambda model, x, y: pb.GradientMatrix(model, nn.CrossEntropyLoss(), x, y)),
    "kernel": of_model(lambda model, x, y: pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y)),
    "hessian": of_data(pb.Hessian),
    "hessian block": of_model(lambda m, x, y: pb.Hessian(m, nn.CrossEntropyLoss(), (x, y)).block("0", "2")),
    "gauss-newton": of_data(pb.GaussNewton),
    "true fisher": of_data(pb.Fisher, kind="true"),
    "sampled fisher": of_data(pb.Fisher, kind="sampled"),
    "empirical fisher": of_data(pb.Fisher, kind="empirical"),
}


def check_products(op: Operator, dense: Tensor, seed: int) -> None:
    """Products of ``op`` are those of ``dense``; adjoint identity, linearity, blocks of columns."""
    torch.manual_seed(seed)
    assert op.shape == tuple(dense.shape)
    v, w = torch.randn(2, op.shape[1], dtype=torch.float64)
    u = torch.randn(op.shape[0], dtype=torch.float64)
    size = float(dense.norm() * v.norm() * max(u.norm(), w.norm())) + 1e-12
    assert abs(float(u @ (op @ v) - (op.T @ u) @ v)) <= 1e-12 * size
    assert_same(op @ (2 * v - 3 * w), 2 * (op @ v) - 3 * (op @ w), 1e-11, scale=size)
    assert_same(op @ torch.stack([v, w], 1), dense @ torch.stack([v, w], 1), 1e-11, scale=size)
    assert_same(op.T @ u, dense.T @ u, 1e-11, scale=size)
    assert_same(op.to_dense(), dense, 1e-11, scale=size)
    if op.symmetric:
        assert_same(dense, dense.T, 1e-11, scale=size)


@pytest.mark.parametrize("name", thinned(list(MAKERS)))
@settings(max_examples=2)
@given(n=st.integers(1, 4), width=st.integers(1, 4), seed=st.integers(0, 1000), factor=st.floats(-3, 3))
def test_algebra_of_every_operator(name: str, n: int, width: int, seed: int, factor: float) -> None:
    """Adjoint identity <u, A v> = <A^T u, v> and linearity, of operators and everything made from them."""
    A, other = MAKERS[name](n, width, seed), MAKERS[name](n, width, seed + 1)
    a, b = A.to_dense(), other.to_dense()
    check_products(A, a, seed)
    made = [
        (A.T, a.T),
        (factor * A, factor * a),
        (A * factor, factor * a),
        (A / 4, a / 4),
        (-A, -a),
        (A + other, a + b),
        (A - other, a - b),
        (A.T @ other, a.T @ b),
        (A.T @ A, a.T @ a),
        (A @ A.T, a @ a.T),
        ((A.T @ other).T, b.T @ a),
        ((A - factor * other).T, (a - factor * b).T),
        (pb.damp(A.T @ A, 0.5), a.T @ a + 0.5 * torch.eye(a.shape[1])),
        (pb.damp(A @ other.T, -0.5).T, b @ a.T - 0.5 * torch.eye(len(a))),
    ]
    for op, dense in made:
        check_products(op, dense, seed)


@pytest.mark.parametrize("name", MAKERS)
def test_numpy_vectors_through_scipy(name: str) -> None:
    op = MAKERS[name](3, 2, 0)
    dense, scipy_op = op.to_dense().numpy(), op.to_scipy()
    rng = np.random.default_rng(0)
    v, u = rng.normal(size=(op.shape[1], 2)), rng.normal(size=(op.shape[0], 2))
    for found, expected in (
        (scipy_op.matvec(v[:, 0]), dense @ v[:, 0]),
        (scipy_op.rmatvec(u[:, 0]), dense.T @ u[:, 0]),
        (scipy_op @ v, dense @ v),
        (scipy_op.T @ u, dense.T @ u),
        (scipy_op.rmatmat(u), dense.T @ u),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
    assert scipy_op.dtype == np.float64


def test_symmetry_that_the_construction_shows() -> None:
    A, S = as_operator(torch.randn(3, 3)), as_operator(torch.eye(3), symmetric=True)
    assert (A.T @ A).symmetric
    assert (A @ A.T).symmetric
    assert (S @ S).symmetric
    assert (2 * S - S / 3).symmetric
    assert pb.damp(S, 1.0).symmetric
    assert S.T is S
    assert A.T.T is A
    assert not (A @ A).symmetric
    assert not (A + S).symmetric
    assert not pb.damp(A, 1.0).symmetric


def test_damping_adds_a_multiple_of_the_identity() -> None:
    """S2-41: damp(A, lam) v - A v is lam v, to the bit for numbers without rounding."""
    A = as_operator(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), symmetric=True)
    v = torch.tensor([[1.0, 3.0], [-2.0, 5.0]], dtype=torch.float64)
    assert torch.equal(pb.damp(A, 0.25) @ v, A @ v + 0.25 * v)
    assert torch.equal(pb.damp(A, 0.25).to_dense(), torch.tensor([[2.25, 1.0], [1.0, 2.25]], dtype=torch.float64))
    assert torch.equal((pb.damp(A, 0.25) - A).to_dense(), 0.25 * torch.eye(2, dtype=torch.float64))
    assert torch.equal(pb.damp(A.to_dense(), 1.0) @ v, A @ v + v)  # a matrix is taken as well
    with pytest.raises(pb.InputError, match=r"damp: expected a square operator, got shape \(2, 3\). Damp A.T @ A or"):
        pb.damp(as_operator(torch.ones(2, 3)), 1.0)
    with pytest.raises(pb.InputError, match="damp: expected a finite number, got nan"):
        pb.damp(A, float("nan"))


class Elsewhere:
    """An operator of another package: tensors, an adjoint, no transpose."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matrix @ other

    def adjoint(self) -> Elsewhere:
        return Elsewhere(self.matrix.T)


class Bare:
    """The least: a shape and ``@``; whatever it is given, it takes as tensors."""

    def __init__(self, matrix: Tensor, result: Callable[[Tensor], Any] = lambda product: product) -> None:
        self.shape, self._matrix, self._result = tuple(matrix.shape), matrix, result

    def __matmul__(self, other: Tensor) -> Any:
        return self._result(self._matrix @ other)


def test_objects_of_other_packages() -> None:
    """Anything with a shape and ``@``: tensors, arrays, SciPy's and others' operators; dtypes are kept."""
    a = random_matrix(3, 4, 0)
    given = [
        a,
        a.numpy(),
        scipy.sparse.csr_array(a.numpy()),
        scipy.sparse.linalg.aslinearoperator(a.numpy()),
        LinearOperator((3, 4), matvec=lambda v: a.numpy() @ v, rmatvec=lambda u: a.numpy().T @ u),
        Elsewhere(a),
        nn.Parameter(a),
    ]
    for found in given:
        check_products(as_operator(found), a, 0)
        assert as_operator(found).dtype == torch.float64
    assert_same(as_operator(Bare(a)) @ torch.ones(4, dtype=torch.float64), a.sum(1), 1e-14)
    assert as_operator(a.float().numpy()).dtype == torch.float32
    assert as_operator(scipy.sparse.csr_array(a.float().numpy())).dtype == torch.float32
    assert as_operator(Elsewhere(a.half())).dtype == torch.float16
    assert as_operator(np.eye(2, dtype=int)).dtype == torch.float64
    assert as_operator(torch.eye(2, dtype=torch.long)).dtype == torch.float64
    op = as_operator(a)
    assert as_operator(op) is op
    assert not (as_operator(nn.Parameter(a)) @ torch.ones(4, dtype=torch.float64)).requires_grad
    reversed_rows, locked = a.numpy()[::-1], a.numpy().copy()
    locked.flags.writeable = False
    assert_same(as_operator(reversed_rows).to_dense(), a.flip(0), 0)
    assert_same(as_operator(locked).to_dense(), a, 0)
    assert_same(as_operator(a.numpy().astype(np.longdouble)).to_dense(), a, 0)
    assert (as_operator(a).to_scipy() @ np.broadcast_to(np.ones(1), 4)).shape == (3,)
    tracked = Bare(a.clone().requires_grad_())
    assert not (as_operator(tracked) @ torch.ones(4, dtype=torch.float64)).requires_grad
    symmetric = as_operator(Bare(torch.eye(2, dtype=torch.float64)), symmetric=True)
    assert symmetric.T is symmetric
    assert_different(as_operator(2 * a).to_dense(), a, 0.5)


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(
        pb.InputError, match="f: expected an operator, or an object with a `shape` .* and `@`, got list"
    ):
        as_operator([[1.0]], "f")
    with pytest.raises(pb.InputError, match=r"got Tensor of shape \(3,\). Pass a matrix, or define both"):
        as_operator(torch.ones(3))
    with pytest.raises(pb.InputError, match="expected real entries, got torch.complex64"):
        as_operator(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(pb.InputError, match="expected real entries, got complex128"):
        as_operator(np.ones((2, 2), dtype=complex))
    with pytest.raises(pb.InputError, match="expected real entries, got complex128"):
        as_operator(scipy.sparse.csr_array(np.ones((2, 2), dtype=complex)))
    with pytest.raises(pb.UnsupportedError, match="f: expected an object with `.T` or `.adjoint\\(\\)`, got Bare"):
        as_operator(Bare(torch.eye(2, dtype=torch.float64)), "f").T @ torch.ones(2, dtype=torch.float64)
    no_rmatvec = as_operator(LinearOperator((2, 2), matvec=lambda v: v), "f")
    with pytest.raises(pb.UnsupportedError, match="f: expected products with the transpose, got a .* without"):
        no_rmatvec.T @ torch.ones(2, dtype=torch.float64)
    wrong = as_operator(LinearOperator((2, 2), matvec=lambda v: v, rmatvec=lambda v: v + None))
    with pytest.raises(TypeError, match="unsupported operand"):  # the object's own error is its own
        wrong.T @ torch.ones(2, dtype=torch.float64)
    vectors_only = as_operator(Bare(torch.eye(2, dtype=torch.float64), lambda product: product[:, 0]), "f")
    with pytest.raises(pb.InputError, match=r"Bare @ \(2, K\) to be a tensor \(2, K\), got shape \(2,\). Let `@` take"):
        vectors_only @ torch.ones(2, dtype=torch.float64)
    with pytest.raises(pb.InputError, match=r"to be a tensor \(2, K\), got a list"):
        as_operator(Bare(torch.eye(2, dtype=torch.float64), lambda product: product.tolist())) @ torch.ones(2).double()
    with pytest.raises(pb.UnsupportedError, match="to_scipy: expected a dtype NumPy has, got torch.bfloat16"):
        as_operator(torch.eye(2, dtype=torch.bfloat16)).to_scipy()


class OneSided(Operator):
    """Products with the matrix itself only."""

    def _matmat(self, matrix: Tensor) -> Tensor:
        return matrix


def test_wrong_operands_are_refused_with_a_remedy() -> None:
    A, B = as_operator(torch.randn(3, 4)), as_operator(torch.randn(3, 4))
    assert repr(A) == "Dense(3 x 4, torch.float32, cpu)"
    with pytest.raises(pb.InputError, match=r"A \+ B: expected shape \(3, 4\), got \(4, 3\)"):
        A + B.T
    with pytest.raises(pb.InputError, match=r"A - B: expected shape \(3, 4\), got \(4, 3\)"):
        A - B.T
    with pytest.raises(pb.InputError, match=r"A \+ B: expected B to be an operator, got Tensor"):
        A + torch.ones(3, 4)  # type: ignore[operator]
    with pytest.raises(pb.InputError, match="B with 4 rows, got 3"):
        A @ B
    with pytest.raises(pb.InputError, match="both operators in torch.float32 on cpu, got torch.float64 on cpu"):
        A + as_operator(torch.randn(3, 4).double())
    with pytest.raises(pb.InputError, match="both operators in torch.float32 on cpu, got torch.float64 on cpu"):
        A.T @ as_operator(torch.randn(3, 4).double())
    with pytest.raises(pb.InputError, match="got list. Convert it with torch.as_tensor, or use op.to_scipy"):
        A @ [1.0]  # type: ignore[operator]
    with pytest.raises(pb.InputError, match="got ndarray. Convert it with torch.as_tensor, or use op.to_scipy"):
        A @ np.ones(4)  # type: ignore[operator]
    with pytest.raises(pb.InputError, match=r"a tensor \(4,\) or \(4, K\), got shape \(3,\). Reshape it"):
        A @ torch.ones(3)
    with pytest.raises(pb.InputError, match="torch.float32 on cpu, got torch.float64 on cpu. Convert the vector"):
        A @ torch.ones(4).double()
    for left in (torch.ones(3), np.ones(3)):
        with pytest.raises(pb.InputError, match="a tensor on the right, got a .* on the left. Use op.T @ v"):
            left @ A
    with pytest.raises(pb.InputError, match=r"a \* A: expected a finite number, got Tensor. Use @ for products"):
        torch.ones(3) * A
    with pytest.raises(pb.InputError, match=r"a \* A: expected a finite number, got inf"):
        float("inf") * A
    with pytest.raises(pb.InputError, match="Dense: expected a finite number other than 0, got 0"):
        A / 0
    with pytest.raises(pb.UnsupportedError, match="OneSided: expected products with its transpose, got an operator"):
        OneSided((2, 2), torch.float32, torch.device("cpu")).T @ torch.ones(2)
    for factor in (2, np.float64(2), torch.tensor(2.0)):  # numbers of every kind
        assert torch.equal((factor * A).to_dense(), 2 * A.to_dense())
        assert torch.equal((A * factor).to_dense(), 2 * A.to_dense())
