"""All eigenvalues of the empirical Fisher matrix of an MLP, by way of the Gram matrix of the N gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import curvature_methods as curvature
import methods
import targets as to_reach
from torch import nn

from cases import hessian_product

TITLE = (
    "MLP 3072-128x5-10, tanh, cross-entropy, N = 2048, float32, weights as initialised: the whole spectrum of the "
    "empirical Fisher matrix, eigenvalues alone"
)
OURS = "pullback.curvature_spectrum"
PLAIN, FLOOR = "ordinary gradient", "eigvalsh"
PEERS = ("NNGeometry GramMatrix, eigvalsh", "BackPACK BatchGrad, eigvalsh")


def build(scale: float) -> methods.Problem:
    return hessian_product.build(4 * scale)


def summed(prepare: Callable[[methods.Problem], methods.Call]) -> Callable[[methods.Problem], methods.Call]:
    """A peer's kernel of the loss summed over the samples, whose gradients carry no 1/N."""
    return lambda problem: prepare(replace(problem, loss_fn=nn.CrossEntropyLoss(reduction="sum")))


METHODS: dict[str, Callable[[methods.Problem], methods.Call]] = {
    OURS: curvature.pullback_spectrum(matrix="empirical_fisher", vectors=False),
    PLAIN: methods.gradient,
    FLOOR: curvature.eigendecomposition(with_vectors=False),
    "eigh": curvature.eigendecomposition(with_vectors=True),
    PEERS[0]: curvature.from_gram(methods.nngeometry),
    PEERS[1]: curvature.from_gram(summed(methods.backpack)),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within_sum(rows, OURS, {PLAIN: 5, FLOOR: 1}),
        to_reach.faster(rows, OURS, PEERS, 1),
    ]
