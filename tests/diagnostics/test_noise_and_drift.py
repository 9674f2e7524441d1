"""Gradient noise and drift of kernels, against the gradients themselves."""

from __future__ import annotations

import math

import pytest
import torch

import pullback as pb
from pullback.diagnostics import gradient_noise, kernel_drift, label_alignment


def gradients(n: int = 12, p: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=generator, dtype=torch.float64) + 0.7


def test_noise_from_the_covariance_of_gradients() -> None:
    """tr(Sigma) is the sum of variances of every parameter's gradient, and |mean|^2 exceeds |G|^2 by tr(Sigma) / N."""
    G = gradients()
    found = gradient_noise(G @ G.T)
    variance = float(torch.cov(G.T).trace())
    square = float(G.mean(0).square().sum()) - variance / len(G)
    assert found.variance == pytest.approx(variance, rel=1e-12)
    assert found.square_mean == pytest.approx(square, rel=1e-12)
    assert found.noise_scale == pytest.approx(variance / square, rel=1e-12)
    assert found.signal_to_noise == pytest.approx(square / variance, rel=1e-12)


def test_standard_errors_by_leaving_samples_out() -> None:
    G = gradients()
    n = len(G)
    found = gradient_noise(G @ G.T)
    without = [torch.cat([G[:i], G[i + 1 :]]) for i in range(n)]
    for name in ("noise_scale", "signal_to_noise"):
        left = torch.tensor([getattr(gradient_noise(g @ g.T), name) for g in without], dtype=torch.float64)
        expected = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
        assert getattr(found, f"{name}_stderr") == pytest.approx(expected, rel=1e-9)


def test_standard_errors_are_the_spread_of_repeated_estimates() -> None:
    """Population: G = 0.7 in 5 places, variance 1 each, so that the noise scale is 5 / 2.45."""
    found = [gradient_noise(g @ g.T) for g in (gradients(200, 5, seed) for seed in range(60))]
    scales = torch.tensor([each.noise_scale for each in found])
    stderr = sum(each.noise_scale_stderr for each in found) / len(found)
    assert float(scales.std()) == pytest.approx(stderr, rel=0.3)
    assert float(scales.mean()) == pytest.approx(5 / 2.45, abs=4 * stderr / math.sqrt(60))


def test_no_signal_and_no_noise() -> None:
    opposed = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    found = gradient_noise(opposed @ opposed.T)
    assert math.isnan(found.noise_scale)
    assert found.signal_to_noise < 0
    equal = torch.full((4, 3), 0.1)
    found = gradient_noise(equal @ equal.T)
    assert (found.variance, found.noise_scale) == (0.0, 0.0)
    assert math.isnan(found.signal_to_noise)


def test_drift_by_hand() -> None:
    a, b = gradients(6, 3), gradients(6, 3, seed=1)
    k0, k1 = a @ a.T, b @ b.T
    found = kernel_drift(k0, k1)
    assert found.drift == pytest.approx(float((k1 - k0).norm() / k0.norm()), rel=1e-12)
    assert found.alignment == pytest.approx(float((k0 * k1).sum() / (k0.norm() * k1.norm())), rel=1e-12)
    c0, c1 = ((g - g.mean(0)) @ (g - g.mean(0)).T for g in (a, b))  # centred kernels are those of centred features
    assert found.cka == pytest.approx(float((c0 * c1).sum() / (c0.norm() * c1.norm())), rel=1e-12)
    same = kernel_drift(k0, k0)
    assert same.drift == 0
    assert same.cka == pytest.approx(1, rel=1e-12)


def test_label_alignment_by_hand() -> None:
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    a = gradients(6, 3)
    hot = torch.eye(3, dtype=torch.float64)[y]
    centred = [(g - g.mean(0)) @ (g - g.mean(0)).T for g in (a, hot)]
    expected = float((centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()))
    assert label_alignment(a @ a.T, y) == pytest.approx(expected, rel=1e-12)
    assert label_alignment(a @ a.T, hot) == pytest.approx(expected, rel=1e-12)
    assert math.isnan(label_alignment(a @ a.T, torch.zeros(6, dtype=torch.long)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(pb.InputError, match="gradient_noise: expected three samples or more, got 2"):
        gradient_noise(torch.eye(2))
    with pytest.raises(pb.InputError, match="kernel_drift: expected two kernels of the same samples"):
        kernel_drift(torch.eye(2), torch.eye(3))
    with pytest.raises(pb.InputError, match="label_alignment: expected 3 targets, got 2"):
        label_alignment(torch.eye(3), torch.tensor([0, 1]))
