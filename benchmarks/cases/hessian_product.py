"""Products with the Hessian of an MLP: ten vectors one after another, and at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import targets as to_reach
from benchmarks.methods import curvature, models
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "MLP 3072-128x5-10, tanh, cross-entropy, N = 512, float32, weights as initialised: ten products with the Hessian "
    "of the mean loss, after the first call"
)
PACKAGES = ("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")
OURS = ("pullback.Hessian, one by one", "pullback.Hessian, in one block")
PLAIN = "ordinary gradient, ten times"
CURVLINOPS = ("curvlinops HessianLinearOperator, one by one", "curvlinops HessianLinearOperator, in one block")


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, _ = models.mlp(nn.Tanh)
    n = max(2, round(512 * scale))
    x, y = torch.randn(n, models.MLP_WIDTHS[0]), torch.randint(10, (n,))
    return Problem(model, x, y, loss_fn=nn.CrossEntropyLoss())


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS[0]: curvature.one_by_one(curvature.pullback("Hessian")),
    OURS[1]: curvature.one_block(curvature.pullback("Hessian")),
    PLAIN: curvature.gradients(),
    CURVLINOPS[0]: curvature.one_by_one(curvature.curvlinops("HessianLinearOperator")),
    CURVLINOPS[1]: curvature.one_block(curvature.curvlinops("HessianLinearOperator")),
    "hessian-eigenthings HessianOperator, one by one": curvature.one_by_one(curvature.eigenthings("Hessian")),
    "PyHessian hessian_vector_product, one by one": curvature.one_by_one(curvature.pyhessian()),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within(rows, OURS[0], PLAIN, 1.5),
        to_reach.within(rows, OURS[1], PLAIN, 1.0),
        to_reach.speed(rows, OURS[0], CURVLINOPS[0], 2.5),
        to_reach.speed(rows, OURS[1], CURVLINOPS[1], 2.5),
    ]
