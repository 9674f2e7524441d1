"""The methods under comparison: each returns the total backward kernel and the block of every layer.

All peers form the gradients of all samples and multiply them, one product per parameter, which is what their
users write; each parameter's gradients are let go as soon as its product is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.methods.problem import Blocks, Call, Problem

PEERS = ("torch.func vmap(grad)", "BackPACK BatchGrad", "opacus GradSampleModule")


def blocks_from_rows(rows: Iterable[tuple[str, Tensor]]) -> Blocks:
    """One product per parameter, (N, m) times its transpose, summed by layer."""
    layers: dict[str, Tensor] = {}
    for name, gradients in rows:
        block = gram(gradients)
        layer = name.rpartition(".")[0]
        layers[layer] = layers[layer].add_(block) if layer in layers else block
    total = torch.zeros_like(next(iter(layers.values())))
    for block in layers.values():
        total += block
    return Blocks(total, layers)


def gram(gradients: Tensor) -> Tensor:
    flat = gradients.flatten(1)
    return flat @ flat.T


def pullback(problem: Problem) -> Call:
    from pullback import backward_kernel

    model = problem.model.eval()

    def call() -> Blocks:
        kernel = backward_kernel(model, problem.loss_fn, problem.x, problem.y)
        return Blocks(kernel.total, dict(kernel.layers))

    return call


def vmap_grad(chunk: int) -> Callable[[Problem], Call]:
    """torch.func, ``chunk`` samples at a time, into rows allocated once (``chunk_size=`` would copy)."""

    def prepare(problem: Problem) -> Call:
        from torch.func import functional_call, grad, vmap

        parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return problem.loss(functional_call(problem.model, params, (x.unsqueeze(0),)), y.unsqueeze(0))

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))

        def call() -> Blocks:
            n = len(problem.x)
            rows = {name: torch.empty(n, p.numel()) for name, p in parameters.items()}
            for start in range(0, n, chunk):
                part = slice(start, start + chunk)
                for name, g in gradients(parameters, problem.x[part], problem.y[part]).items():
                    rows[name][part] = g.flatten(1)
            return blocks_from_rows((name, rows.pop(name)) for name in parameters)

        return call

    return prepare


def backpack(problem: Problem) -> Call:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model, loss_fn = extend(problem.model), extend(problem.loss_fn)

    def call() -> Blocks:
        with backpack(BatchGrad()):
            loss_fn(model(problem.x), problem.y).backward()
        return blocks_from_rows(_taken(model, "grad_batch"))

    return call


def opacus(problem: Problem, *, strict: bool = True) -> Call:
    from opacus.grad_sample import GradSampleModule

    # Opacus records in train mode only; the models here behave the same in both modes.
    model = GradSampleModule(problem.model.train(), loss_reduction="sum", strict=strict)

    def call() -> Blocks:
        problem.loss(model(problem.x), problem.y).backward()
        return blocks_from_rows(_taken(model._module, "grad_sample"))

    return call


def nngeometry(problem: Problem) -> Call:
    """Its Gram matrix with the whole batch as one piece; it has no blocks of layers."""
    from nngeometry import GramMatrix

    model = problem.model.eval()

    def losses(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="none").unsqueeze(1)

    def call() -> Blocks:
        gram_matrix = GramMatrix(model, (problem.x, problem.y), function=losses).to_torch()
        return Blocks(gram_matrix[0, :, 0, :], {})

    return call


def _taken(model: nn.Module, attribute: str) -> Iterable[tuple[str, Tensor]]:
    """The gradients a peer left on every parameter, each removed as it is handed out."""
    for name, parameter in model.named_parameters():
        gradients = getattr(parameter, attribute)
        setattr(parameter, attribute, None)
        parameter.grad = None
        yield name, gradients
        del gradients


def gemm(problem: Problem) -> Call:
    """The floor: the matrix products of a kernel alone, on random matrices, whole instead of one triangle.

    Layers without positions need A A^T and D D^T, done here as one product with all their d + p columns.
    Layers with positions need W_i = D_i^T A_i and then W W^T.
    """
    n = len(problem.x)
    columns = sum(d + p for T, d, p in problem.products if T == 1)
    flat = torch.randn(n, columns)
    with_positions = [(torch.randn(n, T, d), torch.randn(n, p, T)) for T, d, p in problem.products if T > 1]

    def call() -> None:
        _ = flat @ flat.T
        for a, d in with_positions:
            rows = torch.bmm(d, a).flatten(1)
            _ = rows @ rows.T

    return call


def gradient(problem: Problem) -> Call:
    """For scale: one forward and backward pass for the gradient of the summed loss, no kernel."""
    parameters = list(problem.model.parameters())

    def call() -> None:
        torch.autograd.grad(problem.loss(problem.model(problem.x), problem.y), parameters)

    return call


def gemm_flops(problem: Problem) -> float:
    """Operations of ``gemm``, an add and a multiply counted as two."""
    n = len(problem.x)
    return float(
        sum(2 * n * n * (d + p) if T == 1 else 2 * n * T * d * p + 2 * n * n * d * p for T, d, p in problem.products)
    )


def beside_peers(chunks: Iterable[int]) -> dict[str, Callable[[Problem], Call]]:
    """What kernels of small networks are measured beside; ``vmap`` of so many samples at a time."""
    return {
        "pullback.backward_kernel": pullback,
        "gemm": gemm,
        "ordinary gradient": gradient,
        **{f"{PEERS[0]}[chunks of {chunk}]": vmap_grad(chunk) for chunk in chunks},
        PEERS[1]: backpack,
        PEERS[2]: opacus,
        "NNGeometry GramMatrix": nngeometry,  # the total alone, from factored layers where it has them
    }
