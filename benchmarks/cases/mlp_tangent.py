"""The full tangent kernel of a plain MLP: all pairs of samples and all pairs of outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import models, tangent
from benchmarks.methods.problem import Call, Problem

TITLE = "MLP 3072-128x5-10, ReLU, N = 512, float32: full tangent kernel, (512, 512, 10, 10)"
OURS = "pullback.tangent_kernel"
NEURAL_TANGENTS = "neural-tangents, structured derivatives"
TUTORIAL = "torch.func vmap(jacrev), the tutorial's form"
ONCE = (TUTORIAL,)


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, _ = models.mlp()
    n = max(2, round(512 * scale))
    return Problem(model, torch.randn(n, models.MLP_WIDTHS[0]), torch.randint(10, (n,)))


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: tangent.pullback("full"),
    NEURAL_TANGENTS: tangent.neural_tangents("mlp", "full", "STRUCTURED_DERIVATIVES"),
    TUTORIAL: tangent.jacobian_form("full"),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.speed(rows, OURS, NEURAL_TANGENTS, 2),
        to_reach.speed(rows, OURS, TUTORIAL, 100),
    ]
