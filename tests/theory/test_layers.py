"""Curves, Jacobians, batch norm and infinite-width kernels against numbers computed independently."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pullback as pb
from pullback.theory import MeanField, batch_norm_gradient_factor, infinite_width_kernels, residual_profile

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "theory.json").read_text())


@pytest.mark.parametrize("row", KNOWN["curvature"]["tanh"])
def test_curve_metrics(row: dict[str, Any]) -> None:
    """S1-19."""
    metrics = MeanField("tanh", row["sigma_w"], row["sigma_b"]).curve_metrics(row["trace"][-1]["l"])
    for entry in row["trace"]:
        layer = entry["l"]
        assert metrics.euclidean[layer] == pytest.approx(entry["gE"], rel=1e-10)
        assert metrics.curvature[layer] == pytest.approx(entry["Nkappa2"], rel=1e-10)
        assert metrics.gauss[layer] == pytest.approx(entry["gG"], rel=1e-10)
    fixed = row["Nkappa2_fixed_point"]
    assert metrics.fixed_point == (math.inf if fixed is None else pytest.approx(fixed, rel=1e-10))


def test_a_circle_has_the_metrics_of_a_circle() -> None:
    """S1-16: h of squared radius N q has g^E / N = q, N kappa^2 = 1 / q and g^G = 1."""
    metrics = MeanField("tanh", 1.3, 0.3).curve_metrics(1)
    q = MeanField("tanh", 1.3, 0.3).q_star
    assert (metrics.euclidean[0], metrics.curvature[0], metrics.gauss[0]) == pytest.approx((q, 1 / q, 1))
    assert metrics.euclidean_length[0] == pytest.approx(2 * math.pi * math.sqrt(q))
    assert metrics.gauss_length[0] == pytest.approx(2 * math.pi)


@pytest.mark.parametrize("row", KNOWN["jacobian_critical"])
def test_jacobian_moments(row: dict[str, Any]) -> None:
    """S1-29, S1-30, S1-32."""
    net = MeanField(row["act"], row["sigma_w"], row["sigma_b"])
    for depth, both in row["sigma2_JJ"].items():
        for init, expected in both.items():
            moments = net.jacobian_moments(int(depth), init)
            assert moments.mean == pytest.approx(1, abs=1e-6)
            assert moments.relative_variance == pytest.approx(expected, abs=1e-9 * max(1, expected))
            assert moments.variance == pytest.approx(moments.mean**2 * moments.relative_variance)


def test_finite_batches() -> None:
    """S1-34, S1-39: exact for the identity; the other reference values are means of simulations, to three digits."""
    factors = KNOWN["batchnorm"]["finite_batch_factor"]
    for size, expected in factors["identity"].items():
        assert batch_norm_gradient_factor("linear", int(size)) == pytest.approx(expected, abs=1e-10)
        assert expected == pytest.approx((int(size) - 2) / (int(size) - 3))
    for name in ("relu", "tanh"):
        for size in ("4", "8", "128"):
            found = batch_norm_gradient_factor(name, int(size))
            assert found == pytest.approx(factors[name][size], abs=2e-3)


@pytest.mark.parametrize("size", [4, 5, 6, 7, 8, 12, 32, 128])
def test_relu_over_any_batch(size: int) -> None:
    """Yang et al. (2019), theorem 8, by the arc-cosine kernel J at c = -1 / (B - 1) and its derivative."""
    c = -1 / (size - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    kernel = math.sqrt(1 - c * c) / math.pi + slope * c
    expected = (slope + size - 1) / ((size - 3) * (1 - kernel)) - 1 / (size - 3)
    assert batch_norm_gradient_factor("relu", size) == pytest.approx(expected, abs=1e-11)


def test_large_batches() -> None:
    for name, expected in KNOWN["batchnorm"]["large_batch_limit"].items():
        known = "linear" if name == "identity" else name
        assert batch_norm_gradient_factor(known) == pytest.approx(expected, abs=1e-12)
        assert batch_norm_gradient_factor(known, 1024) == pytest.approx(expected, rel=4e-3)
    assert batch_norm_gradient_factor("relu") == pytest.approx(math.pi / (math.pi - 1), abs=1e-12)


def test_batch_norm_by_simulation() -> None:
    """One wide layer's backward factor over a batch of 8, measured, within four standard errors."""
    torch.manual_seed(0)
    B, width, ratios = 8, 1500, []
    for _ in range(24):
        h = torch.randn(B, width, dtype=torch.float64)
        h = h - h.mean(0)
        x = torch.relu(math.sqrt(B) * h / h.norm(dim=0)).requires_grad_()  # a layer's outputs after batch norm
        w = torch.randn(width, width, dtype=torch.float64) / math.sqrt(width)
        z = x @ w
        centred = z - z.mean(0)
        y = torch.relu(math.sqrt(B) * centred / centred.norm(dim=0))
        g = torch.randn_like(y)
        g = g - g.mean(0)  # as what comes back through the batch norm above is
        (back,) = torch.autograd.grad(y, x, g)
        ratios.append(float(back.square().mean() / g.square().mean()))
    found, error = np.mean(ratios), np.std(ratios) / math.sqrt(len(ratios))
    assert abs(found - batch_norm_gradient_factor("relu", B)) < 4 * error


