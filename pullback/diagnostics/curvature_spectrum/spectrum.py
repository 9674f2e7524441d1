"""The exact non-zero spectrum of Gauss-Newton and Fisher matrices, by their Gram matrix where that is cheaper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pullback._checks import UnsupportedError, check_option, check_positive, input_error
from pullback.diagnostics.curvature_spectrum.eigenpairs import MeasuredPairs, Wanted, from_gram, from_operator, nothing
from pullback.diagnostics.curvature_spectrum.result import CurvatureSpectrum
from pullback.diagnostics.curvature_spectrum.routes import Sizes, chosen, routes
from pullback.functional import LossFunction, ModelView, check_batch, num_samples
from pullback.functional.batch import Batch, joined, plain
from pullback.functional.batches import Batches, Data
from pullback.functional.likelihood import known_likelihood
from pullback.gradients.curvature_rows import Matrix, layers_of_rows, row_source
from pullback.kernels.plan.rates import machine_rates
from pullback.operators.curvature.fisher import Fisher
from pullback.operators.curvature.gauss_newton import GaussNewton
from pullback.operators.operator import Operator

MATRICES = ("gauss_newton", "empirical_fisher", "true_fisher")
METHODS = ("auto", "gram", "lanczos")
ENDS = ("largest", "smallest")


@torch.inference_mode(False)
def curvature_spectrum(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Data,
    matrix: Matrix = "gauss_newton",
    *,
    k: int | None = None,
    which: Literal["largest", "smallest"] = "largest",
    method: Literal["auto", "gram", "lanczos"] = "auto",
    tol: float = 1e-6,
    vectors: bool = True,
    memory_limit: int | None = None,
    params: Iterable[str] | None = None,
    seed: int = 0,
) -> CurvatureSpectrum:
    """Non-zero eigenvalues and eigenvectors of the Gauss-Newton or a Fisher matrix of the mean loss over the data.

    A = B^T B / N with n = N r rows of B: the gradients of the losses (empirical Fisher, r = 1), or S_i^T J_i with
    S_i S_i^T the second derivative of sample i's loss in its C outputs (Gauss-Newton) or the second moment of its
    slope (true Fisher), r their largest rank: C - 1 for cross-entropy. The Gram matrix B B^T / N has the same
    non-zero eigenvalues, and B^T U / sqrt(N value) are the eigenvectors of A where U are its own.

    Args:
        model: any module in eval mode. ReLU networks are no exception: no second derivative of the model is taken.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample.
        data: ``(x, y)``, or an iterable of such pairs. The Gram matrix is that of all batches together, so they are
            joined; where they cannot be (sequences of uneven length), Lanczos walks over them.
        matrix: which A.
        k: how many pairs; None for all that are not zero.
        which: "largest", or "smallest": the smallest that are not zero, which takes the whole spectrum.
        method: "gram" (the (n, n) matrix formed, or its products, or the (P, P) matrix from its rows if P <= n),
            "lanczos" (on the curvature operator), or "auto": what the estimated time is least for.
        tol: residual to reach, relative to the largest eigenvalue.
        vectors: form eigenvectors in parameter space, P numbers each.
        memory_limit: bytes that the estimates must stay below; None sets no limit.
        params: names of parameters or modules; None for all trainable ones.
        seed: of the start vector of iterations.

    Raises:
        InputError: an unknown option, ``k`` out of range, a limit that no way keeps; bad data.
        UnsupportedError: as ``backward_kernel``; by "gram": batches that cannot be joined, outputs that are no
            tensor, a loss that is not convex in the outputs. "true_fisher" of a loss that is no log-likelihood.
        SelfCheckError: rows contradict the ordinary gradient.

    Cost: 2 + r passes over the data, then the Gram matrix: as ``backward_kernel`` for r = 1, for linear layers from d
        to p features N^2 (d + r^2 p) operations formed, or N p min(N, 2 d) for each product; about 12 n^3 for all
        eigenpairs. Bytes: ``routes``.

    References: Papyan (2019), arXiv:1901.08244; Dangel, Tatzel and Hennig (2022), arXiv:2106.02624 (Gram matrices).

    Example:
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model, x, y = nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])
        >>> found = curvature_spectrum(model, nn.CrossEntropyLoss(), (x, y))
        >>> dense = reference.dense_gauss_newton(model, nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(found.values, torch.linalg.eigvalsh(dense).flip(0)[:4])), found.num_below
        (True, 0)
    """
    where = "curvature_spectrum"
    for name, option, known in (("matrix", matrix, MATRICES), ("which", which, ENDS), ("method", method, METHODS)):
        check_option(where, name, option, known)
    check_positive(where, "tol", tol)
    view = ModelView.of(model, None if params is None else list(params), where)
    P = view.num_params
    if k is not None and not 1 <= k <= P:
        raise input_error(where, f"`k` from 1 to {P}", repr(k), "Ask for fewer eigenvalues, or pass None for all")
    if matrix == "true_fisher":
        known_likelihood(loss_fn, where)
    if isinstance(data, tuple) and len(data) == 2:
        check_batch(where, *data)
        batches = [data]
    else:
        batches = list(Batches(data, where))  # walked through twice: refused if they differ
    N = sum(num_samples(each) for each, _ in batches)
    x, y, obstacle = _joined(batches)
    first = next(iter(view.parameters.values()))
    factors, num_values, unreadable = layers_of_rows(view, loss_fn, batches[0], matrix, where)
    obstacle = obstacle or unreadable
    sizes = Sizes(N, num_values, P, k, vectors, which == "smallest", first.element_size())
    ways = routes(factors, sizes, machine_rates(first.device, first.dtype))
    route, reason = chosen(ways, method, obstacle, memory_limit, where)
    wanted = Wanted(sizes, tol, seed, where)
    pairs: MeasuredPairs | None = None
    if route.method == "gram":
        try:
            source = row_source(view, loss_fn, x, y, matrix, where)
        except UnsupportedError as error:
            if method == "gram":
                raise
            route, reason = chosen(ways, "lanczos", None, memory_limit, where)
            reason = f"no Gram matrix: {error}"
        else:
            none = source.num_values == 0
            pairs = nothing(first, wanted) if none else from_gram(source.capture(where), route, wanted)
    if pairs is None:
        pairs = from_operator(_operator(view, loss_fn, data if isinstance(data, tuple) else batches, matrix), wanted)
    below = (min(sizes.num_rows, P) if k is None else k) - len(pairs.values)
    return CurvatureSpectrum(
        pairs.values,
        pairs.vectors,
        pairs.residuals,
        pairs.noise_floor,
        below,
        matrix,
        route.method,
        reason,
        tuple(ways),
        pairs.num_matvecs,
        pairs.converged,
        N,
        P,
    )


def _batches(data: Data, where: str) -> list[tuple[Batch, Batch]]:
    if isinstance(data, tuple) and len(data) == 2:
        check_batch(where, *data)
        return [data]
    return list(Batches(data, where))  # walked through twice: refused if they differ


def _joined(batches: list[tuple[Batch, Batch]]) -> tuple[Batch, Batch, str | None]:
    """All batches as one, or why that cannot be."""
    if len(batches) == 1:
        return (*batches[0], None)
    leaves, structures = zip(*(tree_flatten(plain((x, y))) for x, y in batches), strict=True)
    shapes = {tuple(leaf.shape[1:] if isinstance(leaf, Tensor) else leaf for leaf in each) for each in leaves}
    if len(shapes) > 1 or any(structure != structures[0] for structure in structures):
        return (*batches[0], "the batches cannot be joined, their samples differ in shape")
    x, y = zip(*batches, strict=True)
    return joined(x), joined(y), None


def _operator(view: ModelView, loss_fn: LossFunction, data: Data, matrix: Matrix) -> Operator:
    """The same matrix by its products."""
    params = list(view.parameters)
    if matrix == "gauss_newton":
        return GaussNewton(view.model, loss_fn, data, params=params)
    kind: Literal["true", "empirical"] = "true" if matrix == "true_fisher" else "empirical"
    return Fisher(view.model, loss_fn, data, kind=kind, params=params)
