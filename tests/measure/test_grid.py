"""Real networks of width 1000 against theory, cell by cell of a grid over (sigma_w, sigma_b, depth, activation)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pullback._statistics import student
from pullback.measure import NetworkSpec, signal_propagation
from pullback.theory import signal_profile

DEPTH, WIDTH, SEEDS = 15, 1000, 10
GRID = list(product(("tanh", "erf", "relu", "hard_tanh"), (0.8, 1.3, 2.0, 2.5), (0.05, 0.3)))


@pytest.mark.slow
def test_networks_agree_with_theory() -> None:
    """At least 95 percent of 1408 cells within 3 standard errors.

    Lengths and correlations of layers 1 to 15 and gradients of layers 1 to 14 (the last is what they are relative to),
    10 networks a point, inputs of mean square 1 and correlation 1/2. Standard errors are the plain ones, spread /
    sqrt(10), without the factor by which a ``Profile`` widens them: Student's distribution puts 1.5 percent outside of
    three of them by chance. Cells of one point are not independent: a network that is off in one layer is off behind.
    """
    inside: dict[str, list[bool]] = {"q": [], "c": [], "gradients": []}
    for point, (name, sigma_w, sigma_b) in enumerate(GRID):
        spec = NetworkSpec(name, sigma_w, sigma_b, depth=DEPTH, width=WIDTH)
        found = signal_propagation(spec, seeds=SEEDS, seed=100 * point, dtype=torch.float32)
        known = signal_profile(spec.theory(), DEPTH)
        for quantity, cells in inside.items():
            profile, expected = getattr(found, quantity), getattr(known, quantity)
            plain = profile.stderr.numpy() / student(SEEDS - 1)
            near = np.abs(profile.value.numpy() - expected) <= 3 * plain
            cells += near[: DEPTH - (quantity == "gradients")].tolist()
    shares = {quantity: sum(cells) / len(cells) for quantity, cells in inside.items()}
    assert sum(map(len, inside.values())) == 1408
    assert sum(map(sum, inside.values())) / 1408 >= 0.95, shares
    assert min(shares.values()) >= 0.93, shares
