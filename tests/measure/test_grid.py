"""Real networks of width 1000 against theory, cell by cell of a grid over (sigma_w, sigma_b, depth, activation)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pullback.measure import NetworkSpec, signal_propagation
from pullback.spectral.statistics import student
from pullback.theory import signal_profile

DEPTH, WIDTH, SEEDS = 15, 1000, 10
GRID = list(product(("tanh", "erf", "relu", "hard_tanh"), (0.8, 1.3, 2.0, 2.5), (0.05, 0.3)))


@pytest.mark.slow
def test_networks_agree_with_theory() -> None:
    """At least 95 percent of 1440 cells within 3 standard errors, and not much less than chance would leave outside.

    Lengths, correlations and gradients of layers 1 to 15 of 10 networks a point, from inputs of mean square 1 and
    correlation 1/2. Standard errors are the plain ones, spread / sqrt(10), without the factor by which a ``Profile``
    widens them. For exact means and normal numbers Student's distribution then puts 1.5 percent outside. Cells of one
    point are not independent: a network that is off in one layer is off in those behind.
    """
    share, total = {}, 0
    for point, (name, sigma_w, sigma_b) in enumerate(GRID):
        spec = NetworkSpec(name, sigma_w, sigma_b, depth=DEPTH, width=WIDTH)
        found = signal_propagation(spec, seeds=SEEDS, seed=100 * point, dtype=torch.float32)
        known = signal_profile(spec.theory(), DEPTH)
        for quantity in ("q", "c", "gradients"):
            profile, expected = getattr(found, quantity), getattr(known, quantity)
            off = np.abs(profile.value.numpy() - expected)
            plain = profile.stderr.numpy() / student(SEEDS - 1)
            exact = 1e-6 * np.abs(expected)  # the last layer's gradient, 1 by definition, in float32
            inside = off <= np.maximum(3 * plain, exact)
            share[quantity] = share.get(quantity, 0) + int(inside.sum())
            total += DEPTH
    cells = total // 3
    print({quantity: round(count / cells, 4) for quantity, count in share.items()}, sum(share.values()) / total)
    assert total == 1440
    assert sum(share.values()) / total >= 0.95
    assert min(share.values()) / cells >= 0.93
