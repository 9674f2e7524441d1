"""Leave-one-out estimates of networks against dense steps without the sample, and against training again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import per_sample_loss
from pullback.influence.dual import DampedInverse
from tests.compare import assert_same
from tests.influence.test_response import LOSSES, network, retrain, tanh_fit


def step_without(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor, i: int, damping: float) -> Tensor:
    """One damped Gauss-Newton step on the cost without sample i, from a minimum with it; N as it was."""
    n = len(x)
    rest = [j for j in range(n) if j != i]
    matrix = reference.dense_gauss_newton(model, loss_fn, x[rest], y[rest]) * (n - 1) / n
    gradient = reference.gradient_matrix(model, loss_fn, x[i : i + 1], y[i : i + 1])[0]
    return torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), gradient / n)


@limits(max_examples=4)
@given(
    n=st.integers(2, 6),
    width=st.integers(1, 4),
    outputs=st.integers(2, 3),
    loss=st.sampled_from(sorted(LOSSES)),
    damping=st.floats(1e-2, 3.0),
)
def test_both_estimates_against_dense_steps(n: int, width: int, outputs: int, loss: str, damping: float) -> None:
    """S2-44: first order keeps the sample's curvature, leverage takes it out; by both methods, in blocks, in part."""
    model, loss_fn, x, y = network(n, 2, width, outputs, loss, seed=7 * n + width)
    J = reference.output_gradients(model, x)
    A = reference.dense_gauss_newton(model, loss_fn, x, y)
    A = A + damping * torch.eye(len(A), dtype=torch.float64)
    first = torch.linalg.solve(A, reference.gradient_matrix(model, loss_fn, x, y).T) / n
    leverage = torch.stack([step_without(model, loss_fn, x, y, i, damping) for i in range(n)], 1)
    for estimate, expected in (("first_order", first), ("leverage", leverage)):
        for method in ("cg", "dual"):
            settings: dict[str, Any] = {"damping": damping, "method": method, "tol": 1e-13, "max_iters": 500}
            found = pb.leave_one_out(model, loss_fn, (x, y), estimate=estimate, block=2, **settings)  # type: ignore[arg-type]
            assert found.changes is not None
            assert_same(found.changes, expected, 1e-8)
            after = model(x).detach() + torch.einsum("ncp,pn->nc", J, expected)
            assert_same(found.outputs, after, 1e-9)
            assert_same(found.losses, per_sample_loss(loss_fn, after, y), 1e-9)
            part = pb.leave_one_out(model, loss_fn, (x, y), points=(x[1:2], y[1:2]), estimate=estimate, **settings)  # type: ignore[arg-type]
            assert part.changes is not None
            assert_same(part.changes[:, 0], expected[:, 1], 1e-8, scale=float(expected.abs().max()))
            without = pb.leave_one_out(model, loss_fn, (x, y), estimate=estimate, changes=False, **settings)  # type: ignore[arg-type]
            assert without.changes is None
            assert_same(without.losses, found.losses, 1e-10)


def test_leverage_sums_to_the_effective_number_of_parameters() -> None:
    model, loss_fn, x, y = network(6, 2, 3, 3, "classes", seed=1)
    G = reference.dense_gauss_newton(model, loss_fn, x, y)
    expected = torch.trace(torch.linalg.solve(G + 0.1 * torch.eye(len(G), dtype=torch.float64), G))
    for method in ("cg", "dual"):
        found = pb.leave_one_out(model, loss_fn, (x, y), damping=0.1, method=method, tol=1e-13, changes=False)  # type: ignore[arg-type]
        assert_same(found.leverage.sum(), expected, 1e-10)
        assert bool((found.leverage > 0).all())


@pytest.mark.parametrize("method", ["cg", "dual"])
def test_a_sample_that_all_but_decides_a_weight_alone(method: str) -> None:
    """A leverage of 1 - 1e-10: the rest still holds the weight, by the damping, and the estimate has six digits."""
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 1.5]], dtype=torch.float64)
    y = torch.tensor([[0.5], [1.0], [-1.0], [2.0]], dtype=torch.float64)
    damping = 5e-11  # over 2 / N, the curvature of its one weight
    found = pb.leave_one_out(model, LOSSES["squares"], (x, y), damping=damping, method=method, tol=1e-13)  # type: ignore[arg-type]
    assert found.changes is not None
    expected = step_without(model, LOSSES["squares"], x, y, 0, damping)
    assert_same(found.changes[:, 0], expected, 1e-5)
    assert float(found.leverage[0]) < 1


