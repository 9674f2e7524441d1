"""Limits of the learning rate by running optimisers on quadratics, and Adam's metric against dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.diagnostics import preconditioned_sharpness, stability_limit
from tests.compare import assert_same

RATE = 0.1


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_limits_divide_what_converges_from_what_does_not(options: dict[str, Any]) -> None:
    """Gradient descent on a w^2 / 2, two percent below and above the limit."""
    ends = []
    for factor in (0.98, 1.02):
        w = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], RATE, **options)
        curvature = factor * stability_limit(optimizer)
        for _ in range(3000):
            optimizer.zero_grad()
            (curvature * w.square() / 2).sum().backward()
            optimizer.step()
        ends.append(abs(float(w.detach())))
    assert ends[0] < 1e-3
    assert not ends[1] < 1e3


def test_limit_of_adam_with_its_second_moments_held() -> None:
    """w' = w - lr m / p, m the mean of gradients a w: the limit is on a / p."""
    beta, p = 0.9, 3.0
    limit = stability_limit(torch.optim.Adam([torch.zeros(1, requires_grad=True)], RATE))
    ends = []
    for factor in (0.98, 1.02):
        w, m = 1.0, 0.0
        for _ in range(5000):
            m = beta * m + (1 - beta) * factor * limit * p * w
            w -= RATE * m / p
        ends.append(abs(w))
    assert ends[0] < 1e-3
    assert not ends[1] < 1e3


def test_no_limit_where_none_is_known() -> None:
    w = [torch.zeros(1, requires_grad=True)]
    assert stability_limit(torch.optim.RMSprop(w, 0.1)) is None
    assert stability_limit(torch.optim.SGD(w, 0.0)) is None


def problem() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, nn.CrossEntropyLoss(), torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_preconditioned_hessian_from_the_steps_adam_makes(
    kind: Callable[..., torch.optim.Optimizer], amsgrad: bool
) -> None:
    """P from moments kept by hand, for two groups of unequal rates, against a dense eigenvalue problem."""
    model, loss_fn, x, y = problem()
    rates, eps, beta = (1e-2, 3e-2), 1e-3, 0.99
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()], "lr": rates[1]}]
    optimizer = kind(groups, lr=rates[0], eps=eps, betas=(0.9, beta), amsgrad=amsgrad)
    v = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    largest = v.clone()
    for _ in range(7):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        g = torch.cat([p.grad.flatten() for p in model.parameters()])
        v = beta * v + (1 - beta) * g**2
        largest = torch.maximum(largest, v)
        optimizer.step()
    rate = torch.cat([torch.full((30,), 1.0), torch.full((21,), rates[1] / rates[0])]).double()
    P = (((largest if amsgrad else v) / (1 - beta**7)).sqrt() + eps) / rate
    H = reference.dense_hessian(model, loss_fn, x, y)
    expected = torch.linalg.eigvals(H / P.unsqueeze(1)).real.max()  # P^-1 H has the eigenvalues of P^-1/2 H P^-1/2
    found = preconditioned_sharpness(model, loss_fn, (x, y), optimizer, tol=1e-6)
    assert_same(found.values[0], expected, 1e-6)


def test_what_has_no_preconditioner_is_refused() -> None:
    model, loss_fn, x, y = problem()
    with pytest.raises(pb.InputError, match="expected Adam or AdamW, got SGD"):
        preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(pb.InputError, match="steps made on every parameter, got none on `0.weight`"):
        preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.Adam(model.parameters()))
