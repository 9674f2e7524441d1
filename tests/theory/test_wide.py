"""Predictions on wide networks: constants, limits, slopes and bounds, each against an independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import pullback as pb
from pullback import theory
from pullback.modules import WideNetwork


@pytest.mark.parametrize(
    ("activation", "beta", "lipschitz"),
    [
        ("tanh", 4 / (3 * math.sqrt(3)), 1.0),
        (torch.sigmoid, 1 / (6 * math.sqrt(3)), 0.25),
        ("erf", 4 / math.sqrt(math.pi) / math.sqrt(2 * math.e), 2 / math.sqrt(math.pi)),
        ("silu", 0.5, 1.0998393194),
        ("gelu", 2 / math.sqrt(2 * math.pi), 1.1289041449),
        (torch.nn.functional.softplus, 0.25, 1.0),
        ("linear", 0.0, 1.0),
        ("relu", math.inf, 1.0),
    ],
)
def test_smoothness_constants(activation, beta, lipschitz):
    """S4-03; ReLU is not beta-smooth."""
    found = theory.smoothness_constants(activation)
    assert found.beta == pytest.approx(beta, rel=1e-9)
    assert found.lipschitz == pytest.approx(lipschitz, rel=1e-8)


def test_one_hidden_layer_by_quadrature():
    """S4-12, E4.1: the square of the slope, and not the slope."""
    for x in (1.0, -0.7):
        expected, _ = quad(
            lambda w, x=x: math.exp(-w * w / 2) / math.cosh(w * x) ** 4 / math.sqrt(2 * math.pi), -12, 12
        )
        found = theory.wide_network_kernels("tanh", 1, [[x]])[1][0, 0]
        assert found == pytest.approx(x * x * expected, rel=1e-10)
    assert theory.wide_network_kernels("tanh", 1, [[1.0]])[1][0, 0] == pytest.approx(0.4644029024482682, rel=1e-9)


@pytest.mark.parametrize("train_output", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_limits_against_wide_networks(depth, train_output):
    """S4-05: means over networks of width 600, within 4 standard errors and the 1 / m that finite width adds."""
    x = torch.tensor([[1.0, -0.5, 2.0], [0.3, 1.0, 1.1]], dtype=torch.float64)
    kinds = {"train_output": train_output, "dtype": torch.float64}
    drawn = [WideNetwork(3, [600] * depth, "erf", seed=s, **kinds) for s in range(8)]
    kernels = torch.stack([pb.tangent_kernel(model, x).total for model in drawn])
    _, expected = theory.wide_network_kernels("erf", depth, x.numpy(), train_output=train_output)
    error = 4 * kernels.std(0) / 8**0.5 + 4 * torch.as_tensor(expected).abs() / 600
    assert bool(((kernels.mean(0) - torch.as_tensor(expected)).abs() < error).all())
    cross = theory.wide_network_kernels("erf", depth, x[:1].numpy(), x[1:].numpy(), train_output=train_output)[1]
    assert cross[0, 0] == pytest.approx(expected[0, 1], rel=1e-12)


def test_slopes():
    """E4.8."""
    assert theory.hessian_slope(1, 64, 4096) == -0.5
    assert theory.hessian_slope(2, 64, 1024) == pytest.approx(-0.40787930072922424)
    assert theory.hessian_slope(3, 64, 512) == pytest.approx(-0.4025062498798073)
    assert theory.hessian_slope(2, 64, 1024, linear=False) == 0
    largest = [math.sqrt(2 * math.log(m) / m) for m in (64, 1024)]
    assert theory.hessian_slope(5, 64, 1024) == pytest.approx(math.log(largest[1] / largest[0]) / math.log(16))
    for low, high in ((1, 64), (64, 64), (64, 8)):
        with pytest.raises(pb.InputError, match="hessian_slope: expected 1 < `narrowest` < `widest`, got"):
            theory.hessian_slope(2, low, high)


def test_observation_four_on_random_weights():
    """S4-09: the bound with its constants is violated by none of 200 weights in two balls, and grows with R."""
    m = 256
    make = torch.Generator().manual_seed(0)
    x, z = 1.0, -0.6
    w0 = torch.randn(m, generator=make, dtype=torch.float64)
    v = torch.randint(2, (m,), generator=make) * 2.0 - 1

    def gradient(w, at):
        return v * (1 - torch.tanh(w * at) ** 2) * at / math.sqrt(m)

    eps = theory.smoothness_constants("tanh").beta / math.sqrt(m)  # of |x|, |z| at most 1, everywhere
    bounds = []
    for radius in (0.5, 2.0):
        bound = theory.kernel_change_bound(radius, eps, float(gradient(w0, x).norm()), float(gradient(w0, z).norm()))
        start = float(gradient(w0, x) @ gradient(w0, z))
        for _ in range(100):
            step = torch.randn(m, generator=make, dtype=torch.float64)
            w = w0 + radius * step / step.norm()
            assert abs(float(gradient(w, x) @ gradient(w, z)) - start) <= bound
        bounds.append(float(bound))
    assert bounds[1] > 4 * bounds[0]


def test_the_radius_of_gradient_descent():
    """S4-10: (w - 3)^2 / 2 from 0, whose path is 3; and a random quadratic at rate 1 / beta."""
    assert theory.path_radius(1.0, 1.0, 4.5) == 6.0
    make = torch.Generator().manual_seed(1)
    J = torch.randn(4, 9, generator=make, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(J @ J.T)
    mu, beta = float(eigenvalues[0]), float(eigenvalues[-1])
    w = torch.zeros(9, dtype=torch.float64)
    y = torch.randn(4, generator=make, dtype=torch.float64)
    loss = start = float((J @ w - y).square().sum()) / 2
    radius, length = theory.path_radius(beta, mu, start), 0.0
    for step in range(1, 200):
        move = J.T @ (J @ w - y) / beta
        w, length = w - move, length + float(move.norm())
        loss = float((J @ w - y).square().sum()) / 2
        assert loss <= (1 - mu / beta) ** step * start * (1 + 1e-9)
    assert float(w.norm()) <= length <= radius
    with pytest.raises(pb.InputError, match="path_radius: expected `mu` above 0"):
        theory.path_radius(1.0, 0.0, 1.0)
    with pytest.raises(pb.InputError, match="path_radius: expected `beta` above 0"):
        theory.path_radius(-1.0, 1.0, 1.0)
    with pytest.raises(pb.InputError, match="path_radius: expected a `loss` of at least 0, got -1"):
        theory.path_radius(1.0, 1.0, -1.0)


def test_the_non_linear_output_s_lower_bound():
    """S4-22: |phi''| |g|^2 - |phi'| |H| against dense matrices of random f, for swish, tanh and sine."""
    make = torch.Generator().manual_seed(2)
    for phi in (torch.nn.functional.silu, torch.tanh, torch.sin):
        for _ in range(20):
            A, g = (torch.randn(shape, generator=make, dtype=torch.float64) for shape in ((5, 5), (5,)))
            H, f = (A + A.T) / 20, torch.randn((), generator=make, dtype=torch.float64).requires_grad_()
            (first,) = torch.autograd.grad(phi(f), f, create_graph=True)
            (second,) = torch.autograd.grad(first, f)
            whole = second * torch.outer(g, g) + first.detach() * H
            norms = [float(torch.linalg.matrix_norm(M, 2)) for M in (whole, H)]
            bound = theory.output_hessian_bound(float(first.detach()), float(second), float(g.norm()), norms[1])
            assert float(bound) <= norms[0] * (1 + 1e-12)
    assert float(theory.output_hessian_bound(1.0, 0.0, 3.0, 0.2)) < 0  # tanh at 0 says nothing (E4.13)
    assert np.allclose(theory.output_hessian_bound([1.0, 0.5], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]), [-0.5, 0.75])
