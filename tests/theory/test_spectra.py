"""Densities of Jacobians' squared singular values: their moments, closed forms, and real matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import pullback as pb
from pullback.theory import MeanField, jacobian_density
from tests.thinned import thinned

NETS = (MeanField("linear", 1.0), MeanField("relu", math.sqrt(2)), MeanField("hard_tanh", 1.0257003506927744, 0.1))
BY_NAME = {net.phi.name: net for net in NETS}


@pytest.mark.parametrize(("name", "init", "depth"), thinned(list(BY_NAME), ["gaussian", "orthogonal"], [1, 2, 4, 12]))
def test_moments(name: str, init: str, depth: int) -> None:
    """S1-30: the two first moments are those found without the density."""
    net = BY_NAME[name]
    density, moments = jacobian_density(net, depth, init), net.jacobian_moments(depth, init)
    assert density.moment(1) == pytest.approx(moments.mean, rel=5e-3)
    assert density.moment(2) == pytest.approx(moments.mean**2 + moments.variance, rel=1e-2)
    assert 0.7 < density.mass < 1.01
    if depth <= 2:
        assert density.mass == pytest.approx(1, abs=0.02)


def test_one_gaussian_layer_is_marchenko_pastur() -> None:
    density = jacobian_density(NETS[0], 1)
    x = density.squares[density.squares > 0.01]
    expected = np.sqrt(np.maximum(4 - x, 0) / x) / (2 * math.pi)
    assert density.edge == pytest.approx(4, abs=1e-9)
    assert density.density[-len(x) :] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_orthogonal_linear_layers_are_isometric() -> None:
    density = jacobian_density(NETS[0], 20, "orthogonal")
    assert (density.top, density.edge, len(density.squares)) == (1.0, pytest.approx(1), 0)


def test_an_orthogonal_hard_tanh_keeps_most_directions() -> None:
    """Each layer cuts off a share 1 - p; what none has cut off keeps its length exactly."""
    share = math.erf(1 / math.sqrt(2 * NETS[2].q_star))
    density = jacobian_density(NETS[2], 4, "orthogonal")
    assert density.top == pytest.approx(1 - 4 * (1 - share))
    assert density.zero == pytest.approx(1 - share)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_real_matrices(init: str) -> None:
    """Quantiles of the singular values of four random layers of width 400 with a ReLU's masks."""
    rng, width, depth = np.random.default_rng(0), 400, 4
    squares = []
    for _ in range(4):
        J = np.eye(width)
        for _ in range(depth):
            w = rng.normal(size=(width, width)) / math.sqrt(width)
            if init == "orthogonal":
                w = np.linalg.qr(w)[0] * np.sign(rng.normal(size=width))
            J = (rng.random(width) < 0.5)[:, None] * (math.sqrt(2) * w @ J)
        squares.append(np.linalg.svd(J, compute_uv=False) ** 2)
    found = np.sort(np.concatenate(squares))
    density = jacobian_density(NETS[1], depth, init)
    steps = np.diff(density.squares) * (density.density[1:] + density.density[:-1]) / 2
    for level in (0.5, 2.0, 5.0):
        above = float(steps[density.squares[1:] > level].sum())
        assert np.mean(found > level) == pytest.approx(above, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: jacobian_density(MeanField("tanh", 1.3, 0.3), 2),
            r"expected an activation whose slope is 0 or one num",
        ),
        (lambda: jacobian_density(NETS[0], 33), r"jacobian_density: expected a `depth` of at most 32, got 33"),
        (lambda: jacobian_density(NETS[0], 0), r"jacobian_density: expected a `depth` of at least 1, got 0"),
        (lambda: jacobian_density(NETS[0], 2, "uniform"), r"jacobian_density: expected `init`"),
        (
            lambda: jacobian_density(MeanField("relu", 1.0, 0.1, 0.5), 2),
            r"a network without dropout, got keep_prob 0.5",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()
