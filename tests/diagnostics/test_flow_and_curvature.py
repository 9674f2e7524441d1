"""Flow over depth, and curvature side by side. S0-17, S0-18, S0-21 to S0-23."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.modules import MLP
from tests.cases import CASES, build
from tests.compare import assert_same


def test_profile_equals_the_reference() -> None:
    """S0-21, S0-07."""
    model, loss_fn, x, y = build(CASES[0], 6)
    flow = pb.layer_flow(pb.backward_kernel(model, loss_fn, x, y))
    blocks = reference.layer_kernels(model, loss_fn, x, y)
    rows = reference.layer_gradient_matrices(model, loss_fn, x, y)
    assert flow.layers == tuple(blocks)
    for place, layer in enumerate(flow.layers):
        assert_same(flow.sample_norms[place], rows[layer].norm(dim=1), 1e-10)
        assert float(flow.gradient_norms[place]) == pytest.approx(float(rows[layer].norm()) / math.sqrt(6))
        assert float(flow.frobenius[place]) == pytest.approx(float(blocks[layer].norm()) / 6)
        assert float(flow.spectral[place]) == pytest.approx(float(torch.linalg.matrix_norm(blocks[layer], 2)) / 6)
        assert float(flow.spectral_residuals[place]) < 1e-9
    total = sum(float(b.trace()) for b in blocks.values())
    assert flow.trace_share.tolist() == pytest.approx([float(blocks[layer].trace()) / total for layer in flow.layers])


@pytest.mark.parametrize(("sigma_w", "factor", "verdict"), [(0.9, 0.600371, "vanishing"), (2.5, 1.585225, "exploding")])
def test_ordered_and_chaotic_networks(sigma_w: float, factor: float, verdict: str) -> None:
    """S0-22: tanh, depth 20, width 500, sigma_b 0.3; ln |g|^2 changes by ln chi_1 a layer, within a tenth."""
    model = MLP([64, *[500] * 20, 10], "tanh", init="gaussian", sigma_w=sigma_w, sigma_b=0.3)
    x, y = torch.randn(32, 64), torch.arange(32) % 10
    flow = pb.layer_flow(pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y))
    assert flow.verdict == verdict
    assert flow.slope == pytest.approx(math.log(factor), rel=0.1)


def test_a_healthy_network_is_steady() -> None:
    model = MLP([64, *[128] * 5, 10], init="he")
    x, y = torch.randn(32, 64), torch.arange(32) % 10
    assert pb.layer_flow(pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y)).verdict == "steady"


def test_norm_layers_do_not_enter_the_slope() -> None:
    """Scales and shifts have gradients of another size; the verdict is about weights."""
    with_norm = MLP([16, 32, 32, 32, 4], normalisation="layer", init="he").eval()
    x, y = torch.randn(16, 16), torch.arange(16) % 4
    kernel = pb.backward_kernel(with_norm, nn.CrossEntropyLoss(), x, y)
    assert any(layer.endswith("norm") for layer in kernel.layers)
    weights = pb.backward_kernel(
        with_norm, nn.CrossEntropyLoss(), x, y, params=[f"layers.{i}.linear" for i in range(3)] + ["layers.3"]
    )
    assert pb.layer_flow(kernel).slope == pytest.approx(pb.layer_flow(weights).slope, rel=1e-5)


def test_balance() -> None:
    """S0-23: two scalar linear layers with equal weights weigh alike."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer in model:
        nn.init.constant_(layer.weight, 0.7)
    x, y = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    assert pb.layer_flow(pb.backward_kernel(model, nn.MSELoss(), x, y)).balance == pytest.approx(1.0)
    nn.init.constant_(model[0].weight, 7.0)  # gradients of layer 2 carry the weight of layer 1
    unbalanced = pb.layer_flow(pb.backward_kernel(model, nn.MSELoss(), x, y)).balance
    assert unbalanced == pytest.approx(100.0)


