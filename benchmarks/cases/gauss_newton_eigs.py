"""The 20 largest eigenpairs of the Gauss-Newton matrix of an MLP, to a residual every method is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.cases.hessian_product import PACKAGES, build
from benchmarks.harness import targets as to_reach
from benchmarks.methods import curvature
from benchmarks.methods.problem import Call, Problem, Spectrum

__all__ = ["METHODS", "ONCE", "PACKAGES", "TITLE", "build", "targets", "verify"]

TITLE = (
    "MLP 3072-128x5-10, tanh, cross-entropy, N = 512, float32, weights as initialised: the 20 largest eigenpairs of "
    "the Gauss-Newton matrix of the mean loss, residual 1e-6 of the largest eigenvalue"
)
PAIRS, RESIDUAL = 20, 1e-6
NEAR = 2 * RESIDUAL  # counts as reached: Lanczos in float32 comes no closer than 1.3e-6 here, however long it runs
OURS = "pullback.curvature_spectrum"
PEERS = (
    "curvlinops GGNLinearOperator, SciPy eigsh",
    "hessian-eigenthings lanczos",
    "PyHessian power iteration",
)
POWER = {  # tolerance of the eigenvalue's change, products a pair at most
    f"{PEERS[2]}[its defaults]": (1e-3, 100),
    f"{PEERS[2]}[tol=1e-7, at most 300 products a pair]": (1e-7, 300),
}
ONCE = tuple(POWER)
METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: curvature.pullback_spectrum(matrix="gauss_newton", k=PAIRS, tol=RESIDUAL),
    **{f"{PEERS[0]}[tol={tol:g}]": curvature.eigsh(PAIRS, tol) for tol in (1e-3, 1e-4, 1e-5)},
    **{f"{PEERS[1]}[{m} steps]": curvature.eigenthings_lanczos(PAIRS, m) for m in (70, 80, 90, 100)},
    **{name: curvature.pyhessian_power(PAIRS, tol, most) for name, (tol, most) in POWER.items()},
}


def verify(problem: Problem, found: Spectrum) -> dict[str, Any]:
    """The residual as measured in float64, and what it took."""
    residual = curvature.residual(problem, found)
    return {"residual": residual, "reached": residual <= NEAR, "num_products": found.num_products}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [to_reach.accurate(rows, OURS, RESIDUAL), *(to_reach.speed(rows, OURS, peer, 10) for peer in PEERS)]
