"""All eigenvalues of the empirical Fisher matrix of an MLP, by way of the Gram matrix of the N gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from benchmarks.cases import hessian_product
from benchmarks.harness import targets as to_reach
from benchmarks.methods import curvature, kernels
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "MLP 3072-128x5-10, tanh, cross-entropy, N = 2048, float32, weights as initialised: the whole spectrum of the "
    "empirical Fisher matrix, eigenvalues alone"
)
OURS = "pullback.curvature_spectrum"
PLAIN, FLOOR = "ordinary gradient", "eigvalsh"
PEERS = ("NNGeometry GramMatrix, eigvalsh", "BackPACK BatchGrad, eigvalsh")


def build(scale: float) -> Problem:
    return hessian_product.build(4 * scale)


def summed(prepare: Callable[[Problem], Call]) -> Callable[[Problem], Call]:
    """A peer's kernel of the loss summed over the samples, whose gradients carry no 1/N."""
    return lambda problem: prepare(replace(problem, loss_fn=nn.CrossEntropyLoss(reduction="sum")))


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: curvature.pullback_spectrum(matrix="empirical_fisher", vectors=False),
    PLAIN: kernels.gradient,
    FLOOR: curvature.eigendecomposition(with_vectors=False),
    "eigh": curvature.eigendecomposition(with_vectors=True),
    PEERS[0]: curvature.from_gram(kernels.nngeometry),
    PEERS[1]: curvature.from_gram(summed(kernels.backpack)),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within_sum(rows, OURS, {PLAIN: 5, FLOOR: 1}),
        to_reach.faster(rows, OURS, PEERS, 1),
    ]
