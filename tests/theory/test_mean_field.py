"""Fixed points, depth scales and phases against numbers computed independently, and against direct integration."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import pullback as pb
from pullback import theory
from pullback.theory import MeanField, critical_sigma_w, phase_diagram
from pullback.theory.expectations.activations import BUILT_IN, activation_of
from pullback.theory.expectations.gaussian import Series, mean, pair_mean

# Function, variance and mean in closed form, where nodes meet badly what they are not told of: two kinks and a jump.
INTEGRALS = (
    (np.abs, 2.0, math.sqrt(4 / math.pi)),
    (lambda u: np.maximum(u - 0.5, 0), 1.0, 0.3520653267642995 - 0.25 * math.erfc(0.5 / math.sqrt(2))),
    (lambda u: np.where(u > 0.3, 1.0, 0.0), 1.0, 0.5 * math.erfc(0.3 / math.sqrt(2))),
)
KNOWN = json.loads((Path(__file__).parents[1] / "data" / "theory.json").read_text())
POINTS = [
    (name, row) for name in ("tanh", "erf", "hard_tanh", "relu") for row in KNOWN["mean_field"][name] if "q_star" in row
]
NAMES = {"q_star": "q_star", "chi": "chi_1", "xi_q": "xi_q", "xi_grad": "xi_grad", "c_star": "c_star", "xi_c": "xi_c"}


def number(value: Any) -> float:
    return math.inf if isinstance(value, str) else value


@pytest.mark.parametrize(("name", "row"), POINTS)
def test_fixed_points_and_depth_scales(name: str, row: dict[str, Any]) -> None:
    """S1-10 to S1-13, S1-22, S1-23, S1-28."""
    net = MeanField(name, row["sigma_w"], row["sigma_b"])
    for attribute, key in NAMES.items():
        if row.get(key) is not None:
            assert getattr(net, attribute) == pytest.approx(number(row[key]), rel=5e-9, abs=1e-12), attribute
    if "diverges" not in row["phase"]:
        assert net.phase == row["phase"]


@pytest.mark.parametrize("row", KNOWN["dropout"]["points"])
def test_dropout_has_no_fixed_point_at_one(row: dict[str, Any]) -> None:
    """S1-33."""
    net = MeanField(row["act"], row["sigma_w"], row["sigma_b"], row["keep_prob"])
    for attribute, key in NAMES.items():
        assert getattr(net, attribute) == pytest.approx(number(row[key]), rel=1e-9, abs=1e-12), attribute
    assert net.c_map(1.0) == pytest.approx(row["C_of_1"], abs=1e-12)
    assert net.c_map(1.0) < 1


@pytest.mark.parametrize("key", KNOWN["mean_field"]["iterates"])
def test_iterates(key: str) -> None:
    name, sigma_w, sigma_b = key.rsplit("_", 2)
    net, known = MeanField(name, float(sigma_w), float(sigma_b)), KNOWN["mean_field"]["iterates"][key]
    for step, start in ((net.q_map, "q_iterates_from_1"), (net.c_map, "c_iterates_from_0.6_at_q_star")):
        value = known[start][0]
        for expected in known[start][1:]:
            value = step(value)
            assert value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh"])
def test_critical_line(name: str) -> None:
    """S1-13, S1-14: the critical line."""
    for row in KNOWN["critical_lines"][name]:
        sigma_w = critical_sigma_w(name, row["sigma_b"])
        assert sigma_w == pytest.approx(row["sigma_w"], abs=1e-10)
        assert MeanField(name, sigma_w, row["sigma_b"]).phase == "critical"


def test_relu_is_critical_at_one_point() -> None:
    assert critical_sigma_w("relu", 0.0) == pytest.approx(math.sqrt(2), abs=1e-12)
    with pytest.raises(pb.InputError, match=r"critical_sigma_w: expected a `sigma_b` for which relu has a critical"):
        critical_sigma_w("relu", 0.1)


def test_relu_lengths() -> None:
    """S1-12: the table of ReLU is another one than tanh's."""
    assert MeanField("relu", 1.2, 0.3).q_star == pytest.approx(0.09 / (1 - 0.72))
    assert MeanField("relu", math.sqrt(2), 0.0).q_star == 1
    assert math.isinf(MeanField("relu", math.sqrt(2), 0.1).q_star)
    assert math.isinf(MeanField("relu", 1.5, 0.1).q_star)
    net = MeanField("relu", 2.0, 0.3)
    assert net.c_star == 1
    assert net.xi_grad == pytest.approx(-1 / math.log(2))


def test_tanh_at_the_end_of_its_critical_line_decays_algebraically() -> None:
    net, q = MeanField("tanh", 1.0, 0.0), 1.0
    for step in range(1, 101):
        q = net.q_map(q)
        if str(step) in KNOWN["mean_field"]["tanh_at_sw1_sb0_algebraic_decay"]:
            known = KNOWN["mean_field"]["tanh_at_sw1_sb0_algebraic_decay"][str(step)]["q_l"]
            assert q == pytest.approx(known, abs=1e-12)
    assert net.q_star == 0
    assert net.phase == "critical"


