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
from tests.thinned import thinned

RATE = 0.1


@pytest.mark.parametrize("options", thinned([{"momentum": 0.9, "nesterov": True}, {}, {"momentum": 0.9}]))
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
    rate = torch.cat([torch.full((30,), rates[0] / rates[1]), torch.full((21,), 1.0)]).double()  # over the largest
    P = (((largest if amsgrad else v) / (1 - beta**7)).sqrt() + eps) / rate
    H = reference.dense_hessian(model, loss_fn, x, y)
    expected = torch.linalg.eigvals(H / P.unsqueeze(1)).real.max()  # P^-1 H has the eigenvalues of P^-1/2 H P^-1/2
    found = preconditioned_sharpness(model, loss_fn, (x, y), optimizer, tol=1e-6)
    assert_same(found.values[0], expected, 1e-6)


class Quadratic(nn.Module):
    """Vectors w of several parts, and x . w for samples x: the mean squared error has the Hessian 2 X^T X / N."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = nn.ParameterList(torch.ones(2, dtype=torch.float64) for _ in range(parts))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat(list(self.parts)).unsqueeze(1)


KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "rates": ({"lr": 0.3}, {"lr": 0.01}, {"lr": 0.05}),
    "momenta": ({"lr": 0.1, "momentum": 0.9}, {"lr": 0.1}, {"lr": 0.2, "momentum": 0.5}),
    "Nesterov's": (
        {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"lr": 0.4}, {"lr": 0.2, "momentum": 0.8, "nesterov": True}
    ),
    "dampened": ({"lr": 0.1, "momentum": 0.9, "dampening": 0.8}, {"lr": 0.1, "momentum": 0.5}, {"lr": 0.3}),
    "one at rest": ({"lr": 0.1}, {"lr": 0.0}, {"lr": 0.2, "momentum": 0.3}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "several"), thinned(tuple(KINDS), [False, True]))
def test_unequal_groups_converge_exactly_below_the_limit(kind: str, several: bool) -> None:
    """Optimisers of torch run on quadratics, rates five percent below and above, in every order of the groups."""
    torch.manual_seed(0)
    x, y, model = torch.randn(9, 6, dtype=torch.float64), torch.zeros(9, 1, dtype=torch.float64), Quadratic(3)

    def made(factor: float, order: tuple[int, ...]) -> list[torch.optim.Optimizer]:
        groups = [{"params": [model.parts[k]], **KINDS[kind][k], "lr": factor * KINDS[kind][k]["lr"]} for k in order]
        return [torch.optim.SGD([g]) for g in groups] if several else [torch.optim.SGD(groups)]

    found = set()
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        optimizers = made(1.0, order)
        value = float(preconditioned_sharpness(model, nn.MSELoss(), (x, y), optimizers, tol=1e-10).values[0])
        found.add((stability_limit(optimizers), round(value, 9)))
    ((limit, value),) = found  # whatever the order
    assert limit is not None
    assert value <= float(torch.linalg.eigvalsh(2 * x.T @ x / 9)[-1]) + 1e-9  # the Hessian's own is never lower
    H, ends = 2 * x.T @ x / 9, []
    for factor in (0.95 * limit / value, 1.05 * limit / value):
        with torch.no_grad():
            for part in model.parts:
                part.fill_(1.0)
        optimizers = made(factor, (0, 1, 2))
        for _ in range(400):
            slope = H @ torch.cat(list(model.parts)).detach()
            for part, each in zip(model.parts, slope.split(2), strict=True):
                part.grad = each
            for optimizer in optimizers:
                optimizer.step()
        ends.append(float(torch.cat(list(model.parts)).detach().abs().max()))
    assert ends[0] < 10
    assert not ends[1] < 1e3


def test_what_takes_no_steps_is_left_out() -> None:
    """Parameters without a group, and those whose gradient Adam was never given; frozen ones are not seen."""
    model, loss_fn, x, y = problem()
    optimizer = torch.optim.SGD(model[2].parameters(), 0.1)
    body = slice(30, None)
    H = reference.dense_hessian(model, loss_fn, x, y)
    found = preconditioned_sharpness(model, loss_fn, (x, y), optimizer, tol=1e-8)
    assert_same(found.values[0], torch.linalg.eigvalsh(H[body, body])[-1], 1e-6)
    adam = torch.optim.Adam(model.parameters(), 0.1, eps=1e-3)
    model[0].requires_grad_(False)
    loss_fn(model(x), y).backward()
    adam.step()  # none on the first layer
    H = reference.dense_hessian(model[2], loss_fn, model[:2](x).detach(), y)
    model[0].requires_grad_(True)
    P = adam.state[model[2].weight]["exp_avg_sq"], adam.state[model[2].bias]["exp_avg_sq"]
    root = (torch.cat([(v / (1 - 0.999)).sqrt().flatten() + 1e-3 for v in P]).rsqrt()).detach()
    expected = torch.linalg.eigvalsh(root.unsqueeze(1) * H * root)[-1]
    assert_same(preconditioned_sharpness(model, loss_fn, (x, y), adam, tol=1e-8).values[0], expected, 1e-6)
    adam.param_groups.append({**adam.param_groups[0], "params": [nn.Parameter(torch.zeros(1))], "lr": 99.0})
    assert stability_limit(adam) == pytest.approx(380 / 990)
    assert stability_limit(adam, model.parameters()) == pytest.approx(380)  # another model's group is no matter
    for p in adam.param_groups[1]["params"]:
        p.requires_grad_(False)
    assert stability_limit(adam) == pytest.approx(380)


def test_gradient_descent_of_equal_groups_is_the_hessian_s_own() -> None:
    model, loss_fn, x, y = problem()
    groups = [{"params": layer.parameters()} for layer in (model[0], model[2])]
    found = preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.SGD(groups, 0.1), tol=1e-8)
    assert_same(found.values[0], torch.linalg.eigvalsh(reference.dense_hessian(model, loss_fn, x, y))[-1], 1e-6)


@pytest.mark.parametrize("rate", [None, "fast", float("nan")])
def test_a_rate_that_is_no_number_has_no_limit(rate: Any) -> None:
    w = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": w[:1]}, {"params": w[1:]}], 0.1)
    optimizer.param_groups[1]["lr"] = rate
    assert stability_limit(optimizer) is None
    assert stability_limit(optimizer, w[:1]) == 20
    optimizer.param_groups[1]["lr"] = torch.tensor(0.5)
    assert stability_limit(optimizer) == 4
    optimizer.param_groups[0]["maximize"] = True
    assert stability_limit(optimizer) is None
    del optimizer.param_groups[1]["lr"]
    assert stability_limit(optimizer, w[1:]) is None


def test_what_has_no_preconditioner_is_refused() -> None:
    model, loss_fn, x, y = problem()
    with pytest.raises(pb.InputError, match="expected SGD, Adam or AdamW, got RMSprop"):
        preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.RMSprop(model.parameters(), 0.1))
    with pytest.raises(pb.InputError, match="learning rates of which one is above 0, got 0"):
        preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.SGD(model.parameters(), 0.0))
    with pytest.raises(pb.InputError, match="steps made on every parameter, got none on `0.weight`"):
        preconditioned_sharpness(model, loss_fn, (x, y), torch.optim.Adam(model.parameters()))
