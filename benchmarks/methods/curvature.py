"""The methods of the curvature cases: products with the Hessian and Gauss-Newton matrices, and their spectra.

A ``Make`` imports what its method needs and returns how to build it. It is built in the first call, which is the
warm-up, so that what it keeps between products (its graph) counts as its memory, and the products after the first
are what is timed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.methods import kernels
from benchmarks.methods.problem import Blocks, Call, Columns, Problem, Spectrum

COLUMNS = 10
Product = Callable[[Tensor], Tensor | Sequence[Tensor]]
Make = Callable[[Problem], Callable[[], Product]]


def vectors(problem: Problem, columns: int) -> Tensor:
    """The fixed random vectors of every method, (P, K)."""
    size = sum(p.numel() for p in problem.model.parameters())
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(2))


def one_by_one(make: Make, columns: int = COLUMNS) -> Callable[[Problem], Call]:
    """The products with ``columns`` vectors, one after another."""

    def prepare(problem: Problem) -> Call:
        build = cache(make(problem))
        given = [row.clone() for row in vectors(problem, columns).T]

        def call() -> Columns:
            product = build()
            return Columns([product(vector) for vector in given])

        return call

    return prepare


def one_block(make: Make, columns: int = COLUMNS) -> Callable[[Problem], Call]:
    """The same products at once, with the matrix of all vectors."""

    def prepare(problem: Problem) -> Call:
        build = cache(make(problem))
        given = vectors(problem, columns)
        return lambda: Columns([build()(given)])

    return prepare


def gradients(times: int = COLUMNS) -> Callable[[Problem], Call]:
    """For scale: the ordinary gradient as often as there are products."""

    def prepare(problem: Problem) -> Call:
        gradient = kernels.gradient(problem)

        def call() -> None:
            for _ in range(times):
                gradient()

        return call

    return prepare


def pullback(matrix: str) -> Make:
    def make(problem: Problem) -> Callable[[], Product]:
        import pullback as pb

        operator = getattr(pb, matrix)
        model = problem.model.eval()
        return lambda: operator(model, problem.loss_fn, (problem.x, problem.y)).__matmul__

    return make


def curvlinops(name: str, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Make:
    """One of its operators on the batch as it is, without its check that two passes agree."""

    def make(problem: Problem) -> Callable[[], Product]:
        import curvlinops as peer

        def build() -> Product:
            parameters, data = list(problem.model.eval().parameters()), [(problem.x, problem.y)]
            operator = getattr(peer, name)(
                problem.model, problem.loss_fn, parameters, data, check_deterministic=False, num_data=len(problem.x)
            )
            return _within(context, operator)

        return build

    return make


def _within(context: Callable[[], AbstractContextManager[Any]], operator: Any) -> Product:
    def product(vector: Tensor) -> Tensor:
        with context():
            return operator @ vector

    return product


def eigenthings(matrix: str, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Make:
    """``HessianOperator`` or ``GGNOperator`` of hessian-eigenthings; they take vectors, not matrices."""

    def make(problem: Problem) -> Callable[[], Product]:
        import hessian_eigenthings  # noqa: F401

        def build() -> Product:
            return _within(context, _eigenthings_operator(problem, matrix))

        return build

    return make


def _eigenthings_operator(problem: Problem, matrix: str) -> Any:
    import hessian_eigenthings as peer

    model, data, loss_fn = problem.model.eval(), [(problem.x, problem.y)], problem.loss_fn
    if matrix == "Hessian":
        return peer.HessianOperator(model, data, peer.supervised_loss(loss_fn))
    return peer.GGNOperator(model, data, peer.supervised_forward, peer.supervised_loss_of_output(loss_fn))


def pyhessian(context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Make:
    """Its product on one batch, whose graph it keeps; vectors and products are split by parameter."""

    def make(problem: Problem) -> Callable[[], Product]:
        import pyhessian as peer
        from pyhessian.utils import hessian_vector_product

        def build() -> Product:
            with context():
                kept = peer.hessian(problem.model, problem.loss_fn, data=(problem.x, problem.y), cuda=False)
            return lambda vector: hessian_vector_product(kept.gradsH, kept.params, split(vector, kept.params))

        return build

    return make


def split(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector (P,) as views of the parameters' shapes."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


# Outer eigenpairs of the Gauss-Newton matrix


def pullback_spectrum(**options: Any) -> Callable[[Problem], Call]:
    """``pb.curvature_spectrum``; of a whole spectrum, what it leaves out as noise counts as zero."""

    def prepare(problem: Problem) -> Call:
        import pullback as pb

        model, data = problem.model.eval(), (problem.x, problem.y)

        def call() -> Spectrum:
            found = pb.curvature_spectrum(model, problem.loss_fn, data, **options)
            left_out = len(problem.x) - len(found.values) if options.get("k") is None else 0
            return Spectrum(torch.nn.functional.pad(found.values, (0, left_out)), found.vectors, found.num_matvecs)

        return call

    return prepare


def eigsh(k: int, tol: float) -> Callable[[Problem], Call]:
    """SciPy's ``eigsh`` on curvlinops' operator, at a tolerance of its own."""

    def prepare(problem: Problem) -> Call:
        import numpy as np
        from curvlinops import GGNLinearOperator
        from scipy.sparse.linalg import LinearOperator
        from scipy.sparse.linalg import eigsh as outer_eigenpairs

        model, data = problem.model.eval(), [(problem.x, problem.y)]
        parameters = list(model.parameters())

        def call() -> Spectrum:
            made = GGNLinearOperator(
                model, problem.loss_fn, parameters, data, check_deterministic=False, num_data=len(problem.x)
            ).to_scipy(dtype=np.float32)
            num_products = 0

            def product(vector: Any) -> Any:
                nonlocal num_products
                num_products += 1
                return made.matvec(vector)

            operator = LinearOperator(made.shape, matvec=product, dtype=np.float32)
            start = np.random.default_rng(0).standard_normal(made.shape[0], dtype=np.float32)
            values, columns = outer_eigenpairs(operator, k=k, which="LA", tol=tol, v0=start)
            values, columns = torch.from_numpy(values), torch.from_numpy(columns)
            return Spectrum(values.flip(0), columns.flip(1), num_products)

        return call

    return prepare


def eigenthings_lanczos(k: int, steps: int) -> Callable[[Problem], Call]:
    """Its Lanczos with full reorthogonalisation, which makes as many steps as it is told.

    The products are detached: with those of its operator as they come, the graph of every step is kept, in 8 GB.
    """

    def prepare(problem: Problem) -> Call:
        from hessian_eigenthings import LambdaOperator, lanczos

        def call() -> Spectrum:
            inner = _eigenthings_operator(problem, "Gauss-Newton")
            operator = LambdaOperator(lambda v: inner.matvec(v).detach(), inner.size, inner.device, inner.dtype)
            most = min(steps, operator.size)
            found = lanczos(operator, k=k, max_iter=most, reorthogonalize=True, which="LA", seed=0)
            return Spectrum(found.eigenvalues, found.eigenvectors.T, found.iterations)

        return call

    return prepare


def pyhessian_power(k: int, tol: float, most: int) -> Callable[[Problem], Call]:
    """Its power iteration with deflation, at most ``most`` products a pair.

    It has no Gauss-Newton product and is given the plain one: three factors by autograd, on graphs that are kept.
    """

    def prepare(problem: Problem) -> Call:
        from pyhessian import hessian

        class GaussNewton(hessian):
            num_products = 0

            def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
                self.num_products += 1
                product = list(times(v))
                return float(sum((a * b).sum() for a, b in zip(product, v, strict=True))), product

        times: Callable[[list[Tensor]], Sequence[Tensor]]

        def call() -> Spectrum:
            nonlocal times
            times = plain_gauss_newton(problem)
            torch.manual_seed(0)
            method = GaussNewton(problem.model, problem.loss_fn, dataloader=[(problem.x, problem.y)], cuda=False)
            values, found = method.eigenvalues(maxIter=most, tol=tol, top_n=k)
            columns = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in found], 1)
            return Spectrum(torch.tensor(values), columns, method.num_products)

        return call

    return prepare


def plain_gauss_newton(problem: Problem) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    """J^T H_z J v of the mean loss; J v is the derivative of J^T u in u."""
    parameters = list(problem.model.parameters())
    outputs = problem.model(problem.x)
    u = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, parameters, u, create_graph=True)
    z = outputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss_fn(z, problem.y), z, create_graph=True)

    def product(vector: list[Tensor]) -> Sequence[Tensor]:
        (change,) = torch.autograd.grad(pulled, u, vector, retain_graph=True)
        (bent,) = torch.autograd.grad(slope, z, change, retain_graph=True)
        return torch.autograd.grad(outputs, parameters, bent, retain_graph=True)

    return product


def residual(problem: Problem, found: Spectrum) -> float:
    """The largest |A v - value v| of unit vectors, over the largest eigenvalue, with our operator in float64."""
    import pullback as pb

    assert found.vectors is not None
    model = copy.deepcopy(problem.model).double()
    operator = pb.GaussNewton(model, problem.loss_fn, (problem.x.double(), problem.y))
    columns = torch.nn.functional.normalize(found.vectors.detach().double(), dim=0)
    values = found.values.double()
    return float((operator @ columns - columns * values).norm(dim=0).max() / values.max())


# The whole spectrum of the empirical Fisher matrix, from the Gram matrix of its N gradients


def from_gram(prepare_gram: Callable[[Problem], Call]) -> Callable[[Problem], Call]:
    """The eigenvalues of a peer's kernel, which are the non-zero ones of the Fisher matrix times N."""

    def prepare(problem: Problem) -> Call:
        gram = prepare_gram(problem)

        def call() -> Spectrum:
            blocks = gram()
            assert isinstance(blocks, Blocks)
            return Spectrum(torch.linalg.eigvalsh(blocks.total).flip(0) / len(problem.x))

        return call

    return prepare


def eigendecomposition(*, with_vectors: bool) -> Callable[[Problem], Call]:
    """The floor: one dense eigendecomposition, of the very matrix, which is there beforehand."""

    def prepare(problem: Problem) -> Call:
        blocks = kernels.pullback(problem)()
        assert isinstance(blocks, Blocks)
        gram = blocks.total / len(problem.x)

        def call() -> Spectrum:
            values = torch.linalg.eigh(gram).eigenvalues if with_vectors else torch.linalg.eigvalsh(gram)
            return Spectrum(values.flip(0))

        return call

    return prepare
