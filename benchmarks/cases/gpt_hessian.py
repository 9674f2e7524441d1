"""Products with the Hessian of a small language model, whose fused attention has no second derivative."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import gpt_kernel
from benchmarks.harness import targets as to_reach
from benchmarks.methods import curvature, kernels, models
from benchmarks.methods.problem import Call, Problem

TITLE = (
    "Language model of GPT-2's shape (4 layers, 256 wide, 4 heads, 128 positions, 512 tokens, tied head), mean "
    "next-token cross-entropy, N = 64, float32: one product with the Hessian, after the first call"
)
PACKAGES = ("curvlinops-for-pytorch", "hessian-eigenthings", "pyhessian")
OURS = "pullback.Hessian"
PLAIN = "ordinary gradient"
PEERS = ("curvlinops HessianLinearOperator", "hessian-eigenthings HessianOperator", "PyHessian hessian_vector_product")
MATH, WRITTEN_OUT = "PyTorch's attention by steps", "softmax written out"

Prepare = Callable[[Problem], Call]


def build(scale: float) -> Problem:
    problem = gpt_kernel.build(scale)
    return replace(problem, model=models.ClassesSecond(problem.model), loss_fn=nn.CrossEntropyLoss())


def written_out(prepare: Prepare) -> Prepare:
    """A method on the same model with the softmax of its attention written out."""
    return lambda problem: prepare(replace(problem, model=models.ClassesSecond(gpt_kernel.network(explicit=True))))


def by_steps() -> AbstractContextManager[None]:
    """PyTorch's own attention in its unfused form, which has a second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def one(make: curvature.Make) -> Prepare:
    return curvature.one_by_one(make, columns=1)


METHODS: dict[str, Prepare] = {
    f"{OURS}[the model as it is]": one(curvature.pullback("Hessian")),
    f"{OURS}[{WRITTEN_OUT}]": written_out(one(curvature.pullback("Hessian"))),
    PLAIN: kernels.gradient,
    f"{PEERS[0]}[{MATH}]": one(curvature.curvlinops("HessianLinearOperator", by_steps)),
    f"{PEERS[0]}[{WRITTEN_OUT}]": written_out(one(curvature.curvlinops("HessianLinearOperator"))),
    f"{PEERS[1]}[{MATH}]": one(curvature.eigenthings("Hessian", by_steps)),
    f"{PEERS[1]}[{WRITTEN_OUT}]": written_out(one(curvature.eigenthings("Hessian"))),
    f"{PEERS[2]}[{MATH}]": one(curvature.pyhessian(by_steps)),
    f"{PEERS[2]}[{WRITTEN_OUT}]": written_out(one(curvature.pyhessian())),
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [to_reach.faster(rows, OURS, PEERS, 1), to_reach.leaner(rows, OURS, PEERS, 1)]
