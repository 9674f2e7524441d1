"""Gradient rows held in place of larger captured tensors: the same kernels, in batches, with less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pullback as pb
from pullback import reference
from pullback.gradients.rows.factor import DenseFactor
from pullback.kernels.plan import kernel_plan as plan
from tests.compare import assert_same


def net() -> nn.Module:
    """Maps that are large against the weights, in every kind of convolution; a last layer where rows are larger."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, (2, 3), stride=(1, 2), bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, dilation=2, groups=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).double()


def positions() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2, bias=False), nn.Flatten(), nn.Linear(40, 3)]
    return nn.Sequential(*layers).double()


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as much memory."""
    monkeypatch.setattr(plan, "CAPTURE_BYTES", 20_000)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("contract", ["full", "trace", "diagonal"])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize(("make", "shape"), [(net, (2, 9, 13)), (positions, (20, 2))])
def test_equals_the_loop(make, shape, cross: bool, contract: str) -> None:
    model = make()
    x = torch.randn(7, *shape, dtype=torch.float64)
    x2 = torch.randn(4, *shape, dtype=torch.float64) if cross else None
    forms = {name: "materialise" for name, m in model.named_children() if any(True for _ in m.parameters())}
    kernel = pb.tangent_kernel(model, x, x2=x2, contract=contract, forms=forms)
    assert kernel.plan.condensed, "nothing was condensed"
    assert kernel.plan.batch < 7
    full = reference.tangent_kernel(model, x, x2)
    expected = {
        "full": full,
        "trace": full.diagonal(dim1=2, dim2=3).sum(-1),
        "diagonal": full.diagonal(dim1=2, dim2=3),
    }
    assert_same(kernel.total, expected[contract])
    for name, parameter in model.named_parameters():  # from the kept rows
        alone = pb.tangent_kernel(model, x, x2=x2, contract=contract, params=[name])
        assert_same(kernel.parameters[name], alone.total)
        assert parameter.grad is None


@pytest.mark.usefixtures("little")
def test_only_where_rows_are_smaller() -> None:
    model, x = net(), torch.randn(7, 2, 9, 13, dtype=torch.float64)
    plan = pb.tangent_kernel(model, x, contract="trace").plan
    for layer in plan.layers:
        if layer.condensed:
            assert layer.form == "materialise"
            assert layer.rows_bytes < layer.held_bytes
    assert "7.weight" not in plan.condensed


@pytest.mark.parametrize("make", [net, positions])
def test_condensed_factors_are_the_same_rows(make) -> None:
    from pullback.functional import ModelView
    from pullback.functional.readout import output_readout
    from pullback.gradients.capture.captured_rows import capture_factors

    model = make()
    x = torch.randn(5, *((2, 9, 13) if make is net else (20, 2)), dtype=torch.float64)
    captured = capture_factors(ModelView.of(model), output_readout(), x, None, "test")
    for factor in captured.factors:
        dense = factor.condensed()
        assert isinstance(dense, DenseFactor)
        rows = factor.rows(slice(0, 5))
        assert set(dense.gradients) == set(rows)
        for name, value in rows.items():
            assert_same(dense.gradients[name], value)


def test_a_small_kernel_is_made_in_one_pass() -> None:
    model, x = net(), torch.randn(7, 2, 9, 13, dtype=torch.float64)
    assert pb.tangent_kernel(model, x, contract="trace").plan.batch == 7


def test_under_a_limit_rows_are_planned_too() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(784 * 4, 2))
    x = torch.randn(400, 2, 32, 32)
    free = pb.tangent_kernel(model, x, contract="trace", memory_limit=10**12).plan
    limit = int(0.9 * free.peak_bytes)
    kernel = pb.tangent_kernel(model, x, contract="trace", memory_limit=limit)
    assert kernel.plan.peak_bytes <= limit
    assert kernel.plan.condensed
    assert_same(kernel.total, pb.tangent_kernel(model, x, contract="trace").total, 1e-4)
