"""Critical points and the phase diagram, which is computed for all points together, against one point at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch.nn import functional

import pullback as pb
from pullback.theory import MeanField, critical_points, critical_sigma_w, phase_diagram, starting_point
from pullback.theory.expectations.activations import BUILT_IN

LINES = json.loads((Path(__file__).parents[1] / "data" / "theory.json").read_text())["critical_lines"]
SIGMA_W = [0.6, 0.95, 1.0, 1.2, 1.3, 1.41, 1.5, 2.0, 3.5]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_diagram_is_that_of_single_points(name: str) -> None:
    """S1-14: to 1e-9, depth scales as rates, since next to the critical line they magnify rounding."""
    sigma_b = [0.0, 0.1, 0.7]
    diagram = phase_diagram(name, SIGMA_W, sigma_b)
    for (i, b), (j, w) in ((one, other) for one in enumerate(sigma_b) for other in enumerate(SIGMA_W)):
        if (name, b, w) == ("hard_tanh", 0.0, 1.0):  # any q is found of which V(q) is q to the last digit
            for q in (diagram.q_star[i, j], MeanField(name, w, b).q_star):
                a = q**-0.5
                cut_off = 2 * (a * norm.pdf(a) + (1 - a * a) * norm.sf(a))  # 1 - E min(|u|, 1)^2 / q, u of variance q
                assert abs(cut_off) < np.finfo(float).eps
            continue
        net = MeanField(name, w, b)
        assert diagram.q_star[i, j] == pytest.approx(net.q_star, rel=1e-9)
        assert diagram.chi[i, j] == pytest.approx(net.chi, rel=1e-9)
        assert math.exp(-1 / diagram.xi_grad[i, j]) == pytest.approx(math.exp(-1 / net.xi_grad), rel=1e-9)
        if math.isinf(net.q_star) and not net.phi.homogeneous:
            assert np.isnan([diagram.c_star[i, j], diagram.xi_c[i, j]]).all()
            continue
        assert diagram.c_star[i, j] == pytest.approx(net.c_star, abs=1e-9)
        assert math.exp(-1 / diagram.xi_c[i, j]) == pytest.approx(math.exp(-1 / net.xi_c), rel=1e-9)


def test_the_diagram_of_activations_of_ones_own() -> None:
    """Kinks that are no corners of straight pieces: the series does not reach, single points stand in."""
    diagram = phase_diagram(functional.selu, [0.5, 1.05, 1.3], [0.2])
    for j, w in enumerate(diagram.sigma_w):
        net = MeanField(functional.selu, float(w), 0.2)
        for name in ("q_star", "chi"):
            assert getattr(diagram, name)[0, j] == pytest.approx(getattr(net, name), rel=1e-9)
        if math.isfinite(net.q_star):
            assert diagram.c_star[0, j] == pytest.approx(net.c_star, abs=1e-9)


def test_next_to_the_critical_line() -> None:
    """c* is the fixed point of C, not a correlation on the way to it: hard tanh, whose series converges slowly."""
    net = MeanField("hard_tanh", 1.2241379310344827, 0.5172413793103449)
    assert 1e-5 < 1 - net.c_star < 2e-4
    assert net.c_map(net.c_star) == pytest.approx(net.c_star, abs=2e-15)
    assert net.c_slope(net.c_star) < 1 < net.chi
    diagram = phase_diagram("hard_tanh", [net.sigma_w], [net.sigma_b])
    assert diagram.c_star[0, 0] == pytest.approx(net.c_star, abs=1e-10)


@pytest.mark.parametrize(
    ("name", "sigma_b", "sigma_w"),
    [("tanh", 0.3, 1.395584), ("tanh", 0.05**0.5, 1.760955**0.5), ("erf", 0.0, 0.886227), ("hard_tanh", 0.3, 1.116145),
     ("relu", 0.0, 1.414214)],
)  # fmt: skip
def test_critical_points_of_the_literature(name: str, sigma_b: float, sigma_w: float) -> None:
    """S1-13: chi_1 = 1 at the fixed point, by a search that does not use the critical line."""
    assert critical_sigma_w(name, sigma_b) == pytest.approx(sigma_w, abs=1e-6)
    assert MeanField(name, sigma_w, sigma_b).chi == pytest.approx(1, abs=2e-6)
    if name != "relu":
        found = brentq(lambda w: MeanField(name, w, sigma_b).chi - 1, 0.8 * sigma_w, 1.2 * sigma_w, xtol=1e-9)
        assert found == pytest.approx(sigma_w, abs=1e-6)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh"])
def test_the_diagram_holds_the_critical_line(name: str) -> None:
    """S1-14: twelve points of the reference lines are the diagram's."""
    rows = LINES[name]
    diagram = phase_diagram(name, [1.0], [row["sigma_b"] for row in rows])
    assert diagram.critical == pytest.approx([row["sigma_w"] for row in rows], abs=1e-9)


