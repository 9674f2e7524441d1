"""Randomness with a name: every random choice draws from a generator made from an explicit seed."""

from __future__ import annotations

import torch


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own, so that the global random state is neither read nor moved."""
    return torch.Generator(device=device).manual_seed(seed)
