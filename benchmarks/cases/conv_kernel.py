"""A small convolutional network: many positions per sample, where gradients are formed layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "3 convolutions of 32 channels, 3x3, ReLU, on 32x32x3, then Linear(21632, 10), cross-entropy, N = 128, "
    "float32: total backward kernel and every layer's block"
)
PEERS = ("torch.func vmap(grad)", "BackPACK BatchGrad", "opacus GradSampleModule")


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, products = models.conv_net()
    n = max(2, round(128 * scale))
    return Problem(model, torch.randn(n, 3, 32, 32), torch.randint(10, (n,)), products)


METHODS: dict[str, Callable[[Problem], Call]] = {
    "pullback.backward_kernel": kernels.pullback,
    "gemm": kernels.gemm,
    "ordinary gradient": kernels.gradient,
    **{f"{PEERS[0]}[chunks of {c}]": kernels.vmap_grad(c) for c in (8, 32, 128)},
    PEERS[1]: kernels.backpack,
    PEERS[2]: kernels.opacus,
    "NNGeometry GramMatrix": kernels.nngeometry,  # the total alone, from factored layers where it has them
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    ours = "pullback.backward_kernel"
    return [
        to_reach.faster(rows, ours, PEERS, 1.5),
        to_reach.leaner(rows, ours, PEERS, 1),
    ]