def test_fitted_depth_scales() -> None:
    """S1-24: iterating the exact maps gives the depth scales within one percent."""
    net = MeanField("tanh", 2.0, 0.3)
    q, c, gaps = 1.05 * net.q_star, net.c_star + 0.02, []
    for _ in range(30):
        q, c = net.q_map(q), net.c_map(c)
        gaps.append((abs(q - net.q_star), abs(c - net.c_star)))
    for column, scale in ((0, net.xi_q), (1, net.xi_c)):
        late = [math.log(row[column]) for row in gaps if row[column] > 1e-9][-6:]
        slope = np.polyfit(range(len(late)), late, 1)[0]
        assert -1 / slope == pytest.approx(scale, rel=0.01)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(sorted(BUILT_IN)), st.floats(0.01, 30), st.floats(0.01, 30), st.floats(-0.999, 0.999))
def test_pairs_against_adaptive_integration(name: str, q1: float, q2: float, c: float) -> None:
    """The nested rule, the series and SciPy's adaptive rule agree within the stated errors."""
    phi = BUILT_IN[name]
    found = pair_mean(phi.value, q1, q2, c, phi.kinks)
    s = math.sqrt(1 - c * c)

    def inner(z: float) -> float:
        def f(t: float) -> float:
            v = math.sqrt(q2) * (c * z + s * t)
            return float(phi.value(np.array([v]))[0]) * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

        cuts = [(k / math.sqrt(q2) - c * z) / s for k in {0.0, *phi.kinks}]
        return integrate.quad(f, -9, 9, points=[x for x in cuts if -9 < x < 9] or None, limit=200, epsabs=1e-9)[0]

    z, w = np.polynomial.hermite_e.hermegauss(40)
    if phi.smooth and q1 < 2 and q2 < 2:
        direct = sum(
            wi / math.sqrt(2 * math.pi) * float(phi.value(np.array([math.sqrt(q1) * zi]))[0]) * inner(zi)
            for zi, wi in zip(z, w, strict=True)
        )
        assert found.value == pytest.approx(direct, abs=1e-6)
    series = Series.of(phi.value, q1, phi.kinks).at(c)
    same = pair_mean(phi.value, q1, q1, c, phi.kinks)
    assert abs(series.value - same.value) <= series.error + same.error + 1e-12 * max(1, abs(same.value))


def test_the_measure_has_mass_one() -> None:
    """S1-75: with exp(-z^2) in place of exp(-z^2 / 2) the mass would be 0.7071."""
    assert mean(np.ones_like, 1.0).value == pytest.approx(1, abs=1e-13)
    for function, q, known in INTEGRALS:
        found = mean(function, q)
        assert found.error > 0
        assert abs(found.value - known) <= found.error
    assert mean(lambda u: u * u, 1.0).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "name"),
    [(torch.tanh, "tanh"), (torch.relu, "relu"), (torch.nn.functional.hardtanh, "hard_tanh"), (torch.erf, "erf")],
)
def test_an_activation_of_ones_own(function: Any, name: str) -> None:
    """Autograd's derivatives and the kinks that are found give what the built-in form gives."""
    for sigma_w, sigma_b in ((0.9, 0.3), (1.3, 0.3)):
        own, known = MeanField(function, sigma_w, sigma_b), MeanField(name, sigma_w, sigma_b)
        for attribute in NAMES:
            assert getattr(own, attribute) == pytest.approx(getattr(known, attribute), rel=1e-8), attribute


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (torch.nn.functional.relu6, (0.0, 6.0)),
        (torch.nn.functional.hardswish, (-3.0, 3.0)),
        (torch.abs, (0.0,)),
        (torch.nn.functional.elu, ()),
        (torch.nn.functional.selu, (0.0,)),
        (torch.nn.functional.softplus, ()),
    ],
)
def test_kinks_are_found(function: Any, kinks: tuple[float, ...]) -> None:
    assert activation_of(function, "test").kinks == pytest.approx(kinks, abs=1e-9)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_derivatives_of_built_in_activations(name: str) -> None:
    phi = BUILT_IN[name]
    u = np.array([-2.7, -0.9, -0.3, 0.2, 0.6, 1.7])
    h = 1e-5
    for whole, derivative in ((phi.value, phi.slope), (phi.slope, phi.bend)):
        assert derivative(u) == pytest.approx((whole(u + h) - whole(u - h)) / (2 * h), abs=1e-8)


