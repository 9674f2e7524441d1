"""Taylor polynomials of models against loops of backward passes, and models that are polynomials themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import pullback as pb
from pullback.functional.differentiable import elementary
from tests.cases import CASES, build
from tests.compare import assert_same
from tests.thinned import thinned


def vectors(size: int) -> list[Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]


def along(model: nn.Module, x: object, step: Tensor, order: int) -> Tensor:
    """The polynomial at w0 + step, by backward passes through t of f(w0 + t step), one number at a time."""
    view = pb.ModelView.of(model)
    change = view.unflatten(step)
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), elementary(every_order=True):  # torch's layer norm has a wrong third derivative
        outputs = view(x, {name: p.detach() + t * change[name] for name, p in view.parameters.items()})
    found = []
    for value in outputs.reshape(-1):
        total, factor = value.detach(), 1.0
        for k in range(1, order + 1):
            if not value.requires_grad:
                break
            (value,) = torch.autograd.grad(value, t, create_graph=True, materialize_grads=True)
            factor /= k
            total = total + factor * value.detach()
        found.append(total)
    return torch.stack(found).reshape(outputs.shape)


def moved(expanded: nn.Module, step: Tensor) -> nn.Module:
    view = pb.ModelView.of(expanded)
    with torch.no_grad():
        for name, change in view.unflatten(step).items():
            view.parameters[name].add_(change)
    return expanded


@pytest.mark.parametrize(
    ("name", "order"),
    thinned(["mlp", "conv2d", "tied", "frozen", "two_inputs", "sequence_first", "cross_attention"], [1, 2, 3]),
)
def test_polynomials_along_a_direction(name: str, order: int) -> None:
    model, _, x, _ = build(next(c for c in CASES if c.name == name), 2)
    expanded = pb.taylor_expand(model, order)
    view = pb.ModelView.of(expanded)
    assert_same(view(x).detach(), pb.ModelView.of(model)(x).detach(), 1e-12)
    (step,) = vectors(view.num_params)
    step = step / step.norm()
    assert_same(pb.ModelView.of(moved(expanded, step))(x).detach(), along(model, x, step, order), 1e-9)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.InstanceNorm1d(4, affine=True), nn.GroupNorm(2, 4)])
def test_third_derivatives_of_norms_by_differences(norm: nn.Module) -> None:
    """Nothing of ours but the model's values: torch's own third derivatives of two of these are another number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), norm, nn.Tanh()).double().eval()
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    (step,) = vectors(pb.ModelView.of(model).num_params)
    step, h = step / step.norm(), 1e-2
    two, three = (moved(pb.taylor_expand(model, order), step)(x).detach() for order in (2, 3))
    ahead, behind = (
        [moved(pb.taylor_expand(model, 1), sign * k * h * step).model(x).detach() for k in (1, 2)] for sign in (1, -1)
    )
    third = (ahead[1] - 2 * ahead[0] + 2 * behind[0] - behind[1]) / (2 * h**3)
    assert_same((three - two) * 6, third, 0.01)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_linear_network_is_a_polynomial_of_its_depth(layers: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers))).double().eval()
    x = torch.randn(4, 3, dtype=torch.float64)
    (step,) = vectors(pb.ModelView.of(model).num_params)
    exact, short = (moved(pb.taylor_expand(model, k), step)(x) for k in (layers, max(layers - 1, 1)))
    other = moved(pb.taylor_expand(model, layers), step).model
    assert_same(exact.detach(), other(x).detach(), 1e-9)
    if layers > 1:
        assert float((short - exact).detach().norm() / exact.detach().norm()) > 1e-3


def test_the_remainder_falls_with_the_order() -> None:
    """|f - polynomial| falls as step^(order + 1): the slope of its logarithm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    x, (step,) = torch.randn(4, 3, dtype=torch.float64), vectors(pb.ModelView.of(model).num_params)
    for order in (1, 2, 3):
        errors = []
        for size in (0.02, 0.04):
            expanded = moved(pb.taylor_expand(model, order), size * step)
            errors.append(float((expanded(x) - expanded.model(x)).detach().norm()))
        assert math.log2(errors[1] / errors[0]) == pytest.approx(order + 1, abs=0.3)


def test_expansions_are_modules_that_train() -> None:
    """Gradients of the polynomial in its parameters, those of the reference; weights of the model stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double().eval()
    x, before = torch.randn(5, 3, dtype=torch.float64), {k: v.clone() for k, v in model.state_dict().items()}
    (step,) = vectors(pb.ModelView.of(model).num_params)
    expanded = moved(pb.taylor_expand(model, 2), 0.3 * step)
    found = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(expanded(x).sum(), list(expanded.model.parameters()))]
    )
    H = pb.Hessian(model, lambda f, y: f.sum(1), (x, torch.zeros(5))).to_dense() * 5
    slope = torch.cat([g.reshape(-1) for g in torch.autograd.grad(model(x).sum(), list(model.parameters()))])
    assert_same(found, slope + 0.3 * H @ step, 1e-9)
    assert expanded.train().training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    again = pb.taylor_expand(model, 2)
    again.load_state_dict(expanded.state_dict())
    assert torch.equal(again(x), expanded(x))
    assert_same(pb.taylor_expand(model, 1)(x).detach(), pb.linearize(model)(x).detach(), 1e-15)


@pytest.mark.parametrize("order", [0, -1, 1.0, True, "2"])
def test_other_orders_are_refused(order: object) -> None:
    with pytest.raises(pb.InputError, match=r"taylor_expand: expected an `order` of at least 1, got"):
        pb.taylor_expand(nn.Linear(2, 1), order)  # type: ignore[arg-type]


def test_what_has_no_expansion_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(
        pb.UnsupportedError, match=r"taylor_expand: expected a model in eval mode, got `1` \(BatchNorm1d\)"
    ):
        pb.taylor_expand(model, 2)