@pytest.mark.parametrize(("name", "threshold"), [("gelu", 0.17292239), ("silu", 0.55514317)])
def test_half_stable_points(name: str, threshold: float) -> None:
    """sigma_b^2 of Roberts, Yaida and Hanin (2022): below lengths leave the critical point, above they approach it."""
    below, above = (critical_points(name, math.sqrt(threshold * factor))[0] for factor in (0.99, 1.01))
    assert (below.kind, below.reached) == ("unstable", False)
    assert (above.kind, above.reached) == ("stable", True)
    at = critical_points(name, math.sqrt(threshold))[0]
    assert at.length_slope == pytest.approx(1, abs=1e-6)
    assert at.sigma_w**2 == pytest.approx({"gelu": 1.98305826, "silu": 1.98800468}[name], abs=2e-6)
    for point in (below, above):
        net = MeanField(name, point.sigma_w, point.sigma_b)
        assert net.q_map(point.length) == pytest.approx(point.length, rel=1e-9)
        assert net.sigma_w**2 * net.phi_slope_square(point.length) == pytest.approx(1, abs=1e-9)


def test_kinds() -> None:
    kinds = {name: critical_points(name, 0.0)[0].kind for name in ("tanh", "hard_tanh", "relu", "gelu")}
    assert kinds == {"tanh": "stable", "hard_tanh": "stable", "relu": "neutral", "gelu": "unstable"}
    assert critical_points("relu", 0.1) == ()
    assert critical_points(functional.softplus, 0.0) == ()  # not zero at zero, so that length 0 is no fixed point


@pytest.mark.parametrize("function", ["gelu", "silu", functional.mish, functional.hardswish])
def test_where_to_start(function: Any) -> None:
    """chi_1 is 1 at the point and does not change with the length to first order."""
    point = starting_point(function)
    net = MeanField(function, point.sigma_w, point.sigma_b)
    assert (point.kind, net.chi) == ("stable", pytest.approx(1, abs=1e-8))
    for factor in (0.9, 1.1):
        assert net.sigma_w**2 * net.phi_slope_square(factor * point.length) == pytest.approx(1, abs=1e-3)
    assert starting_point("tanh").sigma_b == starting_point("relu").sigma_b == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: critical_sigma_w("gelu", 0.1),
            r"critical_sigma_w: expected a `sigma_b` for which gelu has a critical sigma_w that layers settle at, got "
            r"0.1. Use sigma_b=0.5722",
        ),
        (lambda: critical_sigma_w(functional.tanhshrink, 0.1), r"got 0.1. Use another activation"),
        (lambda: critical_points("tanh", -1.0), r"critical_points: expected `sigma_b` of at least 0, got -1.0"),
        (
            lambda: starting_point(functional.tanhshrink),
            r"starting_point: expected an activation with a critical point that layers settle at, got tanhshrink",
        ),
        (
            lambda: phase_diagram("tanh", [0.0], [0.1]),
            r"phase_diagram: expected a list `sigma_w` of finite numbers abov",
        ),
        (lambda: phase_diagram("tanh", [1.0], []), r"a list `sigma_b` of finite numbers of at least 0, got \[\]"),
        (lambda: phase_diagram(torch.log, [1.0], [0.0]), r"phase_diagram: expected a finite activation"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


def test_correlations_that_do_not_settle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pullback.theory.mean_field import phase_grid

    monkeypatch.setattr(phase_grid, "_STEPS", 1)
    with pytest.raises(pb.SelfCheckError, match=r"phase_diagram: expected correlations that settle, got 1 that still"):
        phase_diagram("tanh", [2.0], [0.3])