def test_the_residual_is_that_of_the_leverage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the factors of the Gram matrix: changes are as good as the worse of the two solves they are made of."""
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    monkeypatch.setattr(DampedInverse, "residual", lambda inverse, between: 0.5)
    found = pb.leave_one_out(model, loss_fn, (x, y), damping=0.1, method="dual")
    assert (found.residual, found.converged) == (0.5, False)


def test_estimates_against_training_again() -> None:
    """S2-44: a tanh net, where both are estimates: taking the curvature out as well is the better one on the whole."""
    model, loss_fn, x, y, decay = tanh_fit("squares")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    exact = []
    for i in range(len(x)):
        model.load_state_dict(state)
        keep = torch.ones(len(x), dtype=torch.float64)
        keep[i] = 0
        retrain(model, loss_fn, x, y, decay, keep)
        exact.append(model(x[i : i + 1]).detach()[0])
    model.load_state_dict(state)
    true = torch.stack(exact) - model(x).detach()
    errors = {}
    for estimate in ("first_order", "leverage"):
        found = pb.leave_one_out(model, loss_fn, (x, y), damping=decay, estimate=estimate, tol=1e-10)  # type: ignore[arg-type]
        errors[estimate] = float((found.outputs - model(x).detach() - true).norm() / true.norm())
    assert errors["leverage"] < errors["first_order"] < 1


def test_first_order_with_the_hessian() -> None:
    model, loss_fn, x, y, decay = tanh_fit("squares")
    dense = reference.dense_hessian(model, loss_fn, x, y) + decay * torch.eye(17, dtype=torch.float64)
    expected = torch.linalg.solve(dense, reference.gradient_matrix(model, loss_fn, x, y).T) / len(x)
    settings: dict[str, Any] = {"damping": decay, "estimate": "first_order", "tol": 1e-12}
    found = pb.leave_one_out(model, loss_fn, (x, y), matrix="hessian", **settings)
    assert isinstance(found, pb.LeaveOneOut)
    assert found.changes is not None
    assert_same(found.changes, expected, 1e-9)


def test_self_influence() -> None:
    """The rise of the own loss, for every matrix; the first-order change of the outputs gives it too."""
    model, loss_fn, x, y = network(5, 2, 3, 2, "classes", seed=2)
    G = reference.gradient_matrix(model, loss_fn, x, y)
    dense = {
        "gauss_newton": reference.dense_gauss_newton(model, loss_fn, x, y),
        "hessian": reference.dense_hessian(model, loss_fn, x, y),
        "empirical_fisher": G.T @ G / 5,
    }
    for matrix, A in dense.items():
        inverse = torch.linalg.inv(A + torch.eye(len(A), dtype=torch.float64))
        for method in ("cg", "dual")[: 1 if matrix == "hessian" else 2]:
            found = pb.self_influence(model, loss_fn, (x, y), damping=1.0, matrix=matrix, method=method, tol=1e-12)  # type: ignore[arg-type]
            assert_same(found.values, (G @ inverse * G).sum(1) / 5, 1e-9)
    some = pb.self_influence(model, loss_fn, (x, y), damping=1.0, points=(x[2:4], y[2:4]), tol=1e-12)
    whole = pb.self_influence(model, loss_fn, (x, y), damping=1.0, tol=1e-12)
    assert_same(some.values, whole.values[2:4], 1e-10)


def test_errors() -> None:
    model, loss_fn, x, y = network(4, 2, 3, 2, "classes", seed=0)
    with pytest.raises(pb.InputError, match="a matrix that fits estimate='leverage', got 'hessian'. .*='first_order'"):
        pb.leave_one_out(model, loss_fn, (x, y), damping=1, matrix="hessian")
    for estimate in ("leverage", "first_order"):
        said = f"that fits estimate='{estimate}', got 'empirical_fisher'. Use matrix='gauss_newton'.$"
        with pytest.raises(pb.InputError, match=said):
            pb.leave_one_out(model, loss_fn, (x, y), damping=1, matrix="empirical_fisher", estimate=estimate)
    with pytest.raises(
        pb.InputError, match="leave_one_out: expected `estimate` to be one of 'leverage', 'first_order'"
    ):
        pb.leave_one_out(model, loss_fn, (x, y), damping=1, estimate="exact")  # type: ignore[arg-type]
    with pytest.raises(pb.InputError, match="leave_one_out: expected `block` above 0, got 0"):
        pb.leave_one_out(model, loss_fn, (x, y), damping=1, block=0)
