"""The traced tangent kernel of a small convolutional network."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness import targets as to_reach
from benchmarks.methods import models, tangent
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "3 convolutions of 32 channels, 3x3, ReLU, on 32x32x3, then Linear(21632, 10), N = 128, float32: "
    "tangent kernel summed over the outputs, (128, 128)"
)
OURS = "pullback.tangent_kernel"
NEURAL_TANGENTS = "neural-tangents"


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model, _ = models.conv_net()
    n = max(2, round(128 * scale))
    return Problem(model, torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: tangent.pullback("trace"),
    **{
        f"{NEURAL_TANGENTS}[{name.lower().replace('_', ' ')}]": tangent.neural_tangents("conv", "trace", name)
        for name in ("STRUCTURED_DERIVATIVES", "JACOBIAN_CONTRACTION")
    },
    "torch.func vmap(jacrev)": tangent.jacobian_form("trace"),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.speed(rows, OURS, NEURAL_TANGENTS, 2),
        to_reach.leaner(rows, OURS, (NEURAL_TANGENTS,), 1),
    ]
