"""Noisy gradients on quadratics (S0-40, S1-55, S1-57, S3-15), against simulation and dense recursions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback import dynamics
from pullback.dynamics import Quadratic, batch_covariance, noisy_moments

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[2] / "data" / "dynamics.json").read_text())["quadratics"]
A = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.2], [0.0, -0.2, 0.7]], dtype=F64)
C = torch.tensor([[0.5, 0.1, 0.0], [0.1, 0.2, 0.05], [0.0, 0.05, 0.3]], dtype=F64)
B = torch.tensor([0.3, -0.2, 1.0], dtype=F64)
X0 = torch.tensor([1.0, -2.0, 0.5], dtype=F64)


@pytest.mark.parametrize("row", KNOWN["sgd_noise"]["table"], ids=lambda row: f"{row['eta']}-{row['lam']}")
def test_stationary_variance_of_the_seeds(row: dict[str, float]) -> None:
    problem = Quadratic([row["lam"]])
    found = float(problem.stationary_covariance(row["eta"], 1.0))
    assert found == pytest.approx(row["stationary_var_per_sigma2"], rel=1e-10)
    assert found * row["lam"] / 2 == pytest.approx(row["stationary_loss_per_sigma2"], rel=1e-10)


def test_moments_are_the_recursion() -> None:
    """Additive and relative noise, against the recursion of full matrices."""
    lr, s = 0.4, 0.3
    found = noisy_moments(Quadratic(A, B), X0, 12, lr=lr, noise_covariance=C, relative_noise=s)
    h, Q = torch.linalg.eigh(A)
    centre = -torch.linalg.solve(A, B)
    mean, second = X0.clone(), torch.outer(X0 - centre, X0 - centre)
    T = torch.eye(3, dtype=F64) - lr * A
    for step in range(13):
        away = mean - centre
        torch.testing.assert_close(found.mean[step], mean)
        torch.testing.assert_close(found.covariance[step], second - torch.outer(away, away), rtol=1e-9, atol=1e-12)
        assert float(found.excess_loss[step]) == pytest.approx(float((A * second).sum() / 2), rel=1e-10)
        relative = (Q * (h.square() * (Q.T @ second @ Q).diagonal())) @ Q.T
        mean, second = mean - lr * (A @ mean + B), T @ second @ T.T + lr**2 * (C + s**2 * relative)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_stationary_covariance_solves_its_equation(momentum: float) -> None:
    lr = 0.3
    found = Quadratic(A, B).stationary_covariance(lr, C, momentum)
    eye, zero = torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)
    M = torch.cat([torch.cat([(1 + momentum) * eye - lr * A, -momentum * eye], 1), torch.cat([eye, zero], 1)])
    brought = torch.zeros(6, 6, dtype=F64)
    brought[:3, :3] = lr**2 * C
    for _ in range(12):  # sum of M^k brought (M^k)^T, by doubling
        brought, M = brought + M @ brought @ M.T, M @ M
    torch.testing.assert_close(found, brought[:3, :3], rtol=1e-9, atol=1e-12)
    h = 5.0
    one = float(Quadratic([h]).stationary_covariance(0.1, 2.0, momentum))
    by_hand = 0.1 * 2.0 * (1 + momentum) / (h * (1 - momentum) * (2 * (1 + momentum) - 0.1 * h))
    assert one == pytest.approx(by_hand, rel=1e-12)


def simulated(problem: Quadratic, steps: int, lr: float, chains: int, momentum: float = 0.0) -> Tensor:
    made = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(C)
    x = X0.expand(chains, 3).clone()
    p = torch.zeros_like(x)
    for _ in range(steps):
        noise = torch.randn(chains, 3, generator=made, dtype=F64) @ root.T
        p = momentum * p - lr * (problem.gradient(x) + noise)
        x = x + p
    return x


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_simulated_chains_settle_there(momentum: float) -> None:
    """Within five standard errors of a variance over 20,000 chains, sqrt(2 / chains) of it."""
    chains, problem = 20_000, Quadratic(A, B)
    x = simulated(problem, 150, 0.3, chains, momentum)
    expected = problem.stationary_covariance(0.3, C, momentum)
    scale = expected.diagonal().sqrt()
    error = 5 * torch.outer(scale, scale) * (2 / chains) ** 0.5
    assert ((torch.cov(x.T) - expected).abs() < error).all()
    assert ((x.mean(0) - problem.minimiser).abs() < 5 * scale / chains**0.5).all()


def test_chains_of_the_seeds() -> None:
    """S0-40: eta = 0.019, lam = 100: a stationary variance of 1.9e-3, to 3 percent in 20,000 chains."""
    starts = torch.zeros(20_000, 1, dtype=F64)
    make = lambda p: torch.optim.SGD(p, lr=0.019)
    path = dynamics.simulate(make, Quadratic([100.0]), starts, 60, noise_covariance=1.0)
    known = float(Quadratic([100.0]).stationary_covariance(0.019, 1.0))
    assert known == pytest.approx(1.9e-3, rel=1e-12)
    assert float(path.x[:, -1].square().mean()) == pytest.approx(known, rel=0.03)


def test_variance_of_a_networks_batches() -> None:
    """S1-55: times the batch size it is constant within 10 percent, drawn with replacement, batch by batch."""
    made = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    x, y = torch.randn(2, 64, 3, generator=made, dtype=F64)
    G = pb.reference.gradient_matrix(model, torch.nn.MSELoss(), x, y[:, :1])
    times = []
    for size in (1, 4, 16, 64):
        batches = torch.randint(64, (4000, size), generator=made)
        times.append(size * float(G[batches].mean(1).var(0).sum()))
    exact = float(batch_covariance(G, 1, replacement=True).trace())
    assert times == pytest.approx([exact] * 4, rel=0.1)


def test_the_walk_at_the_limit() -> None:
    """E0.8: at lr h = 2 the variance is k lr^2."""
    found = noisy_moments(Quadratic([100.0]), [0.0], 100, lr=0.02, noise_covariance=1.0).covariance
    torch.testing.assert_close(found.flatten(), torch.arange(101, dtype=F64) * 0.02**2, rtol=1e-9, atol=0)


def test_relative_noise_lowers_the_limit() -> None:
    """To 2 / (h (1 + s^2)), just inside and just outside."""
    h, s = 3.0, 0.5
    limit = 2 / (h * (1 + s**2))
    for factor, inside in ((0.99, True), (1.01, False)):
        found = noisy_moments(Quadratic([h]), [1.0], 400, lr=factor * limit, relative_noise=s).excess_loss
        assert bool(found[-1] < found[0]) is inside


def test_large_then_small() -> None:
    """S1-57: after the rate falls the variance goes from one stationary value to the other."""
    problem = Quadratic([100.0])
    large, small = (float(problem.stationary_covariance(lr, 1.0)) for lr in (0.019, 0.001))
    first = noisy_moments(problem, [0.0], 2000, lr=0.019, noise_covariance=1.0).covariance[-1]
    assert float(first) == pytest.approx(large, rel=1e-9)
    kept = (1 - 0.1) ** (2 * 100)  # of the variance there was, after 100 steps
    assert large / small == pytest.approx((0.019 / (2 - 1.9)) / (0.001 / (2 - 0.1)), rel=1e-12)
    after = noisy_moments(problem, [large**0.5], 100, lr=0.001, noise_covariance=1.0)
    second = float(after.covariance[-1] + after.mean[-1].square())
    assert second == pytest.approx(small + kept * (large - small), rel=1e-9)


def test_batches() -> None:
    """S3-15, and that the law is that of all batches there are."""
    population = list(range(10))
    known = KNOWN["minibatch_variance"]
    assert float(batch_covariance(population, 4, replacement=True)) == known["S=4_with_replacement"]
    assert float(batch_covariance(population, 4)) == pytest.approx(known["S=4_without_replacement"], rel=1e-12)
    G = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    for replacement in (False, True):
        places = torch.cartesian_prod(*[torch.arange(6)] * 3)
        if not replacement:
            places = torch.stack([row for row in places if len(set(row.tolist())) == 3])
        means = G[places].mean(1)
        torch.testing.assert_close(
            batch_covariance(G, 3, replacement=replacement), torch.cov(means.T, correction=0), rtol=1e-10, atol=1e-14
        )
    assert float(batch_covariance(population, 10)) == 0
    assert float(batch_covariance([3.0], 1)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: batch_covariance([1.0, 2.0], 3),
            r"at most the 2 samples without replacement, got 3\. Pass replacement",
        ),
        (lambda: batch_covariance([1.0], 0), r"`batch_size` at least 1, got 0"),
        (lambda: batch_covariance([[[1.0]]], 1), r"gradients \(N, P\) or \(N,\), got shape \(1, 1, 1\)"),
        (
            lambda: Quadratic([1.0]).stationary_covariance(2.0, 1.0),
            r"a rate below the largest stable one, got lr 2, whose limit is 2",
        ),
        (lambda: Quadratic([1.0, 0.0]).stationary_covariance(0.1, 1.0), r"positive curvatures .* got a curvature of 0"),
        (lambda: Quadratic([1.0]).stationary_covariance(0.0, 1.0), r"`lr` above 0"),
        (lambda: Quadratic([1.0]).stationary_covariance(0.1, 1.0, momentum=1.0), r"`momentum` in \[0, 1\)"),
        (
            lambda: Quadratic([1.0]).stationary_covariance(0.1, [1.0, 1.0]),
            r"a number, \(1,\) or \(1, 1\), got shape \(2,\)",
        ),
        (
            lambda: Quadratic([1.0]).stationary_covariance(0.1, -1.0),
            r"a covariance without negative variances, got an eigenvalue -1",
        ),
        (lambda: noisy_moments(Quadratic([1.0]), [1.0], 3, lr=-1.0), r"`lr` above 0, got -1\.0"),
        (lambda: noisy_moments("quadratic", [1.0], 3, lr=1.0), r"`problem` to be a Quadratic, got 'quadratic'"),  # type: ignore[arg-type]
        (lambda: noisy_moments(Quadratic([1.0]), [1.0], 3, lr=None), r"`lr` above 0, got None"),  # type: ignore[arg-type]
        (
            lambda: noisy_moments(Quadratic([1.0]), [1.0], 3, lr=1.0, relative_noise="0"),  # type: ignore[arg-type]
            r"`relative_noise` of at least 0, got '0'",
        ),
        (lambda: batch_covariance([1j, 2.0], 1), r"real numbers in `gradients`"),
        (lambda: batch_covariance([1.0, 2.0], 1.5), r"`batch_size` at least 1, got 1\.5"),  # type: ignore[arg-type]
        (lambda: Quadratic([1.0]).stationary_covariance(0.1, "big"), r"numbers in `noise_covariance`, got str"),
        (
            lambda: noisy_moments(Quadratic([1.0]), [1.0], 3, lr=1.0, relative_noise=-1.0),
            r"`relative_noise` of at least 0",
        ),
        (lambda: noisy_moments(Quadratic([1.0]), [[1.0]], 3, lr=1.0), r"one start \(d,\), got shape \(1,\) of them"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
