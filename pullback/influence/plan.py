"""What a question of influence costs, before any of it is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pullback._checks import check_option, check_positive, unsupported
from pullback._results import Drawn, Shown
from pullback.functional import ModelView, num_samples, take, undisturbed
from pullback.functional.batches import Data
from pullback.functional.refused import refuse_random_and_coupled
from pullback.functional.target_checks import logits_of

PRODUCT = 6  # forward passes one product with a curvature matrix is counted as: two passes back over two of its graphs
VECTORS = 6  # vectors (P,) a column of conjugate gradients holds, with its right-hand side and its share of the query


@dataclass(frozen=True)
class Route(Shown):
    """One way to the answer.

    Attributes:
        name: what is solved for.
        solves: right-hand sides.
        products: products with the curvature matrix, or with the samples' rows.
        flops: floating-point operations, a multiplication and an addition counted as two.
        num_bytes: memory beside the model, its data and one pass's graph.
    """

    name: str
    solves: int
    products: int
    flops: float
    num_bytes: int


@dataclass(frozen=True)
class InfluencePlan(Drawn):
    """Costs of the routes to the influence of N samples on Q queries; ``str`` prints the table.

    Attributes:
        num_samples: N.
        num_params: P.
        num_outputs: C, of one sample.
        num_queries: Q.
        iterations: assumed of conjugate gradients; the spectrum and the damping decide, not the plan.
        routes: "a solve a query" (``query_influence``), "a solve a perturbation" (``response``, N times), "dual".
    """

    num_samples: int
    num_params: int
    num_outputs: int
    num_queries: int
    iterations: int
    routes: tuple[Route, ...]

    @property
    def cheapest(self) -> Route:
        """The route with the fewest operations."""
        return min(self.routes, key=lambda route: route.flops)

    def __str__(self) -> str:
        head = (
            f"influence of {self.num_samples} samples on {self.num_queries} queries, P = {self.num_params}, "
            f"C = {self.num_outputs}, {self.iterations} iterations assumed"
        )
        lines = [f"{'route':<24}{'solves':>8}{'products':>10}{'GFLOP':>12}{'MB':>10}"]
        lines += [
            f"{r.name:<24}{r.solves:>8}{r.products:>10}{r.flops / 1e9:>12.4g}{r.num_bytes / 1e6:>10.4g}"
            for r in self.routes
        ]
        return "\n".join([head, *lines])


def plan_influence(
    model: nn.Module,
    data: Data,
    num_queries: int,
    *,
    matrix: str = "gauss_newton",
    iterations: int = 50,
    block: int = 16,
    params: Iterable[str] | None = None,
) -> InfluencePlan:
    """Solves, products, operations and bytes of every route to the influence of the training data on queries.

    Args:
        model: any module in eval mode.
        data: the training data, as for ``query_influence``.
        num_queries: Q; for influence on outputs count every output.
        matrix: as for ``query_influence``; "hessian" has no dual.
        iterations: of conjugate gradients to count with.
        block: right-hand sides solved for at the same time.
        params: names of parameters or modules; None for all trainable ones.

    Returns:
        InfluencePlan.

    Raises:
        InputError: an unknown matrix, no queries, empty data.
        UnsupportedError: batch norm or dropout in train mode; a model that returns several tensors.

    Cost: one forward pass of one sample.

    Example:
        >>> plan = plan_influence(nn.Linear(10, 1), (torch.randn(20, 10), torch.randn(20, 1)), 3)
        >>> [route.solves for route in plan.routes], plan.cheapest.name
        ([3, 20, 3], 'dual')
    """
    where = "plan_influence"
    check_option(where, "matrix", matrix, ("gauss_newton", "hessian", "empirical_fisher"))
    for name, value in (("num_queries", num_queries), ("iterations", iterations), ("block", block)):
        check_positive(where, name, value)
    view = ModelView.of(model, params, where)
    batches = [data] if isinstance(data, tuple) else data
    N, first = 0, None
    for x, y in batches:
        N, first = N + num_samples(y, where, "y"), x if first is None else first
    num_samples(first, where)
    refuse_random_and_coupled(view.model, where)
    with undisturbed(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        outputs = logits_of(view(take(first, [0])))
    if not isinstance(outputs, Tensor):
        got, remedy = type(outputs).__name__, "Wrap it to return one tensor"
        raise unsupported(where, "a model that returns one tensor, or has `logits`", got, remedy)
    C = outputs.numel()
    forward, P = float(counter.get_total_flops()) * N, view.num_params
    itemsize = next(iter(view.parameters.values())).element_size()
    routes = [_iterative("a solve a query", num_queries, P, itemsize, forward, iterations, block)]
    routes.append(_iterative("a solve a perturbation", N, P, itemsize, forward, iterations, block))
    if matrix != "hessian":
        rows = N * (C if matrix == "gauss_newton" else 1)
        # each row's pass back costs two forward passes of its sample; the Gram matrix a product of the rows at most
        gram = 2 * forward * rows / N + 2.0 * rows**2 * P
        flops = gram + 2 / 3 * rows**3 + num_queries * (2 * rows**2 + PRODUCT * forward)
        num_bytes = itemsize * (3 * rows**2 + VECTORS * P * min(block, num_queries))
        routes.append(Route("dual", num_queries, 2 * num_queries, flops, num_bytes))
    return InfluencePlan(N, P, C, num_queries, iterations, tuple(routes))


def _iterative(name: str, solves: int, P: int, itemsize: int, forward: float, iterations: int, block: int) -> Route:
    products = solves * (iterations + 1)
    return Route(name, solves, products, products * PRODUCT * forward, VECTORS * itemsize * P * min(block, solves))