def test_phase_diagram() -> None:
    diagram = phase_diagram("tanh", [0.9, 1.3, 2.5], [0.0, 0.3])
    for i, b in enumerate(diagram.sigma_b):
        for j, w in enumerate(diagram.sigma_w):
            net = MeanField("tanh", w, b)
            assert diagram.chi[i, j] == pytest.approx(net.chi, rel=1e-12)
            assert diagram.xi_c[i, j] == pytest.approx(net.xi_c, rel=1e-9)
    assert diagram.critical == pytest.approx([1.0, 1.395584], abs=1e-6)
    assert np.isnan(phase_diagram("relu", [1.0], [0.2]).critical).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tanh", -1.0), r"`sigma_w`"),
        (("tanh", 1.0, -0.1), r"MeanField: expected `sigma_b` of at least 0, got -0.1"),
        (("tanh", 1.0, 0.0, 0.0), r"MeanField: expected `keep_prob` in \(0, 1\], got 0.0"),
        (("softmax", 1.0), r"MeanField: expected `activation`.*softmax"),
        ((torch.log, 1.0), r"MeanField: expected a finite activation, got log\(-40\) not finite"),
        ((lambda x: x.sum(), 1.0), r"MeanField: expected an elementwise activation, got shape \(\) for \(8001,\)"),
    ],
)
def test_bad_input(arguments: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        MeanField(*arguments)


def test_bad_correlations_and_lengths() -> None:
    with pytest.raises(pb.InputError, match=r"MeanField.c_map: expected a correlation from -1 to 1, got 1.5"):
        MeanField("tanh", 1.0, 0.1).c_map(1.5)
    with pytest.raises(pb.InputError, match=r"critical_sigma_w: expected `sigma_b` of at least 0, got nan"):
        critical_sigma_w("tanh", math.nan)


@pytest.mark.parametrize("shared", [False, True])
def test_dropout_in_a_real_network(shared: bool) -> None:
    """S1-33: lengths and correlations of a network of width 2000, its masks drawn anew in every layer."""
    net, width, depth = MeanField("tanh", 1.3, 0.3, 0.9, shared_mask=shared), 2000, 16
    generator = torch.Generator().manual_seed(0)
    first, second = torch.linalg.qr(torch.randn(width, 2, generator=generator)).Q.T * math.sqrt(width)
    x, lengths, correlations = torch.stack([first, 0.9 * first + math.sqrt(1 - 0.81) * second]), [], []
    for _ in range(depth):
        masks = (torch.rand(2, width, generator=generator) < 0.9) / 0.9
        w = torch.randn(width, width, generator=generator) * (1.3 / math.sqrt(width))
        h = (x * (masks[:1] if shared else masks)) @ w + 0.3 * torch.randn(width, generator=generator)
        lengths.append(float(h.square().mean()))
        correlations.append(float((h[0] @ h[1]) / (h[0].norm() * h[1].norm())))
        x = torch.tanh(h)
    profile = theory.signal_profile(net, depth, q0=1.0, c0=0.9)
    assert lengths == pytest.approx(profile.q, abs=0.08)
    assert correlations == pytest.approx(profile.c, abs=0.08)
    assert np.mean(lengths[8:]) == pytest.approx(net.q_star, abs=0.03)
    if not shared:
        assert net.c_star == pytest.approx(0.512223, abs=1e-6)
        assert np.mean(correlations[8:]) == pytest.approx(np.mean(profile.c[8:]), abs=0.04)
        assert correlations[-1] == pytest.approx(net.c_star, abs=0.08)
    else:
        assert net.c_star == 1
        assert correlations[-1] > 0.75


def test_a_shared_mask_only_rescales_the_weights() -> None:
    """S1-33: c = 1 is a fixed point again; q, C and chi_1 / rho are those of sigma_w / sqrt(rho) without dropout."""
    for sigma_w in (1.2, 2.0):
        shared, plain = (
            MeanField("tanh", sigma_w, 0.3, 0.8, shared_mask=True),
            MeanField("tanh", sigma_w / 0.8**0.5, 0.3),
        )
        assert shared.c_map(1.0) == pytest.approx(1, abs=1e-12)
        assert shared.phase == plain.phase
        for name in ("q_star", "c_star", "xi_q", "xi_c", "xi_grad"):
            assert getattr(shared, name) == pytest.approx(getattr(plain, name), rel=1e-9), name
        assert shared.c_map(0.3) == pytest.approx(plain.c_map(0.3), rel=1e-12)
        assert shared.chi / 0.8 == pytest.approx(plain.chi, rel=1e-12)
        assert MeanField("tanh", sigma_w, 0.3, 0.8).c_map(1.0) < 1
    assert MeanField("relu", 1.0, 0.0, 0.5, shared_mask=True).c_star == 1  # lengths that vanish, and lengths that grow
    assert MeanField("relu", 2.0, 0.1, 0.5, shared_mask=True).c_star == 1
    assert MeanField("relu", 2.0, 0.1, 0.5).c_star < 0.9
    same = theory.signal_profile(MeanField("tanh", 1.3, 0.3, 0.9, shared_mask=True), 5, c0=1.0)
    assert same.c == pytest.approx(np.ones(5), abs=1e-11)


def test_correlations_can_be_mapped_again_and_again() -> None:
    """Rounding does not lead out of [-1, 1], where the next call would refuse."""
    for sigma_w in (0.9, 1.3, 1.7, 2.5):
        for name in ("tanh", "erf", "relu", "hard_tanh"):
            net, c = MeanField(name, sigma_w, 0.3 if name != "relu" else 0.0), 1.0
            for _ in range(5):
                c = net.c_map(c)
            assert c == pytest.approx(1, abs=1e-12)
            assert c <= 1
