"""The checks every call makes on itself: samples by definition, sums of rows, sums of kernels.

1. No parameter has a gradient outside its recorded uses (``Capture.escaped``); those that do go to the fallback.
2. For the first and the last sample, every parameter's rows equal the gradient of that sample alone in a batch of
   one, taken by plain autograd, which is the definition. It fails if samples are coupled, if the model is random,
   or if a rule is wrong, by more than the gradient moves when the parameters are rounded.
3. Per parameter, the rows sum to the ordinary gradient (of a fixed combination of the outputs, if there are several).
   For weights a layer is linear in, one number of that gradient, along a direction of signs, is taken from the
   recorded tensors instead: it finds the same errors and saves the third of a training step the gradient costs.
4. Per layer, ``u^T K u = |sum of u_c g_ic|^2``, which covers the making of the kernel. Contractions over outputs
   compare the entries between the first and the last sample with the inner products of their rows instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback._checks import self_check_error, unsupported
from pullback._rng import make_generator
from pullback.functional import ModelView
from pullback.functional.unwrap import without_autocast
from pullback.kernels.capture import direction
from pullback.kernels.factors import Contract, Factor, Tensors

if TYPE_CHECKING:
    from pullback.kernels.coverage import Captured


ROUNDINGS = 8  # draws that show how well a gradient is known; each flips a unit at its kink with even chances


def tolerance(dtype: torch.dtype) -> float:
    """Relative error above which two ways to one number disagree: the root of the dtype's rounding error."""
    return math.sqrt(torch.finfo(dtype).eps)


