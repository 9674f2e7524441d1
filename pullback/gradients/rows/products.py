"""Products of a layer's gradient rows with blocks of vectors, and of their Gram matrix, in as few products as it takes.

Letters as in ``factors``; K columns at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Tensors
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import OuterFactor

COLUMNS = 32  # taken at a time where there are many: what is formed for them stays a few times a layer's inputs
_NUMBERS = 2**24  # images of the inputs formed at a time

GramProduct = Callable[[Tensor], Tensor]


def times(factor: Factor, vectors: Tensors) -> Tensor:
    """``G V``: parameter -> (K, *shape) to (N, C, K)."""
    if isinstance(factor, OuterFactor):
        return _outer_times(factor, vectors)
    count = len(next(iter(vectors.values())))
    if isinstance(factor, DenseFactor):
        n, C = factor.num_samples, factor.num_outputs
        parts = [g.reshape(n * C, -1) @ vectors[name].reshape(count, -1).T for name, g in factor.gradients.items()]
        return torch.stack(parts).sum(0).view(n, C, -1)
    columns = [factor.matvec({name: vectors[name][k] for name in factor.shapes}) for k in range(count)]
    return torch.stack(columns, 2)


def transposed_times(factor: Factor, weights: Tensor) -> Tensors:
    """``G^T U``: (N, C, K) to parameter -> (K, *shape)."""
    if isinstance(factor, OuterFactor):
        return _outer_transposed(factor, weights)
    if isinstance(factor, DenseFactor):
        flat = weights.flatten(0, 1).T  # (K, N C)
        return {
            name: (flat @ g.reshape(flat.shape[1], -1)).view(-1, *factor.shapes[name])
            for name, g in factor.gradients.items()
        }
    columns = [factor.rmatvec(weights[:, :, k]) for k in range(weights.shape[2])]
    return {name: torch.stack([column[name] for column in columns]) for name in factor.shapes}


def gram_product(factor: Factor) -> GramProduct:
    """``G G^T`` as a product, (N, C, K) to (N, C, K).

    A linear layer's is D (A A^T + 1) D^T. Where it has fewer samples (times positions) than twice its inputs, A A^T is
    formed once: a product then costs N^2 p operations, not 2 N d p.
    """
    n = factor.num_samples
    whole = isinstance(factor, OuterFactor) and len(list(factor.blocks(n))) == 1  # nothing is unfolded but in parts
    if not isinstance(factor, OuterFactor) or factor.dims[1] > 1 or not (whole or by_inputs(factor, n)):
        return lambda weights: times(factor, transposed_times(factor, weights))
    T, _, d, p = factor.dims
    right = factor.right(slice(None)).flatten(2).contiguous()  # (N, C, T p)
    a = torch.cat([factor.left(index) for index in factor.blocks(n)]).reshape(n * T, d)
    inner = a @ a.T + int(factor.bias is not None) if by_inputs(factor, n) else None

    def product(weights: Tensor) -> Tensor:
        combined = torch.bmm(weights.mT, right).view(n, -1, T, p)  # (N, K, T, p)
        combined = combined.transpose(1, 2).reshape(n * T, -1)  # (N T, K p)
        if inner is not None:
            image = inner @ combined
        elif factor.bias is not None:
            image = torch.addmm(combined.sum(0), a, a.T @ combined)
        else:
            image = a @ (a.T @ combined)
        image = image.view(n, T, -1, p).transpose(1, 2).reshape(n, -1, T * p)
        return torch.bmm(right, image.mT)

    return product


def by_inputs(factor: Factor, n: int) -> bool:
    """Whether ``gram_product`` for n samples goes through the Gram matrix of the inputs."""
    if not isinstance(factor, OuterFactor):
        return False
    T, g, d, _ = factor.dims
    return g == 1 and n * T <= 2 * d


def _samples(factor: OuterFactor, numbers: int) -> Iterator[slice]:
    """Stretches of samples that the factor works on at a time, and that bring at most ``_NUMBERS`` numbers."""
    step = max(1, _NUMBERS // max(1, numbers))
    for block in factor.blocks(factor.num_samples):
        for start in range(block.start, block.stop, step):
            yield slice(start, min(start + step, block.stop))


def _outer_times(factor: OuterFactor, vectors: Tensors) -> Tensor:
    T, g, d, p = factor.dims
    weight = torch.stack([factor.from_weight(v) for v in vectors[factor.weight]])  # (K, g, p, d)
    count = len(weight)
    shift = weight.new_zeros(()) if factor.bias is None else vectors[factor.bias].view(count, 1, g, p)
    result = factor.like.new_zeros(factor.num_samples, factor.num_outputs, count)
    for index in _samples(factor, T * g * count * p):
        a = factor.left(index)  # (n, T, g, d)
        if g == 1:
            image = (a.reshape(-1, d) @ weight.view(-1, d).T).view(len(a), T, count, 1, p).transpose(1, 2)
        else:
            image = torch.einsum("ntgd,kgpd->nktgp", a, weight)
        image = (image + shift).flatten(2)  # (n, K, T g p)
        result[index] = torch.bmm(factor.right(index).flatten(2), image.mT)
    return result


def _outer_transposed(factor: OuterFactor, weights: Tensor) -> Tensors:
    T, g, d, p = factor.dims
    count = weights.shape[2]
    weight = factor.like.new_zeros(count, g, p, d)
    bias = factor.like.new_zeros(count, g * p)
    for index in _samples(factor, T * g * count * p):
        right = factor.right(index).flatten(2)  # (n, C, T g p)
        combined = torch.bmm(weights[index].mT, right).view(-1, count, T, g, p)
        bias += combined.sum((0, 2)).flatten(1)
        a = factor.left(index)
        if g == 1:
            both = combined.transpose(1, 2).reshape(-1, count * p)  # (n T, K p)
            weight.view(-1, d).addmm_(both.T, a.reshape(-1, d))
        else:
            weight += torch.einsum("nktgp,ntgd->kgpd", combined, a)
    found = {factor.weight: factor.as_weight(weight.unsqueeze(1)).squeeze(1)}
    if factor.bias is not None:
        found[factor.bias] = bias
    return found
