"""A small language model: many positions, a head tied to the token embedding, one loss per sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import targets as to_reach
from benchmarks.methods import kernels, models
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "Language model of GPT-2's shape (4 layers, 256 wide, 4 heads, 128 positions, 512 tokens, tied head), mean "
    "next-token cross-entropy per sequence, N = 64, float32: total backward kernel and every layer's block"
)
OURS = "pullback.backward_kernel"
PLAIN = "ordinary gradient"
PEER = "torch.func vmap(grad)"
LENGTH, VOCABULARY = 128, 512


def losses(outputs: Tensor, ids: Tensor) -> Tensor:
    """The mean over positions of every sequence's cross-entropies, (N,)."""
    return F.cross_entropy(outputs.transpose(1, 2), ids, reduction="none").mean(1)


def network(*, explicit: bool) -> models.GPT:
    torch.manual_seed(0)
    return models.GPT(VOCABULARY, LENGTH, width=256, heads=4, depth=4, explicit=explicit)


def build(scale: float) -> Problem:
    model = network(explicit=False)
    n = max(2, round(64 * scale))
    ids = torch.randint(VOCABULARY, (n, LENGTH + 1))
    return Problem(model, ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), loss_fn=losses)


def explicit(prepare: Callable[[Problem], Call]) -> Callable[[Problem], Call]:
    """A method on the same model with the softmax of its attention written out."""
    return lambda problem: prepare(replace(problem, model=network(explicit=True)))


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS: kernels.pullback,
    PLAIN: kernels.gradient,
    **{f"{PEER}[fused attention, chunks of {c}]": kernels.vmap_grad(c) for c in (4, 16, 64)},
    **{f"{PEER}[softmax written out, chunks of {c}]": explicit(kernels.vmap_grad(c)) for c in (4, 16, 64)},
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [
        to_reach.within(rows, OURS, PLAIN, 1.6),
        to_reach.speed(rows, OURS, PEER, 2.5),
    ]
