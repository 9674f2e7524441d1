"""One layer's part of a kernel, and how it runs in the form its plan gives it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Form, block_shape
from pullback.gradients.rows.factor import Factor
from pullback.kernels.gram.tiles import add_gram
from pullback.kernels.plan.forms import tile_rows
from pullback.kernels.plan.kernel_plan import KernelPlan


@dataclass(frozen=True)
class Part:
    """Rows of one layer (or the part of it that is in one factor), of both sides."""

    layer: str
    left: Factor
    right: Factor | None


def new_block(left: Captured, right: Captured | None, plan: KernelPlan) -> Tensor:
    """An empty block of the kernel."""
    n1, n2 = left.num_samples, (right or left).num_samples
    return left.factors[0].like.new_empty(block_shape(n1, n2, left.num_outputs, plan.contract))


def run_part(block: Tensor, part: Part, plan: KernelPlan, outputs: Tensor, *, add: bool) -> list[dict[str, Tensor]]:
    """One layer's tiles; of a symmetric block the lower triangle."""
    form = form_of(plan, part.left)
    tile = tile_rows(part.left, form, plan.contract)
    most = min(plan.piece_bytes, part.left.piece_bytes)
    return add_gram(block, part.left, part.right, form, plan.contract, most, tile, outputs, add=add)


def parts(left: Captured, right: Captured | None, only: Iterable[str] | None = None) -> Iterator[Part]:
    """Factors split where they span layers (the fallback and unused ones do), or down to the parameters ``only``."""
    others: list[Factor | None] = [None] * len(left.factors) if right is None else list(right.factors)
    wanted = None if only is None else set(only)
    for factor, other in zip(left.factors, others, strict=True):
        names = [n for n in factor.shapes if wanted is None or n in wanted]
        if len(names) == len(factor.shapes) and len({layer_of(n) for n in names}) == 1:
            yield Part(layer_of(names[0]), factor, other)
        else:
            for name in names:
                yield Part(layer_of(name), factor.only(name), other and other.only(name))


def form_of(plan: KernelPlan, factor: Factor) -> Form:
    """The planned form of a factor, or of the part of one."""
    names = set(factor.shapes)
    planned = next(layer.form for layer in plan.layers if names & set(layer.parameters))
    return planned if planned in factor.forms() else factor.forms()[0]
