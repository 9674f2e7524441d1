"""A plain MLP on flat images: one position per sample, where kernels in factored form gain the most."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Call, Problem

TITLE = "MLP 3072-128x5-10, ReLU, cross-entropy, N = 2048, float32: total backward kernel and every layer's block"
PEERS = ("torch.func vmap(grad)", "BackPACK BatchGrad", "opacus GradSampleModule")


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, products = models.mlp()
    n = max(2, round(2048 * scale))
    return Problem(model, torch.randn(n, models.MLP_WIDTHS[0]), torch.randint(10, (n,)), products)


METHODS: dict[str, Callable[[Problem], Call]] = {
    "pullback.backward_kernel": kernels.pullback,
    "gemm": kernels.gemm,
    "ordinary gradient": kernels.gradient,
    **{f"{PEERS[0]}[chunks of {c}]": kernels.vmap_grad(c) for c in (32, 128, 512)},
    PEERS[1]: kernels.backpack,
    PEERS[2]: kernels.opacus,
    "NNGeometry GramMatrix": kernels.nngeometry,  # the total alone, from factored layers where it has them
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    ours = "pullback.backward_kernel"
    return [
        to_reach.faster(rows, ours, PEERS, 60),
        to_reach.leaner(rows, ours, PEERS, 8),
        to_reach.within(rows, ours, "gemm", 1.5),
    ]
