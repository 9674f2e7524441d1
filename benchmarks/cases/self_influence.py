"""The influence of every sample of a small convolutional network on its own loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.harness import targets as to_reach
from benchmarks.methods import models
from benchmarks.methods.problem import Call, Columns, Problem

TITLE = (
    "Convolutional network with 14,666 parameters on 16x16x3, cross-entropy, N = 150, float32: self-influence of all "
    "samples, Gauss-Newton with damping 0.01"
)
PACKAGES = ()
DAMPING = 1e-2
OURS = ("pullback.self_influence, dual", "pullback.self_influence, auto", "pullback.self_influence, cg to 1e-3")
DENSE = "dense algebra: torch.func rows, Gram matrix, Cholesky"


def build(scale: float) -> Problem:
    torch.manual_seed(0)
    model = models.pooled_net().eval()
    n = max(2, round(150 * scale))
    return Problem(model, torch.randn(n, 3, 16, 16), torch.randint(10, (n,)), loss_fn=nn.CrossEntropyLoss())


def pullback(method: str, tol: float = 1e-6) -> Callable[[Problem], Call]:
    def prepare(problem: Problem) -> Call:
        import pullback as pb

        data, settings = (problem.x, problem.y), {"damping": DAMPING, "tol": tol, "progress": False}

        def call() -> Columns:
            return Columns([pb.self_influence(problem.model, problem.loss_fn, data, method=method, **settings).values])

        return call

    return prepare


def dense(problem: Problem) -> Call:
    """The rows of every sample at once, 1/N g^T (J^T H J / N + damping)^-1 g by the matrix inversion lemma."""
    parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

    def scores(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(problem.model, weights, x.unsqueeze(0))[0]

    def call() -> Columns:
        parts = torch.func.vmap(torch.func.jacrev(scores), (None, 0))(parameters, problem.x)
        J = torch.cat([part.flatten(2) for part in parts.values()], 2)  # (N, C, P)
        p = problem.model(problem.x).detach().softmax(1)
        root = torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)  # of the loss's second derivative
        G = torch.einsum("nc,ncp->np", p - nn.functional.one_hot(problem.y, p.shape[1]), J)
        B, N = torch.einsum("ncr,ncp->nrp", root, J).flatten(0, 1), len(p)
        factor = torch.linalg.cholesky(B @ B.T / N + DAMPING * torch.eye(len(B)))
        seen = B @ G.T
        return Columns([((G * G).sum(1) - (seen * torch.cholesky_solve(seen, factor)).sum(0) / N) / (DAMPING * N)])

    return call


METHODS: dict[str, Callable[[Problem], Call]] = {
    OURS[0]: pullback("dual"),
    OURS[1]: pullback("auto"),
    OURS[2]: pullback("cg", 1e-3),
    DENSE: dense,
}


def targets(rows: to_reach.Rows) -> list[to_reach.Verdict]:
    return [verdict for ours in OURS[:2] for verdict in (to_reach.cheaper(rows, ours, DENSE, 1),)]
