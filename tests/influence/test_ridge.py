"""Ridge regression, where everything is known: the stored values, and retraining by the normal equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.compare import assert_same

VALUES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "influence.json").read_text())
N, DECAY = 5, 0.5
DAMPING = DECAY / N  # of the averaged cost
LOO = {entry["i"]: entry for entry in VALUES["loo"]}


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1) / 2


def fitted(x: Tensor, y: Tensor, decay: float) -> nn.Module:
    """The ridge's minimum as a model."""
    model = nn.Linear(x.shape[1], y.shape[1], bias=False).double()
    model.weight.data = reference.ridge(x, y, decay).T.contiguous()
    return model


@pytest.fixture
def ridge() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = tensor(VALUES["X"]), tensor(VALUES["y"]).unsqueeze(1)
    return fitted(x, y, DECAY), x, y


@pytest.mark.parametrize("method", ["cg", "dual"])
def test_response_to_labels(ridge: tuple[nn.Module, Tensor, Tensor], method: Any) -> None:
    """S2-38, S2-43: dw/dy = A^{-1} X^T, and the hat matrix, of which H_00 = 0.450185."""
    model, x, y = ridge
    assert_same(model.weight.detach()[0], tensor(VALUES["w"]), 1e-12)
    columns, hat = [], []
    for unit in torch.eye(N, dtype=torch.float64):
        found = pb.response(model, half_squares, (x, y), unit.unsqueeze(1), damping=DAMPING, tol=1e-13, method=method)
        assert found.solution.converged
        columns.append(found.change)
        hat.append(found.outputs(x)[:, 0])
        assert_same(found.parameters["weight"], found.change.view(1, 2), 0)
    assert_same(torch.stack(columns, 1), tensor(VALUES["response_jacobian_dw/dy = A^-1 X^T"]), 1e-11)
    assert_same(torch.stack(hat, 1), tensor(VALUES["prediction_jacobian (hat matrix)"]), 1e-11)
    assert round(float(hat[0][0]), 6) == 0.450185
    adjoint = pb.query_influence(
        model, half_squares, (x, y), x, wrt="targets", damping=DAMPING, tol=1e-13, method=method
    )
    assert adjoint.values.shape == (N, 1, N, 1)
    assert_same(adjoint.values.reshape(N, N), tensor(VALUES["prediction_jacobian (hat matrix)"]), 1e-11)


@pytest.mark.parametrize("method", ["cg", "dual"])
def test_leave_one_out(ridge: tuple[nn.Module, Tensor, Tensor], method: Any) -> None:
    """S2-44: w_{-4} = (0.099145, 0.958974) exactly, (0.117874, 0.935317) to first order, residual -0.235043."""
    model, x, y = ridge
    settings: dict[str, Any] = {"damping": DAMPING, "tol": 1e-13, "method": method}
    exact = pb.leave_one_out(model, half_squares, (x, y), **settings)
    first = pb.leave_one_out(model, half_squares, (x, y), estimate="first_order", **settings)
    assert exact.changes is not None
    assert first.changes is not None
    assert (exact.estimate, first.estimate) == ("leverage", "first_order")
    w = model.weight.detach()[0]
    assert_same(exact.leverage, tensor(VALUES["leverage"]), 1e-11)
    for i, entry in LOO.items():
        assert_same(w + exact.changes[:, i], tensor(entry["w_minus_i_exact"]), 1e-11)
        assert_same(w + first.changes[:, i], tensor(entry["first_order_influence w - A^-1 x e"]), 1e-11)
        assert_same((y - exact.outputs)[i], tensor([entry["loo_residual"]]), 1e-11)
        assert_same(exact.losses[i], tensor(entry["loo_residual"]).square() / 2, 1e-11)
    assert [round(v, 6) for v in (w + exact.changes[:, 4]).tolist()] == [0.099145, 0.958974]
    assert [round(v, 6) for v in (w + first.changes[:, 4]).tolist()] == [0.117874, 0.935317]
    assert round(float((y - exact.outputs)[4]), 6) == -0.235043
    removed = pb.response(model, half_squares, (x, y), -torch.eye(N, dtype=torch.float64)[4], wrt="weights", **settings)
    assert_same(removed.change, first.changes[:, 4], 1e-11)


