"""Every public call that answers with gradients of a model, against loops over autograd: for models of one kind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional import num_samples, take
from tests.compare import assert_same


def columns_of(model: nn.Module, params: Iterable[str] | None) -> list[int]:
    """Places of the asked parameters among all trainable ones, in the model's order."""
    asked, places, start = None if params is None else set(params), [], 0
    for name, p in pb.ModelView.of(model).parameters.items():
        if asked is None or name in asked:
            places += range(start, start + p.numel())
        start += p.numel()
    return places


def check_kernels(model: nn.Module, loss_fn: Any, x: Any, y: Any, params: list[str] | None = None) -> None:
    """Kernels of losses and of outputs under every contraction, in batches and sketched; gradient rows by products."""
    asked = columns_of(model, params)
    G = reference.gradient_matrix(model, loss_fn, x, y)[:, asked]
    size, kernel = float((G @ G.T).abs().max()), G @ G.T
    found = pb.backward_kernel(model, loss_fn, x, y, params=params)
    assert_same(found.total, kernel, 1e-9)
    assert_same(torch.stack(list(found.layers.values())).sum(0), kernel, 1e-9)
    assert_same(torch.stack([found.parameters[name] for name in found.parameters]).sum(0), kernel, 1e-9)
    half = num_samples(x) // 2
    few = take(x, slice(0, half)), take(y, slice(0, half))
    across = pb.backward_kernel(model, loss_fn, x, y, x2=few[0], y2=few[1], params=params)
    assert_same(across.total, kernel[:, :half], 1e-9, scale=size)
    sketch = pb.sketch_kernel(model, loss_fn, x, y, size=4, repeats=8, params=params)
    assert bool(((sketch.total - kernel).abs() <= 8 * sketch.stderr + 1e-9 * size).all())
    assert pb.check_gradients(model, loss_fn, x, y, params=params).ok
    check_rows(pb.GradientMatrix(model, loss_fn, x, y, params=params), G)


def check_tangent(model: nn.Module, x: Any, params: list[str] | None = None) -> None:
    """Tangent kernels under the three contractions."""
    J = reference.output_gradients(model, x)[:, :, columns_of(model, params)]
    whole = torch.einsum("icp,jep->ijce", J, J)
    expected = {
        "full": whole,
        "trace": torch.einsum("ijcc->ij", whole),
        "diagonal": torch.einsum("ijcc->ijc", whole),
        "sum": whole.sum((2, 3)),
    }
    for contract, each in expected.items():
        total = pb.tangent_kernel(model, x, contract=contract, params=params).total  # type: ignore[arg-type]
        assert_same(total, each, 1e-9, scale=float(whole.abs().max()))


def check_rows(matrix: pb.GradientMatrix, G: Tensor) -> None:
    """Products from both sides, one vector and blocks, norms, the Gram matrix, single layers."""
    v = torch.randn(G.shape[1], 3, dtype=torch.float64)
    u = torch.randn(len(G), 3, dtype=torch.float64)
    size = float(G.abs().max()) * 10
    assert_same(matrix.to_dense(), G, 1e-9)
    assert_same(matrix @ v, G @ v, 1e-9, scale=size)
    assert_same(matrix @ v[:, 0], G @ v[:, 0], 1e-9, scale=size)
    assert_same(matrix.T @ u, G.T @ u, 1e-9, scale=size)
    assert_same(matrix.T @ u[:, 0], G.T @ u[:, 0], 1e-9, scale=size)
    assert_same(matrix.norms(), G.norm(dim=1), 1e-8)
    assert_same(matrix.gram.to_dense(), G @ G.T, 1e-9)
    parts = torch.cat([part.to_dense() for part in matrix.layers.values()], 1)
    assert_same(parts.square().sum(1), G.square().sum(1), 1e-9)
    for part in matrix.layers.values():
        some = torch.randn(part.shape[1], 2, dtype=torch.float64)
        assert_same(part @ some, part.to_dense() @ some, 1e-9, scale=size)


def check_store(model: nn.Module, loss_fn: Any, data: tuple[Any, Any], path: Path, params: Any = None) -> None:
    """The kernel on disk, made of blocks and tiles."""
    G = reference.gradient_matrix(model, loss_fn, *data)[:, columns_of(model, params)]
    store = pb.kernel_to_store(model, loss_fn, data, path, tile=3, params=params, progress=False)
    assert_same(store.to_dense(), G @ G.T, 1e-9)


def check_curvature(model: nn.Module, loss_fn: Any, x: Any, y: Any, params: list[str] | None = None) -> None:
    """Curvature operators, the spectrum by both routes, self-influence by the dual and by conjugate gradients."""
    asked, count = columns_of(model, params), num_samples(x)
    G = reference.gradient_matrix(model, loss_fn, x, y)[:, asked]
    fisher = G.T @ G / count
    for make, dense in (
        (pb.Hessian, reference.dense_hessian(model, loss_fn, x, y)[asked][:, asked]),
        (pb.GaussNewton, reference.dense_gauss_newton(model, loss_fn, x, y)[asked][:, asked]),
        (lambda *a, **k: pb.Fisher(*a, kind="empirical", **k), fisher),
    ):
        found = make(model, loss_fn, (x, y), params=params).to_dense()  # type: ignore[operator]
        assert_same(found, dense, 1e-9)
    values = torch.linalg.eigvalsh(fisher).flip(0)
    for method in ("gram", "lanczos"):
        spectrum = pb.curvature_spectrum(
            model,
            loss_fn,
            (x, y),
            "empirical_fisher",
            k=1,
            method=method,  # type: ignore[arg-type]
            params=params,
        )
        assert_same(spectrum.values[:1].to(values), values[:1], 1e-6)
    damped = fisher + 0.5 * torch.eye(len(fisher), dtype=torch.float64)
    expected = (G * torch.linalg.solve(damped, G.T).T).sum(1) / count
    settings: dict[str, Any] = {"damping": 0.5, "matrix": "empirical_fisher", "params": params}
    for method in ("dual", "cg"):
        own = pb.self_influence(model, loss_fn, (x, y), method=method, tol=1e-12, **settings)  # type: ignore[arg-type]
        assert_same(own.values, expected, 1e-8)
