"""Products with the Gauss-Newton matrix of an MLP: ten vectors one after another, and at once."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.cases.hessian_product import PLAIN, build
from benchmarks.harness import targets as to_reach
from benchmarks.methods import curvature
from benchmarks.methods.problem import Call, Problem

__all__ = ["METHODS", "PACKAGES", "TITLE", "build", "targets"]

TITLE = (
    "MLP 3072-128x5-10, tanh, cross-entropy, N = 512, float32, weights as initialised: ten products with the "
    "Gauss-Newton matrix of the mean loss, after the first call"
)
PACKAGES = ("curvlinops-for-pytorch", "hessian-eigenthings")
OURS = ("pullback.GaussNewton, one by one", "pullback.GaussNewton, in one block")
CURVLINOPS = ("curvlinops GGNLinearOperator, one by one", "curvlinops GGNLinearOperator, in one block")
METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS[0]: curvature.one_by_one(curvature.pullback("GaussNewton")),
    OURS[1]: curvature.one_block(curvature.pullback("GaussNewton")),
    PLAIN: curvature.gradients(),
    CURVLINOPS[0]: curvature.one_by_one(curvature.curvlinops("GGNLinearOperator")),
    CURVLINOPS[1]: curvature.one_block(curvature.curvlinops("GGNLinearOperator")),
    "hessian-eigenthings GGNOperator, one by one": curvature.one_by_one(curvature.eigenthings("Gauss-Newton")),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within(rows, OURS[0], PLAIN, 1.2),
        to_reach.within(rows, OURS[1], PLAIN, 0.9),
        to_reach.speed(rows, OURS[0], CURVLINOPS[0], 2.5),
        to_reach.speed(rows, OURS[1], CURVLINOPS[1], 2.5),
    ]