def test_other_perturbations(ridge: tuple[nn.Module, Tensor, Tensor]) -> None:
    """S2-45: decay, dw/dlam = -A^{-1} w = (0.075930, -0.054972) of the summed cost; weights; inputs."""
    model, x, y = ridge
    data, half = (x, y), half_squares
    w = model.weight.detach()[0]
    # lam_total = N lam_average: one unit of the summed cost's decay is 1/N of the averaged one's
    found = pb.response(model, half, data, 1 / N, wrt="decay", damping=DAMPING, tol=1e-13)
    assert_same(found.change, tensor(VALUES["dw/dlambda = -A^-1 w"]), 1e-11)
    assert [round(v, 6) for v in found.change.tolist()] == [0.07593, -0.054972]

    def fit(x: Tensor, s: Tensor) -> Tensor:
        """Minimum of 1/2 sum_i s_i (x_i w - y_i)^2 + decay/2 |w|^2."""
        root = s.sqrt().unsqueeze(1)
        return reference.ridge(root * x, root * y, DECAY)[:, 0]

    step = 1e-5
    for _ in range(3):
        r = torch.randn(N, dtype=torch.float64)
        weighted = pb.response(model, half, data, r, wrt="weights", damping=DAMPING, tol=1e-13).change
        assert_same(weighted, (fit(x, 1 + step * r) - fit(x, 1 - step * r)) / (2 * step), 1e-7)
        r = torch.randn(N, 2, dtype=torch.float64)
        moved = pb.response(model, half, data, r, wrt="inputs", damping=DAMPING, tol=1e-13).change
        ones = torch.ones(N, dtype=torch.float64)
        assert_same(moved, (fit(x + step * r, ones) - fit(x - step * r, ones)) / (2 * step), 1e-7)
    assert_same(w, fit(x, torch.ones(N, dtype=torch.float64)), 1e-12)


def test_a_new_sample_is_a_weight_on_points_outside_the_data(ridge: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = ridge
    new_x, new_y, step = tensor([[1.0, 2.5]]), tensor([[2.0]]), 1e-5
    found = pb.response(
        model,
        half_squares,
        (x, y),
        torch.ones(1),
        wrt="weights",
        points=(new_x, new_y),
        damping=DAMPING,
        tol=1e-13,
    )
    more = [torch.cat([a, step**0.5 * b]) for a, b in ((x, new_x), (y, new_y))]
    assert_same(found.change, (reference.ridge(*more, DECAY).T - model.weight.detach())[0] / step, 1e-4)


@given(n=st.integers(2, 9), d=st.integers(1, 4), outputs=st.integers(1, 3), decay=st.floats(0.01, 3.0))
def test_leave_one_out_equals_the_normal_equations(n: int, d: int, outputs: int, decay: float) -> None:
    """S2-44: over drawn shapes, by conjugate gradients and through the Gram matrix."""
    torch.manual_seed(100 * n + 10 * d + outputs)
    x, y = torch.randn(n, d, dtype=torch.float64), torch.randn(n, outputs, dtype=torch.float64)
    model = fitted(x, y, decay)
    for method in ("cg", "dual"):
        found = pb.leave_one_out(
            model, half_squares, (x, y), damping=decay / n, tol=1e-14, max_iters=100, method=method, block=3
        )
        assert found.changes is not None
        for i in range(n):
            exact = reference.ridge(x, y, decay, without=i)
            change = found.changes[:, i].view(outputs, d).T
            assert_same(model.weight.detach().T + change, exact, 1e-9, scale=float(exact.norm()) + 1)
            assert_same(found.outputs[i], (x[i : i + 1] @ exact)[0], 1e-9, scale=float(y.norm()) + 1)


def test_without_decay_the_leverages_sum_to_the_number_of_parameters(ridge: tuple[nn.Module, Tensor, Tensor]) -> None:
    _, x, y = ridge
    found = pb.leave_one_out(fitted(x, y, 0.0), half_squares, (x, y), damping=0.0, tol=1e-13)
    assert_same(found.leverage.sum(), tensor(2.0), 1e-11)
    with pytest.raises(pb.InputError, match="leave_one_out: expected samples the others can do without, got a leverag"):
        pb.leave_one_out(fitted(x[:2], y[:2], 0.0), half_squares, (x[:2], y[:2]), damping=0.0, tol=1e-13)