def test_flow_needs_layers() -> None:
    with pytest.raises(pb.InputError, match="a Kernel with its layers, got Tensor"):
        pb.layer_flow(torch.eye(3))
    model, loss_fn, x, y = build(CASES[0], 6)
    with pytest.raises(pb.InputError, match="a symmetric kernel"):
        pb.layer_flow(pb.backward_kernel(model, loss_fn, x, y, x2=x[:3], y2=y[:3]))


def test_kernel_is_no_hessian() -> None:
    """S0-18: least squares at interpolation: every gradient vanishes, the Hessian does not."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    y = model(x).detach()

    def half_squares(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (z - t).square().sum(1) / 2

    kernel = pb.backward_kernel(model, half_squares, x, y)
    assert kernel.total.abs().max() == 0
    tops = pb.compare_curvatures(model, half_squares, x, y)
    assert float(tops["hessian"].values[0]) * 3 == pytest.approx(3.0)  # X^T X has eigenvalues 3 and 1
    assert float(tops["gauss_newton"].values[0]) * 3 == pytest.approx(3.0)
    assert float(tops["empirical_fisher"].values[0]) == 0
    assert float(tops["backward_kernel"].values[0]) == 0


def test_curvatures_side_by_side() -> None:
    """S0-18, S0-09, S0-10: each against its dense matrix; G^T G and G G^T share eigenvalues."""
    model, loss_fn, x, y = build(CASES[0], 8)
    tops = pb.compare_curvatures(model, loss_fn, x, y, k=2)
    dense = {
        "hessian": reference.dense_hessian(model, loss_fn, x, y),
        "gauss_newton": reference.dense_gauss_newton(model, loss_fn, x, y),
        "empirical_fisher": reference.dense_empirical_fisher(model, loss_fn, x, y),
        "backward_kernel": reference.total_kernel(model, loss_fn, x, y) / 8,
    }
    for name, matrix in dense.items():
        exact = torch.linalg.eigvalsh(matrix).flip(0)[:2]
        assert tops[name].converged
        assert_same(tops[name].values, exact, 1e-3)
    assert_same(tops["empirical_fisher"].values, tops["backward_kernel"].values, 1e-6)


def test_sharpness_of_a_network_with_kinks() -> None:
    """S1-46: f = relu(w2 relu(w1)) has J = (w2, w1): Gauss-Newton leaves out the cross-term (f - y) that H has."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2 = (nn.Parameter(torch.tensor(v).double()) for v in (2.0, 0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.w2 * (self.w1 * x).relu()).relu()

    def half_squares(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (z - t).square().sum(1) / 2

    one = torch.ones(1, 1).double()
    found = pb.sharpness(Product(), half_squares, (one, -one), lr=0.1)
    residual, j = 2.0, torch.tensor([0.5, 2.0]).double()
    hessian = torch.outer(j, j) + residual * torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    assert float(found.gauss_newton.values[0]) == pytest.approx(float(j @ j))
    assert float(found.hessian.values[0]) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]))
    assert "both below 2 / learning rate = 20" in str(found)
    assert "With kinks (ReLU) go by Gauss-Newton" in str(found)
    assert pb.curvature_spectrum(Product(), half_squares, (one, -one)).values.tolist() == pytest.approx([4.25])


def test_sharpness() -> None:
    model, loss_fn, x, y = build(CASES[0], 8)
    exact = float(torch.linalg.eigvalsh(reference.dense_hessian(model, loss_fn, x, y))[-1])
    found = pb.sharpness(model, loss_fn, (x, y), lr=0.1, tol=1e-6)
    assert float(found.hessian.values[0]) == pytest.approx(exact, rel=1e-5)
    assert found.limit == pytest.approx(20.0)
    assert found.stable is (exact < 20)
    assert pb.sharpness(model, loss_fn, (x, y), lr=10.0).stable is False
    assert pb.sharpness(model, loss_fn, (x, y)).stable is None
    assert pb.sharpness(model, loss_fn, (x, y)).limit is None
    with pytest.raises(pb.InputError, match="`lr` above 0, got 0"):
        pb.sharpness(model, loss_fn, (x, y), lr=0)
