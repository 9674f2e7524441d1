"""Signals from any start and backwards through widths, and the numbers of the fixed points one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pullback as pb
from pullback.theory import MeanField, backward_profile, infinite_width_kernels, signal_profile

KNOWN = json.loads((Path(__file__).parents[1] / "data" / "theory.json").read_text())


@pytest.mark.parametrize("key", KNOWN["mean_field"]["iterates"])
def test_signals_follow_the_maps(key: str) -> None:
    """S1-10, S1-11: lengths from 1; correlations from 0.6 at the fixed length, where C is a map of c alone."""
    name, sigma_w, sigma_b = key.rsplit("_", 2)
    net, known = MeanField(name, float(sigma_w), float(sigma_b)), KNOWN["mean_field"]["iterates"][key]
    lengths, correlations = known["q_iterates_from_1"], known["c_iterates_from_0.6_at_q_star"]
    weight, bias = net.sigma_w**2, net.sigma_b**2
    if bias < 1:
        found = signal_profile(net, len(lengths), q0=(1 - bias) / weight)  # so that q_1 = 1
        assert found.q == pytest.approx(lengths, abs=1e-9)
    q0 = (net.q_star - bias) / weight
    found = signal_profile(net, len(correlations), q0=q0, c0=(0.6 * net.q_star - bias) / weight / q0)
    assert found.q == pytest.approx(np.full(len(correlations), net.q_star), abs=1e-9)
    assert found.c == pytest.approx(correlations, abs=1e-8)


@pytest.mark.parametrize("name", ["tanh", "relu", "hard_tanh", "gelu"])
def test_signals_by_sampling(name: str) -> None:
    """Away from the fixed point, with dropout: two million draws of the pair of every layer, to half a percent."""
    net, draws = MeanField(name, 1.4, 0.2, 0.8), 2_000_000
    found = signal_profile(net, 4, q0=2.0, c0=0.3)
    z = np.random.default_rng(0).normal(size=(2, draws))
    q, c = 2.0 * 1.96 / 0.8 + 0.04, 0.3 * 2.0 * 1.96 + 0.04
    slopes = []
    for k in range(4):
        assert found.q[k] == pytest.approx(q, rel=5e-3)
        assert found.c[k] == pytest.approx(c / q, abs=5e-3)
        q, c = found.q[k], found.c[k] * found.q[k]  # from exact numbers, so that errors do not add up
        u = math.sqrt(q) * z[0]
        v = math.sqrt(q) * (c / q * z[0] + math.sqrt(1 - (c / q) ** 2) * z[1])
        slopes.append(1.96 / 0.8 * float((net.phi.slope(u) ** 2).mean()))
        q = 1.96 / 0.8 * float((net.phi.value(u) ** 2).mean()) + 0.04
        c = 1.96 * float((net.phi.value(u) * net.phi.value(v)).mean()) + 0.04
    assert found.gradients == pytest.approx([math.prod(slopes[k:3]) for k in range(4)], rel=1e-2)


def test_gradients_with_widths() -> None:
    """S1-26: widths 1000, 400, 1200, 600 at tanh (1.3, 0.3), counted from the last layer."""
    net = MeanField("tanh", 1.3, 0.3)
    profile = backward_profile(net, [1000, 400, 1200, 600])
    assert profile[::-1] == pytest.approx([1, 0.46990, 1.32486, 0.49804], abs=5e-6)
    assert backward_profile(net, [7] * 5) == pytest.approx(net.chi ** np.arange(4, -1, -1.0), rel=1e-12)
    at_q_star = backward_profile(net, [3, 5, 2], [net.q_star] * 3)
    assert at_q_star == pytest.approx(backward_profile(net, [3, 5, 2]), rel=1e-12)
    dropout = MeanField("tanh", 1.3, 0.3, 0.9)
    assert backward_profile(dropout, [7, 7])[0] == pytest.approx(dropout.chi / 0.9, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b", "attribute", "expected"),
    [
        ("tanh", 1.3, 0.3, "q_star", 0.607047),  # S1-10
        ("erf", 1.5, 0.3, "c_star", 0.497070),  # S1-11
        ("tanh", 0.8, 0.0, "q_star", 0.0),  # S1-12
        ("tanh", 2.5, 0.0, "q_star", 3.960961),
        ("relu", 1.2, 0.3, "q_star", 0.321429),
        ("relu", 1.5, 0.0, "q_star", math.inf),
        ("relu", 1.5, 0.3, "q_star", math.inf),
        ("tanh", 1.3, 0.3, "xi_q", 1.337668),  # S1-22
        ("hard_tanh", 1.3, 0.3, "xi_q", 0.981730),
        ("tanh", 0.9, 0.3, "xi_c", 1.959989),  # S1-23
        ("tanh", 2.0, 0.3, "xi_c", 6.648264),
        ("tanh", 2.5, 0.3, "xi_c", 5.108919),
        ("tanh", 1.3955839751549024, 0.3, "xi_c", math.inf),
        ("tanh", 1.3, 0.3, "xi_grad", 16.108),  # S1-28
        ("tanh", 2.5, 0.3, "xi_grad", -2.170486),
    ],
)
def test_numbers_one_by_one(name: str, sigma_w: float, sigma_b: float, attribute: str, expected: float) -> None:
    """S1-10 to S1-12, S1-22, S1-23, S1-28."""
    digits = 5e-4 if expected == 16.108 else 1e-6
    assert getattr(MeanField(name, sigma_w, sigma_b), attribute) == pytest.approx(expected, abs=digits)


def test_gradients_vanish_or_explode() -> None:
    """S1-28: the sign of xi_grad says which, as the phase does, and exp(-l / xi_grad) is the profile."""
    for sigma_w, phase in ((1.3, "ordered"), (2.5, "chaotic")):
        net = MeanField("tanh", sigma_w, 0.3)
        assert net.phase == phase
        assert (net.xi_grad > 0) == (phase == "ordered")
        assert backward_profile(net, [1] * 11)[0] == pytest.approx(math.exp(-10 / net.xi_grad), rel=1e-12)


def test_kernels_of_two_inputs() -> None:
    """S1-15 and S4-05."""
    pair = [[1.0, 0.0, 0.0]], [[0.6, 0.8, 0.0]]
    root = 2**0.5
    for (name, depth, sigma_w, sigma_b), nngp, ntk in (
        (("relu", 1, root, 0.0), 0.451698, 0.733631),
        (("relu", 2, root, 0.0), None, 1.029611),
        (("erf", 2, 1.5, 0.1), None, 1.759614),
    ):
        found = infinite_width_kernels(name, depth, sigma_w, sigma_b, *pair)
        assert found[1][0, 0] == pytest.approx(ntk, abs=1e-6)
        if nngp is not None:
            assert found[0][0, 0] == pytest.approx(nngp, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: signal_profile(net, 0), r"signal_profile: expected a `depth` of at least 1, got 0"),
        (lambda net: signal_profile(net, 2, q0=0), r"signal_profile: expected `q0` above 0"),
        (lambda net: signal_profile(net, 2, c0=-1.1), r"a correlation `c0` from -1 to 1, got -1.1"),
        (
            lambda net: signal_profile(MeanField("relu", 1e9), 20),
            r"lengths that stay finite, got more than 1e\+100 after 6 layers. Lower",
        ),
        (lambda net: backward_profile(net, []), r"backward_profile: expected `widths` of at least 1, got \[\]"),
        (lambda net: backward_profile(net, [3, 0]), r"`widths` of at least 1, got \[3, 0\]"),
        (lambda net: backward_profile(net, [3, 4], [1.0]), r"2 finite `lengths`, got shape \(1,\)"),
        (lambda net: backward_profile(net, [3, 4], [1.0, -1.0]), r"2 finite `lengths`, got \[1.0, -1.0\]"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call(MeanField("tanh", 1.3, 0.3))
