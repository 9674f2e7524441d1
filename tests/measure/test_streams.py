"""Inputs must not repeat the numbers the weights were drawn from."""

from __future__ import annotations

import torch

from pullback._rng import make_generator
from pullback.measure.networks.drawn import DATA


def test_inputs_and_weights_come_from_different_streams() -> None:
    """Otherwise x is a row of W^1: of orthogonal tanh layers E s^2 was found 1.4 in place of 1, at every width."""
    weights, inputs = (torch.randn(8, generator=make_generator(seed)) for seed in (0, DATA))
    assert not torch.equal(weights, inputs)


def test_generators_keep_32_bits_of_a_seed() -> None:
    """Which is why DATA is below 2**32: this says so when torch no longer does."""
    first, other = (torch.randn(8, generator=make_generator(seed)) for seed in (3, 3 + 2**40))
    assert torch.equal(first, other)
