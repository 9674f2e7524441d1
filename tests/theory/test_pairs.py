"""Expectations over pairs, whole matrices at a time, against nested rules, one entry at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch.nn import functional

from pullback.theory.expectations.activations import BUILT_IN, activation_of
from pullback.theory.expectations.closed_forms import closed_form
from pullback.theory.expectations.gaussian import pair_mean
from pullback.theory.expectations.hermite import coefficients
from pullback.theory.expectations.pairs import pair_means
from pullback.theory.expectations.piecewise import pair_moments, pieces_of
from tests.thinned import thinned

CORRELATIONS = (-1.0, -0.999999, -0.7, 0.0, 0.3, 0.9, 0.9999, 1 - 1e-9, 1.0)


@pytest.mark.parametrize(
    ("function", "lengths"),
    thinned(
        (functional.hardtanh, functional.relu6, functional.leaky_relu),
        ((0.5, 0.5), (2.0, 2.0), (0.3, 7.0), (1e-4, 1.0)),
    ),
)
def test_piecewise_linear_activations_in_closed_form(function, lengths) -> None:
    """By Owen's T, against the nested rule, whose panels follow the kinks."""
    phi = activation_of(function, "test")
    pieces = pieces_of(phi)
    assert pieces is not None
    for c in CORRELATIONS:
        value, slope = pair_moments(pieces, *(np.array(q) for q in lengths), np.array(c))
        for found, f in ((value, phi.value), (slope, phi.slope)):
            expected = pair_mean(f, *lengths, c, phi.kinks)
            assert expected.error < 1e-10
            assert float(found) == pytest.approx(expected.value, abs=1e-11)


def test_what_is_not_piecewise_linear() -> None:
    for function in (functional.hardswish, functional.hardshrink, functional.selu, torch.tanh):
        assert pieces_of(activation_of(function, "test")) is None
    hard_tanh = pieces_of(BUILT_IN["hard_tanh"])
    assert hard_tanh is not None
    assert hard_tanh.jumps == (1.0, -1.0)
    assert hard_tanh.value(np.array([-3.0, 0.25, 2.0])) == pytest.approx([-1, 0.25, 1])


@pytest.mark.parametrize("name", ["linear", "erf", "gelu", "sin", "relu", "leaky_relu"])
@pytest.mark.parametrize("lengths", [(0.5, 0.5), (0.3, 7.0), (40.0, 40.0)])
def test_closed_forms(name: str, lengths: tuple[float, float]) -> None:
    """Against the nested rule; a function of one's own of the same name is integrated."""
    phi = BUILT_IN[name]
    pairs = closed_form(phi)
    assert pairs is not None
    for c in CORRELATIONS:
        for found, f in zip(pairs(*(np.array(q) for q in lengths), np.array(c)), (phi.value, phi.slope), strict=True):
            assert float(found) == pytest.approx(pair_mean(f, *lengths, c, phi.kinks).value, rel=1e-10, abs=1e-11)
    assert closed_form(activation_of(functional.gelu, "test")) is None


def test_zero_lengths() -> None:
    """An input of zeros: one side is constant."""
    pieces = pieces_of(activation_of(functional.relu6, "test"))
    assert pieces is not None
    value, slope = pair_moments(pieces, np.array(0.0), np.array(2.0), np.array(0.0))
    assert float(value) == pytest.approx(0, abs=1e-15)
    assert float(slope) == pytest.approx(0.25 - 0.5 * (1 - math.erf(3.0)) / 2, abs=1e-12)  # half of P(0 < v < 6)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_matrices_against_single_entries(name: str) -> None:
    phi, rng = BUILT_IN[name], np.random.default_rng(0)
    left, right = np.array([0.01, 0.7, 9.0]), np.array([0.2, 2.0])
    c = rng.uniform(-1, 1, (3, 2))
    c[1, 1] = 0.99995
    for found, f in zip(
        pair_means(phi, c * np.sqrt(np.outer(left, right)), left, right), (phi.value, phi.slope), strict=True
    ):
        for i, j in np.ndindex(3, 2):
            expected = pair_mean(f, left[i], right[j], c[i, j], phi.kinks).value
            assert found[i, j] == pytest.approx(expected, abs=1e-11 * max(1, left[i] * right[j])), (i, j)


@pytest.mark.parametrize("name", ["tanh", "gelu", "hard_tanh"])
def test_hermite_coefficients(name: str) -> None:
    """Coefficients by the definition, on a fine grid; and Parseval's identity."""
    phi, lengths = BUILT_IN[name], np.array([2.0, 0.3, 2.0])
    found, whole = coefficients(phi.value, lengths, phi.kinks, 40)
    z = np.linspace(-12, 12, 240001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    for k in (0, 1, 2, 7):
        polynomial = np.polynomial.hermite_e.hermeval(z, [0] * k + [1]) / math.sqrt(math.factorial(k))
        for row, q in zip(found, lengths, strict=True):
            expected = trapezoid(phi.value(math.sqrt(q) * z) * polynomial * density, z)
            assert row[k] == pytest.approx(expected, abs=1e-9)
    assert ((found**2).sum(1) <= whole * (1 + 1e-12)).all()
    assert (found**2).sum(1) == pytest.approx(whole, rel=2e-3)


@pytest.mark.parametrize("c", [np.nextafter(1, 2), np.nextafter(-1, -2)])
def test_correlations_beyond_one_by_rounding(c: float) -> None:
    """As those of one input with itself are: E phi(u) phi(v) and E phi'(u) phi'(v) of the rectifier at zero angle."""
    values, slopes = pair_moments(pieces_of(activation_of("relu", "here")), np.array(2.0), np.array(2.0), np.array(c))
    assert (float(values), float(slopes)) == pytest.approx((1.0, 0.5) if c > 0 else (0.0, 0.0), abs=1e-7)
