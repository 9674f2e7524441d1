"""The estimates of all repeats, one after the other: their mean, their spread, and the checks of their sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import Tensor

from pullback.functional.agreement import loosest
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.gradients.rows.contract import Products
from pullback.kernels.gram.parts import Part, mirror, parts, quadratic
from pullback.kernels.sketch.project import Sketch
from pullback.kernels.sketch.sketched_rows import sketch_repeat


class Running:
    """Mean and squared deviations of blocks that come one after the other."""

    count = 0
    mean: Tensor
    squares: Tensor

    def add(self, block: Tensor) -> None:
        """Take in one more block."""
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = block.clone(), torch.zeros_like(block)
            return
        step = block - self.mean
        self.mean += step / self.count
        self.squares += step * (block - self.mean)

    def stderr(self) -> Tensor:
        """Standard error of the mean."""
        return (self.squares / (self.count * (self.count - 1))).sqrt()


def run_repeats(
    left: Captured, right: Captured | None, sketch: Sketch, exact: Collection[str], where: str
) -> tuple[Running, dict[str, Running]]:
    """Mean and spread over the repeats of the sketched layers' sum, (N1 C, N2 C), and of each layer."""
    whole, layers = Running(), defaultdict[str, Running](Running)
    sides = [left] if right is None else [left, right]
    checks = _Checks(len(sides))
    for repeat in range(sketch.repeats):
        rows = [sketch_repeat(side, sketch, exact, repeat) for side in sides]
        blocks: dict[str, Tensor] = {}
        for part in parts(rows[0], None if right is None else rows[1], None):
            block, sums = _block(part, left.combination)
            checks.add(part, block, sums, rows)
            blocks[part.layer] = blocks[part.layer] + block if part.layer in blocks else block
        for layer, block in blocks.items():
            layers[layer].add(block)
        whole.add(torch.stack(list(blocks.values())).sum(0))
    checks.evaluate(sides, sketch.repeats, where)
    return whole, layers


def _block(part: Part, outputs: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """One layer's block of one repeat, and the sums of the rows of each side."""
    n1, n2, C = part.left.num_samples, part.sides[-1].num_samples, len(outputs)
    block = part.left.like.new_empty(Products.of(n1, n2, C).shape)
    sums = part.add_to(block, outputs, add=False)
    if part.right is None:
        mirror(block, part.tile() * C)
    return block, sums


class _Checks:
    """Sums of rows and of kernels of every repeat against the ordinary gradients, sketched alike.

    They are compared at the end and relative to the mean size of all sketched rows. A single sketch of a single
    layer may be zero where the layer's rows are not: the signs of a column of L may all be equal, and the output
    gradients of a softmax sum to zero.
    """

    def __init__(self, num_sides: int) -> None:
        self.squares: list[Tensor | float] = [0.0] * num_sides
        self.rows: list[tuple[str, int, Tensor]] = []  # parameter, side, error
        self.kernels: list[tuple[str, Tensor]] = []  # layer, error

    def add(self, part: Part, block: Tensor, sums: list[dict[str, Tensor]], rows: list[Captured]) -> None:
        """Take in one layer's block of one repeat and the sums of its rows, ``rows`` holding the ordinary gradient."""
        inner = torch.zeros((), dtype=torch.float64, device=block.device)
        for side, (factor, total) in enumerate(zip(part.sides, sums, strict=True)):
            self.squares[side] = self.squares[side] + factor.squared_norms().sum(dtype=torch.float64)
            for name, value in total.items():
                self.rows.append((name, side, torch.linalg.vector_norm(value - rows[side].ordinary[name])))
        for name in sums[0]:
            inner = inner + rows[0].ordinary[name].double() @ rows[-1].ordinary[name].double()
        self.kernels.append((part.layer, (quadratic(block, rows[0].combination) - inner).abs()))

    def evaluate(self, sides: list[Captured], repeats: int, where: str) -> None:
        """Raise for the first check that fails."""
        checks = SumChecks(where, loosest(side.dtype for side in sides))
        counts = [side.num_samples * side.num_outputs for side in sides]
        bounds = [
            (count * torch.as_tensor(square) / repeats).sqrt()
            for count, square in zip(counts, self.squares, strict=True)
        ]
        for name, side, error in self.rows:
            checks.names.append(f"summed gradient of `{name}`")
            checks.errors.append(error.double())
            checks.bounds.append(bounds[side])
        for layer, error in self.kernels:
            checks.names.append(f"summed kernel of `{layer}`")
            checks.errors.append(error.double())
            checks.bounds.append(bounds[0] * bounds[-1])
        checks.evaluate()
