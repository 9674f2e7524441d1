"""Gradient rows of samples as numbers, and curvature made of them, where they fit: a product is then one of matrices.

A product by passes through the network costs every column a few passes over all samples. A sample's rows are few, and
often far smaller than what the network computes on the way to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional import LossFunction, ModelView, num_samples, output_hessian, take
from pullback.functional.batch import Batch
from pullback.functional.batches import Data
from pullback.functional.readout import loss_readout, output_readout
from pullback.functional.target_checks import logits_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.matrix import GradientRows
from pullback.operators.adapt import Dense
from pullback.operators.operator import Operator

CAPTURED = 256  # samples whose gradients are held as factors at a time
BLOCK_BYTES = 2**28  # of the rows made from them
HELD_BYTES = 2**31  # of rows, or of a matrix made of them, that are kept


@dataclass(frozen=True)
class RowBlock:
    """Rows (n C, P) of a few samples, what the model returned for them, and their targets."""

    rows: Tensor
    outputs: Any
    y: Batch


def row_blocks(
    view: ModelView, loss_fn: LossFunction | None, data: Data, num_rows: int, where: str
) -> Iterator[RowBlock]:
    """Gradients of the samples' losses, or without a loss of their outputs, ``num_rows`` a sample, some at a time.

    They are checked against the ordinary gradient as those of ``GradientMatrix`` are.
    """
    readout = output_readout() if loss_fn is None else loss_readout(loss_fn)
    step = max(1, min(CAPTURED, BLOCK_BYTES // (num_rows * view.num_params * itemsize(view))))
    for x, y in sample_blocks(data, step, where):
        captured = captured_rows(view, readout, x, y, where)
        yield RowBlock(GradientRows.of(captured, where).to_dense(), captured.outputs, y)


def sample_blocks(data: Data, block: int, where: str) -> Iterator[tuple[Batch, Batch]]:
    """Pairs of at most ``block`` samples."""
    for x, y in [data] if isinstance(data, tuple) else data:
        for start in range(0, num_samples(x, where), block):
            part = slice(start, start + block)
            yield take(x, part), take(y, part)


def count_samples(data: Data, where: str) -> int:
    """Samples of all batches."""
    return sum(num_samples(x, where) for x, _ in ([data] if isinstance(data, tuple) else data))


class HeldCurvature(Operator):
    """1/N F^T H F, (P, P), with the rows F (M, P) held; H acts within a sample, (N, M/N, M/N), or is the identity."""

    symmetric = True

    def __init__(self, rows: Tensor, bend: Tensor | None, num_samples: int) -> None:
        super().__init__((rows.shape[1], rows.shape[1]), rows.dtype, rows.device)
        self.rows, self.bend, self.num_samples = rows, bend, num_samples

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        return transposed_product(self.rows, bent(self.bend, self.rows @ matrix)) / self.num_samples


class HeldRows(Dense):
    """Rows F (M, P) that are held."""

    @without_autocast()
    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.matrix @ matrix

    @without_autocast()
    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return transposed_product(self.matrix, matrix)


def transposed_product(rows: Tensor, values: Tensor) -> Tensor:
    """F^T U for a large F and a few columns: this way round it takes a third of the time on a CPU."""
    return (values.T @ rows).T


def bent(bend: Tensor | None, values: Tensor) -> Tensor:
    """H times the rows' values, (M, K)."""
    if bend is None:
        return values
    return torch.einsum("ica,iak->ick", bend, values.unflatten(0, (len(bend), -1))).flatten(0, 1)


def check_precision(view: ModelView, where: str) -> None:
    """Refuse half precision: there rows and factors lose what a solve is about, and torch has none."""
    dtype = next(iter(view.parameters.values())).dtype
    if torch.finfo(dtype).bits < 32:
        remedy = "Pass a copy of the model, copy.deepcopy(model).float(), and inputs in float32"
        raise input_error(where, "parameters in float32 or float64", str(dtype), remedy)


def fits(view: ModelView, num_samples: int, num_rows: int) -> bool:
    """Whether the rows, or the matrix where it is smaller, take at most ``HELD_BYTES``."""
    P = view.num_params
    return itemsize(view) * P * min(P, num_samples * num_rows) <= HELD_BYTES


def held_rows(
    view: ModelView, loss_fn: LossFunction, data: Data, matrix: str, num_samples: int, num_rows: int, where: str
) -> HeldCurvature:
    """Gauss-Newton or empirical Fisher matrix by its rows."""
    check_precision(view, where)
    total = next(iter(view.parameters.values())).new_empty(num_samples * num_rows, view.num_params)
    bends, done = [], 0
    for rows, bend in _bent_blocks(view, loss_fn, data, matrix, num_rows, where):
        total[done : done + len(rows)] = rows
        done += len(rows)
        bends += [] if bend is None else [bend]
    return HeldCurvature(total, torch.cat(bends) if bends else None, num_samples)


@without_autocast()
def held_matrix(
    view: ModelView, loss_fn: LossFunction, data: Data, matrix: str, num_samples: int, num_rows: int, where: str
) -> Dense:
    """Gauss-Newton or empirical Fisher matrix itself, summed over some samples' rows at a time."""
    check_precision(view, where)
    total = next(iter(view.parameters.values())).new_zeros(view.num_params, view.num_params)
    for rows, bend in _bent_blocks(view, loss_fn, data, matrix, num_rows, where):
        total.addmm_(rows.T, bent(bend, rows))
    return Dense(total.add_(total.T.clone()).div_(2 * num_samples), symmetric=True)


def _bent_blocks(
    view: ModelView, loss_fn: LossFunction, data: Data, matrix: str, num_rows: int, where: str
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows of some samples, and H of each."""
    of_outputs = matrix == "gauss_newton"
    for block in row_blocks(view, None if of_outputs else loss_fn, data, num_rows, where):
        bend = output_hessian(loss_fn, logits_of(block.outputs).detach(), block.y, where) if of_outputs else None
        yield block.rows, bend


def itemsize(view: ModelView) -> int:
    """Bytes of one number of the parameters."""
    return next(iter(view.parameters.values())).element_size()
