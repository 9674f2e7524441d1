"""A plain MLP on flat images: one position per sample, where kernels in factored form gain the most."""

from __future__ import annotations

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Problem

TITLE = "MLP 3072-128x5-10, ReLU, cross-entropy, N = 2048, float32: total backward kernel and every layer's block"


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, products = models.mlp()
    n = max(2, round(2048 * scale))
    return Problem(model, torch.randn(n, models.MLP_WIDTHS[0]), torch.randint(10, (n,)), products)


METHODS = kernels.beside_peers((32, 128, 512))


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    ours = "pullback.backward_kernel"
    return [
        to_reach.faster(rows, ours, kernels.PEERS, 60),
        to_reach.leaner(rows, ours, kernels.PEERS, 8),
        to_reach.within(rows, ours, "gemm", 1.5),
    ]
