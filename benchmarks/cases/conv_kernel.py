"""A small convolutional network: many positions per sample, where gradients are formed layer by layer."""

from __future__ import annotations

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Problem

TITLE = (
    "3 convolutions of 32 channels, 3x3, ReLU, on 32x32x3, then Linear(21632, 10), cross-entropy, N = 128, "
    "float32: total backward kernel and every layer's block"
)


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, products = models.conv_net()
    n = max(2, round(128 * scale))
    return Problem(model, torch.randn(n, 3, 32, 32), torch.randint(10, (n,)), products)


METHODS = kernels.beside_peers((8, 32, 128))


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    ours = "pullback.backward_kernel"
    return [
        to_reach.faster(rows, ours, kernels.PEERS, 1.5),
        to_reach.leaner(rows, ours, kernels.PEERS, 1),
    ]