def loosest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype with the largest rounding error."""
    return max((d for d in dtypes if d.is_floating_point), key=lambda d: torch.finfo(d).eps, default=torch.float32)


def check_sample(
    factors: Iterable[Factor],
    alone: Callable[..., Tensors],
    view: ModelView,
    outputs: Tensor,
    index: int,
    dtype: torch.dtype,
    where: str,
) -> None:
    """Rows of one sample against its gradient in a batch of one, parameter by parameter.

    Args:
        factors: rows of all parameters.
        alone: the gradient of ``sum_c outputs_c f_c`` of the sample alone, parameter -> shape; of the model, or at the
            parameters given.
        view: the parameters.
        outputs: the combination, (C,).
        index: the sample.
        dtype: what the rows were captured in.
        where: the caller.
    """
    own = alone()
    with without_autocast():
        compared = {n: each for factor in factors for n, each in _compared(factor, own, outputs, index).items()}
    errors, sizes = torch.stack(list(compared.values())).unbind(1)
    bounds = tolerance(dtype) * (sizes + 0.1 * sizes.norm())
    if _first_above(errors, bounds) is None:
        return
    bounds = bounds + 2 * rounding(own, alone, view, dtype, dict(zip(compared, (errors - bounds) / 2, strict=True)))
    if (place := _first_above(errors, bounds)) is not None:
        raise unsupported(
            where,
            "samples whose gradients do not depend on the rest of the batch",
            f"for sample {index} and parameter `{list(compared)[place]}` a difference of {float(errors[place]):.2e} "
            f"from that sample alone (its norm: {float(sizes[place]):.2e})",
            "Call model.eval(), remove operations that mix or shuffle samples or draw random numbers, "
            "and see that the loss treats samples one by one",
        )


def _compared(factor: Factor, own: Tensors, outputs: Tensor, index: int) -> Tensors:
    """Per parameter the norms of the difference and of the gradient, (2,)."""
    found = {}
    for name, row in factor.rows(slice(index, index + 1)).items():
        combined = torch.einsum("c...,c->...", row[0], outputs.to(row))
        expected = own[name].to(row.dtype)
        found[name] = _norms([combined - expected, expected])
    return found


def rounding(
    own: Tensors, alone: Callable[..., Tensors], view: ModelView, dtype: torch.dtype, enough: Tensors
) -> Tensor:
    """How far rounding all parameters moves a sample's gradient, for each in ``enough``: the most of some draws.

    Draws end when all that is ``enough`` is explained, or after ``ROUNDINGS``.

    A unit of a ReLU network may lie so close to its kink that a batch of one, summed in another order, falls on the
    other side. With millions of units one does, and the gradient jumps by more than any rounding of its own. Zero if
    the gradient moves with no cause at all: then the model is random.
    """
    draw, names, needed = make_generator(0), list(enough), torch.stack(list(enough.values()))
    sizes = _norms([own[name] for name in names])
    moved = torch.zeros_like(sizes)
    for _ in range(ROUNDINGS):
        here, near = {}, {}
        for name, p in view.parameters.items():
            signs = torch.randint(2, p.shape, generator=draw, device="cpu").to(p) * 2 - 1
            here[name] = p.detach().clone().requires_grad_()
            near[name] = (p.detach() * (1 + 4 * torch.finfo(dtype).eps * signs)).requires_grad_()
        again, there = alone(here), alone(near)
        if (_norms([again[name] - own[name] for name in names]) > tolerance(dtype) * sizes).any():
            return torch.zeros_like(sizes)
        moved = torch.maximum(moved, _norms([there[name] - own[name] for name in names]))
        if (moved >= needed).all():
            break
    return moved


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t) for t in tensors]).double()


def _first_above(errors: Tensor, bounds: Tensor) -> int | None:
    """Place of the first error that is not within its bound; NaN is not."""
    bad = ~(errors <= bounds)
    return int(bad.nonzero()[0]) if bad.any() else None


@dataclass
class SumChecks:
    """Checks 3 and 4, gathered over all layers and evaluated in one comparison at the end.

    Errors are relative to a ``bound``, the most a sum of rows can be, sqrt(count sum of |g|^2), because the sum
    itself may cancel to nothing. A hundredth of all bounds of a kind together is allowed everywhere: where a gradient
    is zero but for rounding (a key's bias under softmax), its own bound is no more than rounding either.
    """

    where: str
    dtype: torch.dtype
    names: list[str] = field(default_factory=list)
    errors: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)

    def add_totals(self, factor: Factor, captured: Captured, totals: dict[str, Tensor], bound: Tensor) -> None:
        """Per parameter: summed rows against the ordinary gradient, or one number of it where only that was formed."""
        for name, total in totals.items():
            expected = captured.ordinary.get(name)
            if name in captured.probes:
                u, v = direction(factor.shapes[name], total)
                along = factor.piece_order(name, torch.outer(u, v).view(factor.shapes[name]))
                found = (total * along).sum(dtype=torch.float64) - captured.probes[name].to(total.device)
                if expected is not None:
                    found -= (factor.piece_order(name, expected) * along).sum(dtype=torch.float64)
                error = found.abs()
            else:
                error = torch.linalg.vector_norm(
                    total if expected is None else total - factor.piece_order(name, expected)
                )
            self._add(f"summed gradient of `{name}`", error, bound)

    def add_kernel(self, layer: str, found: Tensor, left: list[Tensor], right: list[Tensor], bound: Tensor) -> None:
        """Per layer: ``u^T K u`` against the inner product of the two summed gradients (one, if K is symmetric)."""
        inner = sum(
            ((a * b).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)), start=found.new_zeros(())
        )
        self._add(f"summed kernel of `{layer}`", (found - inner).abs(), bound)

    def add_entries(self, layer: str, found: Tensor, expected: Tensor, bound: Tensor) -> None:
        """Per layer: some entries of the kernel against inner products of rows."""
        self._add(f"kernel entries of `{layer}`", (found.double() - expected.double()).abs().max(), bound)

    def _add(self, name: str, error: Tensor, bound: Tensor) -> None:
        self.names.append(name)
        self.errors.append(error.double())
        self.bounds.append(bound.double())

    def evaluate(self) -> None:
        """Raise for the first check that fails."""
        if not self.errors:
            return
        errors, bounds = torch.stack(self.errors), torch.stack(self.bounds)
        kinds = [name.partition(" of ")[0] for name in self.names]
        for kind in set(kinds):
            own = torch.tensor([kind == other for other in kinds], device=bounds.device)
            bounds = torch.where(own, bounds + 0.01 * bounds[own].norm(), bounds)
        if (place := _first_above(errors, tolerance(self.dtype) * bounds)) is not None:
            raise self_check_error(
                self.where,
                f"the {self.names[place]} to agree with the ordinary gradient",
                f"a difference of {float(errors[place]):.2e} where at most {float(bounds[place]):.2e} is possible",
                "Please report this model; meanwhile leave that part out with `params=`",
            )


def summed(captured: Captured, where: str) -> Captured:
    """The capture with the sums of its rows, compared with the ordinary gradient, in place of that gradient."""
    checks = SumChecks(where, captured.dtype)
    sums: dict[str, Tensor] = {}
    for factor in captured.factors:
        rows = factor.total(captured.combination)
        square = factor.squared_norms().sum(dtype=torch.float64)
        bound = (captured.num_samples * captured.num_outputs * square.clamp(min=0)).sqrt()
        checks.add_totals(factor, captured, {n: factor.piece_order(n, row) for n, row in rows.items()}, bound)
        sums |= rows
    checks.evaluate()
    return replace(captured, ordinary=sums, probes={})


def quadratic(block: Tensor, outputs: Tensor) -> Tensor:
    """``u^T K u`` of a block (N1 C, N2 C) whose rows are (sample, output), u = ``outputs`` for every sample."""
    signs = outputs.to(block)
    left, right = (signs.repeat(size // len(outputs)) for size in block.shape)
    return ((left @ block).double() @ right.double()).sum()


def corner_entries(left: Factor, right: Factor, contract: Contract) -> Tensor:
    """Inner products of the rows of the first and the last sample on both sides, contracted over outputs."""
    a = [left.rows(slice(i, i + 1)) for i in (0, left.num_samples - 1)]
    b = [right.rows(slice(j, j + 1)) for j in (0, right.num_samples - 1)]
    pattern = "cm,cm->c" if contract == "diagonal" else "cm,cm->"
    each = [
        sum(torch.einsum(pattern, r[n][0].reshape(len(r[n][0]), -1), s[n][0].reshape(len(s[n][0]), -1)) for n in r)
        for r in a
        for s in b
    ]
    return torch.stack(each)  # type: ignore[arg-type]
