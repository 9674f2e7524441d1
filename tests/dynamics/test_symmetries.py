"""Symmetries and scales of networks that shape their landscape (S3-06, S3-07, S3-12)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback import dynamics

F64 = torch.float64


def network(hidden: int = 4, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), activation(), nn.Linear(hidden, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, generator=made, dtype=F64)
    return x, torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:]


def permuted(w: Tensor, order: list[int], hidden: int = 4) -> Tensor:
    """Flat parameters with the hidden units in another order."""
    a, b, c, d = w.split([3 * hidden, hidden, hidden, 1])
    return torch.cat([a.reshape(hidden, 3)[order].flatten(), b[order], c[order], d])


def test_permuted_units_are_the_same_function() -> None:
    """S3-06: and halfway between two such minima the loss is larger, so no network with them is convex."""
    torch.manual_seed(0)
    x, y = data()
    world = dynamics.network_landscape(network(), nn.MSELoss(), x, y)
    fit = lambda p: torch.optim.LBFGS(p, max_iter=300, line_search_fn="strong_wolfe")
    w = dynamics.simulate(fit, world, None, 1).x[-1]
    other = permuted(w, [2, 0, 3, 1])
    assert float((world(w) - world(other)).abs()) < 1e-12
    assert float((w - other).norm()) > 0.1
    assert float(world((w + other) / 2)) > float(world(w)) + 0.01


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_equal_units_stay_equal(kind: str) -> None:
    """S3-07: their gradients are the same and not 0, so no step ever parts them."""
    x, y = data()

    def loss(w: Tensor) -> Tensor:  # unit by unit: a product of matrices may round each of its rows in another way
        a, b, c, d = w.split([12, 4, 4, 1])
        units = [c[k] * torch.tanh((x * a[3 * k : 3 * k + 3]).sum(1) + b[k]) for k in range(4)]
        return (units[0] + units[1] + units[2] + units[3] + d - y[:, 0]).square().mean()

    start = torch.randn(21, generator=torch.Generator().manual_seed(0), dtype=F64)
    start[3:6], start[13], start[17] = start[:3].clone(), start[12].clone(), start[16].clone()
    make = {"SGD": lambda p: torch.optim.SGD(p, lr=0.1), "Adam": lambda p: torch.optim.Adam(p, lr=0.01)}[kind]
    found = dynamics.simulate(make, loss, start, 100)
    a, b, c, _ = found.x.split([12, 4, 4, 1], dim=-1)
    rows = a.reshape(-1, 4, 3)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert torch.equal(b[:, 0], b[:, 1])
    assert torch.equal(c[:, 0], c[:, 1])
    assert not torch.equal(rows[:, 0], rows[:, 2])
    slope = torch.func.grad(loss)(found.x[-1])
    assert float(slope[:3].abs().max()) > 1e-6


def test_weights_of_zero() -> None:
    """S3-07: all weight gradients vanish there; the output's bias is all that is learned."""
    x, y = data()
    world = dynamics.network_landscape(network(), nn.MSELoss(), x, y)
    slope = torch.func.grad(world.function)(torch.zeros_like(world.start))
    assert bool((slope[:-1] == 0).all())
    assert float(slope[-1].abs()) > 1e-3


def condition(x: Tensor) -> float:
    values = torch.linalg.eigvalsh(x.T @ x / len(x))
    return float(values[-1] / values[0])


def test_standardised_inputs() -> None:
    """S3-12: mean 0, deviation 1, and a matrix of second moments that is conditioned better: fewer steps."""
    made = torch.Generator().manual_seed(2)
    raw = torch.randn(200, 3, generator=made, dtype=F64) * torch.tensor([10.0, 1.0, 0.2], dtype=F64) + 3.0
    done = (raw - raw.mean(0)) / raw.std(0)
    torch.testing.assert_close(done.mean(0), torch.zeros(3, dtype=F64), rtol=0, atol=1e-6)
    torch.testing.assert_close(done.std(0), torch.ones(3, dtype=F64), rtol=0, atol=1e-6)
    assert condition(done) < 2 < 100 < condition(raw)
    steps = {}
    for name, x in (("raw", raw), ("done", done)):
        problem = dynamics.Quadratic(x.T @ x / len(x))
        best = problem.optimal("gradient_descent").lr
        make = lambda p, lr=best: torch.optim.SGD(p, lr=lr)
        steps[name] = float(dynamics.simulate(make, problem, None, 3000).steps_to(1e-6))
    assert steps["done"] < 20 < steps["raw"]


def test_centred_activations() -> None:
    """S3-12: what tanh hands on has mean about 0, what the logistic function does has not, and is conditioned worse."""
    torch.manual_seed(3)
    x = torch.randn(500, 20, dtype=F64)
    layer = nn.Linear(20, 20).double()
    after = {kind: kind()(layer(x)).detach() for kind in (nn.Tanh, nn.Sigmoid)}
    means = {kind: float(h.mean().abs()) for kind, h in after.items()}
    assert means[nn.Tanh] < 0.1 < 0.4 < means[nn.Sigmoid]
    assert condition(after[nn.Sigmoid]) > 10 * condition(after[nn.Tanh])
