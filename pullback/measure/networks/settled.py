"""Inputs whose length is the one that layers settle at, so that a network is the same from its first layer on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.measure.networks.spec import NetworkSpec


def settled_inputs(spec: NetworkSpec, count: int, generator: torch.Generator, where: str) -> Tensor:
    """Inputs (count, D) in random directions, of mean square ``settled_mean_square``, float64."""
    n = spec.input_width
    drawn = torch.randn(count, n, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn * (math.sqrt(n * settled_mean_square(spec, where)) / drawn.norm(dim=1, keepdim=True))


def settled_mean_square(spec: NetworkSpec, where: str) -> float:
    """Mean square of inputs that give the first layer the length q*; 1 where no length is settled at or any is.

    That is the case of batch norm and skips, and of homogeneous activations, whose slopes do not depend on lengths.
    """
    if spec.batch_norm or spec.residual is not None:
        return 1.0
    net = spec.theory()
    if net.phi.homogeneous and not 0 < net.q_star < math.inf:
        return 1.0
    if math.isinf(net.q_star):
        raise input_error(where, "lengths that layers settle at", "q_star inf", "Choose another sigma_w or sigma_b")
    return max(0.0, net.q_star - net.sigma_b**2) / net.sigma_w**2
