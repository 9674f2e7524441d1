"""A plain MLP on flat images: one position per sample, where kernels in factored form gain the most."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import methods
import targets as to_reach
import torch
from torch import nn

TITLE = "MLP 3072-128x5-10, ReLU, cross-entropy, N = 2048, float32: total backward kernel and every layer's block"
WIDTHS = (3072, 128, 128, 128, 128, 128, 10)
PEERS = ("torch.func vmap(grad)", "BackPACK BatchGrad", "opacus GradSampleModule")


def build(scale: float) -> methods.Problem:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d, p in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(d, p), nn.ReLU()]
    n = max(2, round(2048 * scale))
    products = tuple((1, d, p) for d, p in itertools.pairwise(WIDTHS))
    return methods.Problem(nn.Sequential(*layers[:-1]), torch.randn(n, WIDTHS[0]), torch.randint(10, (n,)), products)


METHODS: dict[str, Callable[[methods.Problem], methods.Call]] = {
    "pullback.backward_kernel": methods.pullback,
    "gemm": methods.gemm,
    "ordinary gradient": methods.gradient,
    **{f"{PEERS[0]}[chunks of {c}]": methods.vmap_grad(c) for c in (32, 128, 512)},
    PEERS[1]: methods.backpack,
    PEERS[2]: methods.opacus,
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    ours = "pullback.backward_kernel"
    return [
        to_reach.faster(rows, ours, PEERS, 60),
        to_reach.leaner(rows, ours, PEERS, 8),
        to_reach.within(rows, ours, "gemm", 1.5),
    ]