@pytest.mark.parametrize("row", KNOWN["ntk"]["table"])
def test_infinite_width_kernels(row: dict[str, Any]) -> None:
    """S1-15, S4-05: ReLU and erf, both parametrisations, and what each layer contributes."""
    first, second = (KNOWN["ntk"]["inputs"][name] for name in row["pair"])
    arguments = (row["act"], row["hidden_layers"], row["sigma_w"], row["sigma_b"], [first], [second])
    nngp, ntk = infinite_width_kernels(*arguments)
    assert nngp[0, 0] == pytest.approx(row["nngp"], abs=1e-9)
    assert ntk[0, 0] == pytest.approx(row["ntk"], abs=1e-9)
    _, standard = infinite_width_kernels(*arguments, "standard", width=512)
    assert standard[0, 0] == pytest.approx(row["standard_param_width512_with_bias"], rel=1e-9)
    _, layers = infinite_width_kernels(*arguments, by_layer=True)
    expected = [weights + biases for weights, biases in zip(row["layer_W"], row["layer_b"], strict=True)]
    assert layers[:, 0, 0] == pytest.approx(expected, abs=1e-9)
    assert layers.sum(0) == pytest.approx(ntk, rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "gelu", "leaky_relu"])
def test_matrices_are_symmetric_and_positive(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    for kernel in infinite_width_kernels(name, 3, 1.4, 0.2, x):
        assert kernel == pytest.approx(kernel.T, abs=1e-12)
        assert np.linalg.eigvalsh(kernel).min() > 0
    whole = infinite_width_kernels(name, 3, 1.4, 0.2, x, x[:2])
    for kernel, part in zip(infinite_width_kernels(name, 3, 1.4, 0.2, x), whole, strict=True):
        assert part == pytest.approx(kernel[:, :2], abs=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: MeanField("tanh", 1.3, 0.3).curve_metrics(0),
            r"curve_metrics: expected a `depth` of at least 1, got 0",
        ),
        (
            lambda: MeanField("relu", 1.2, 0.3).curve_metrics(2),
            r"curve_metrics: expected a smooth activation, got relu",
        ),
        (
            lambda: MeanField("tanh", 1.2, 0.3, 0.9).curve_metrics(2),
            r"expected a network without dropout, got keep_prob",
        ),
        (lambda: MeanField("tanh", 0.5).curve_metrics(2), r"expected a finite length above zero, got q_star 0"),
        (lambda: MeanField("tanh", 1.2, 0.3).jacobian_moments(3, "uniform"), r"jacobian_moments: expected `init`"),
        (lambda: MeanField("tanh", 1.2, 0.3, 0.9).jacobian_moments(3), r"expected a network without dropout"),
        (
            lambda: MeanField("gelu", 2.0, 0.1).jacobian_moments(3),
            r"jacobian_moments: expected lengths that settle, got",
        ),
        (lambda: batch_norm_gradient_factor("relu", 3), r"expected a `batch_size` of at least 4, got 3"),
        (lambda: batch_norm_gradient_factor(lambda u: 0 * u + 1), r"expected an activation that is not constant"),
        (lambda: infinite_width_kernels("relu", 2, 1, 0, [1.0]), r"expected finite `x1` \(N, d\), got shape \(1,\)"),
        (lambda: infinite_width_kernels("relu", 2, 1, 0, [[math.nan]]), r"finite `x1` \(N, d\), got NaN or infinity"),
        (
            lambda: infinite_width_kernels("relu", 2, 1, 0, [[1.0]], [[1.0, 2]]),
            r"expected `x2` \(N2, 1\), got \(1, 2\)",
        ),
        (lambda: infinite_width_kernels("relu", 2, 1, -1, [[1.0]]), r"expected `sigma_b` of at least 0, got -1"),
        (lambda: infinite_width_kernels("relu", 2, 1, 0, [[1.0]], parametrisation="standard"), r"expected `width` for"),
        (lambda: infinite_width_kernels("relu", 2, 1, 0, [[1.0]], width=3), r"expected `width` for .*got 3. Leave it"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_residual_networks() -> None:
    """S1-05: Gaussian branches multiply lengths and gradients by 1 + eps^2 a block, 2.7048 for eps = 0.1 and 100."""
    profile = residual_profile("linear", 1.0, 0.0, 100, scale=0.1)
    assert profile.length[-1] == pytest.approx(1.01**100)
    assert profile.gradient[0] == pytest.approx(2.7048, abs=1e-4)
    assert profile.correlation == pytest.approx(np.full(101, 0.5))
    tanh, relu = (residual_profile(name, 1.5, 0.0, 64) for name in ("tanh", "relu"))
    steps = np.diff(tanh.length)
    assert steps[-1] == pytest.approx(steps[32], rel=0.05)  # lengths grow linearly
    assert relu.length[-1] / relu.length[32] == pytest.approx((1 + 1.5**2 / 2) ** 32)
    logs = np.log(tanh.gradient)
    assert (logs[0] - logs[32]) > 1.5 * (logs[32] - logs[64])  # most of the growth comes early: not exponential
    scaled = residual_profile("relu", 1.5, 0.0, 400, scale=400**-0.5)
    assert scaled.gradient[0] == pytest.approx(math.exp(1.5**2 / 2), rel=0.01)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradients_of_residual_blocks(scale: float) -> None:
    """Each block multiplies them by 1 + (scale sigma_w)^2 E phi'(sqrt(q) z)^2, at the length q that enters it."""
    profile = residual_profile("tanh", 1.5, 0.3, 6, scale=scale)
    z = np.linspace(-10, 10, 4001)  # the trapezoid rule: exact to rounding for a function that falls off so fast
    weights = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    for k in range(6):
        q = profile.length[k]
        slope = weights @ (1 - np.tanh(math.sqrt(q) * z) ** 2) ** 2
        assert profile.gradient[k] / profile.gradient[k + 1] == pytest.approx(1 + (1.5 * scale) ** 2 * slope, rel=1e-9)
        square = weights @ np.tanh(math.sqrt(q) * z) ** 2
        grown = (1.5 * scale) ** 2 * square + (0.3 * scale) ** 2
        assert profile.length[k + 1] - q == pytest.approx(grown, rel=1e-9)


def test_a_real_residual_network() -> None:
    torch.manual_seed(0)
    width, depth = 1000, 20
    x = torch.randn(2, width, dtype=torch.float64)
    x[1] = 0.5 * x[0] + math.sqrt(0.75) * x[1]
    for _ in range(depth):
        x = x + torch.tanh(x) @ torch.randn(width, width, dtype=torch.float64) * (1.5 / math.sqrt(width))
    profile = residual_profile("tanh", 1.5, 0.0, depth)
    assert float(x.square().mean()) == pytest.approx(profile.length[-1], rel=0.08)
    assert float(torch.corrcoef(x)[0, 1]) == pytest.approx(profile.correlation[-1], abs=0.08)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: residual_profile("tanh", 1.0, 0.0, 0), r"residual_profile: expected a `depth` of at least 1, got 0"),
        (lambda: residual_profile("tanh", 1.0, 0.0, 3, scale=0), r"residual_profile: expected .*`scale`"),
        (lambda: residual_profile("tanh", 1.0, 0.0, 3, correlation=2), r"a `correlation` from -1 to 1, got 2"),
        (
            lambda: residual_profile("relu", 9.0, 0.0, 900),
            r"expected lengths that stay finite, got more than 1e.100 after",
        ),
    ],
)
def test_bad_residual_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
