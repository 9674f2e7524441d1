"""How a kernel call runs: capture, plan and assemble, in one pass or in as many as the memory allows."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from torch import Tensor

from pullback._checks import input_error
from pullback.functional import take, undisturbed
from pullback.functional.batches import stamp_of
from pullback.functional.memory import graph_bytes
from pullback.functional.repeatable import values_of
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import capture_factors, captured_rows
from pullback.gradients.capture.joined import Filling, aligned
from pullback.kernels.gram.blocks import Blocks, assemble, partial_block
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan.allocator import freed_at_once, give_back
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.request import Request, Side


def run(request: Request, *, by_output: bool = False) -> Kernel:
    """Compute the kernel asked for."""
    if request.options.memory_limit is not None:
        return _run_within(request, by_output=by_output)
    plan = None
    if request.several_outputs:  # their gradients may be far larger than rows made of them
        few = template(request, check=False)
        plan = request.plan(few.captured, few.graph_bytes).condensing()
    if plan is not None and plan.batch < max(plan.samples):
        left, right = _both_in_batches(request, plan, plan.passes[0])
    else:
        left, right = _at_once(request, request.rows), None
        if request.columns is not None:
            left, right = aligned(left, _at_once(request, request.columns))
        plan = request.plan(left)
    blocks = assemble(left, right, plan, request.where)

    def block_of(names: tuple[str, ...]) -> Tensor:
        return partial_block(left, right, plan, names)

    return Kernel(blocks, plan, left, block_of, symmetric=right is None, by_output=by_output)


@dataclass(frozen=True)
class Template:
    """Capture of the first two samples (one does not show the sample axis).

    Args:
        captured: the capture.
        graph_bytes: what autograd saves for each sample.
    """

    captured: Captured
    graph_bytes: int


def template(request: Request, *, check: bool = True) -> Template:
    """What a plan is made from; one that is carried out at once compares samples then, and not here."""
    side = request.rows
    few = slice(0, min(2, side.count))
    x, y = take(side.x, few), take(side.y, few)
    with undisturbed(side.view.model):
        captured = capture_factors(side.view, request.readout, x, y, request.where, check=check)
        saved = graph_bytes(side.view, request.readout, x, y, request.where)
    return Template(captured, saved // captured.num_samples)


def _at_once(request: Request, side: Side) -> Captured:
    return captured_rows(side.view, request.readout, side.x, side.y, request.where)


def _run_within(request: Request, *, by_output: bool) -> Kernel:
    """Several passes over the data, each for some of the layers, in batches: what the plan says."""
    blocks: Blocks | None = None
    last: Captured | None = None
    made_of = _stamp(request)
    with freed_at_once(request.options.memory_limit):
        few = template(request, check=False)
        plan = request.plan(few.captured, few.graph_bytes)
        print(plan, file=sys.stderr)
        for names in plan.passes:
            last = None  # its outputs are made again
            left, right = _both_in_batches(request, plan, names)
            blocks = assemble(left, right, plan, request.where, blocks)
            last = replace(left, view=request.rows.view, order=few.captured.order, factors=(), ordinary={}, probes={})
            del left, right
            give_back(request.options.memory_limit)
    assert blocks is not None
    assert last is not None

    def block_of(names: tuple[str, ...]) -> Tensor:
        if _stamp(request) != made_of:
            what = f"{request.where}, block of `{names[0]}`"
            raise input_error(
                what,
                "the model and data of the kernel: under a `memory_limit` they are captured again for this",
                "other weights, buffers, modes or data",
                "Ask for it before they change, or raise the limit",
            )
        left, right = _both_in_batches(request, plan, names)
        return partial_block(left, right, plan, names)

    return Kernel(blocks, plan, last, block_of, symmetric=request.columns is None, by_output=by_output)


def _stamp(request: Request) -> list[object]:
    """Differs once a model or its data have been written to; calls put buffers back, which raises their versions."""
    sides = [side for side in (request.rows, request.columns) if side is not None]
    return [(values_of(side.view.model), stamp_of(side.x, side.y)) for side in sides]


def _both_in_batches(request: Request, plan: KernelPlan, names: tuple[str, ...]) -> tuple[Captured, Captured | None]:
    """Rows and columns of some parameters."""
    left = _in_batches(request, request.rows, plan, names)
    if request.columns is None:
        return left, None
    left, right = aligned(left, _in_batches(request, request.columns, plan, names))
    return left, right


def _in_batches(request: Request, side: Side, plan: KernelPlan, names: tuple[str, ...]) -> Captured:
    """Factors of some parameters, captured a batch at a time; gradient rows where those are smaller."""
    view, batch = side.view.restricted(names), plan.batch
    filling: Filling | None = None
    with undisturbed(side.view.model):
        for start in range(0, side.count, batch):
            index = slice(start, min(start + batch, side.count))
            known = filling.first.first if filling else None
            x, y = take(side.x, index), take(side.y, index)
            captured = capture_factors(view, request.readout, x, y, request.where, known)
            if batch >= side.count and not plan.condensed:
                return captured
            captured = _condensed(captured, plan)
            filling = filling or Filling(captured, side.count)
            give_back(request.options.memory_limit)
            filling.add(captured)
            del captured
            give_back(request.options.memory_limit)
    assert filling is not None
    return filling.captured()


@without_autocast()
def _condensed(captured: Captured, plan: KernelPlan) -> Captured:
    factors = [f.condensed() if plan.condensed & set(f.shapes) else f for f in captured.factors]
    return replace(captured, factors=tuple(factors))
