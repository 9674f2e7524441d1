"""How a plan is made: a form for every layer, then smaller batches and pieces and more passes until it fits.

A form is the one with the least time, by operations and the machine's rates, unless one is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pullback._checks import as_number, check_names, input_error
from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Contract, Form, Products, Work
from pullback.gradients.rows.factor import Factor
from pullback.kernels.plan.kernel_plan import KernelPlan, LayerPlan
from pullback.kernels.plan.rates import Rates, machine_rates

TILE_ROWS = 512  # rows of a tile without positions: its temporaries (1 MB each in float32) stay in cache
SMALLEST_TILE_ROWS = 64  # rows of a tile below which products are slow
TILE_POSITIONS = 1024  # rows times positions of a tile with positions
SMALLEST_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class PlanOptions:
    """What a plan has to keep to.

    Args:
        contract: of the output axes.
        forms: layer or parameter name -> form, where the choice is not left to the cost.
        keep_layers: keep the blocks of all layers, if the limit allows.
        memory_limit: bytes to stay below; None plans without a limit.
        graph_bytes: see ``KernelPlan``.
        rates: of the machine; None takes this one's.
    """

    contract: Contract = "full"
    forms: Mapping[str, Form] | None = None
    keep_layers: bool = True
    memory_limit: int | None = None
    graph_bytes: int = 0
    rates: Rates | None = None


PLAIN = PlanOptions()
TOTAL = PlanOptions(keep_layers=False)


def make_plan(captured: Captured, n1: int, n2: int | None, where: str, options: PlanOptions = PLAIN) -> KernelPlan:
    """Choose a form per factor for an n1 x n1 (n2 None) or n1 x n2 kernel, and count.

    Args:
        captured: of any number of samples.
        n1: samples of the rows.
        n2: samples of the columns; None for the symmetric kernel.
        where: the caller.
        options: what the plan has to keep to.

    Raises:
        InputError: the memory limit cannot be kept; says what would be enough. A form a layer does not have.
    """
    forms, limit = options.forms or {}, options.memory_limit
    plain = limit is None or (isinstance(limit, int | float) and not math.isnan(limit))
    if not plain and math.isnan(as_number(limit)):  # another's number: NumPy's, torch's
        raise input_error(where, "`memory_limit` in bytes, or None", repr(limit), "Pass a number, 2**30 say")
    names = tuple(name for factor in captured.factors for name in factor.shapes)
    ordinary = sum(g.numel() * g.element_size() for g in captured.ordinary.values())
    sizes = [t.numel() * t.element_size() for t in tree_leaves(captured.outputs) if isinstance(t, Tensor)]
    C, like = captured.num_outputs, captured.factors[0].like
    asked = Products.of(n1, n2, C, options.contract)
    if forms:
        known = dict.fromkeys(part for name in names for part in (name, layer_of(name)))
        check_names(where, "layers and parameters in `forms`", forms, known)
    options = replace(options, rates=options.rates or machine_rates(like.device, like.dtype))
    seen: dict[int, Tensor] = {}
    layers, piece_bytes = [], 0
    for factor, rule in zip(captured.factors, captured.rules, strict=True):
        layers.append(layer_plan(factor, rule, asked, options, seen, where))
        piece_bytes = max(piece_bytes, min(layers[-1].rows_bytes, factor.piece_bytes))
    free = KernelPlan(
        shape=(n1 * C, (n2 or n1) * C) if asked.contract != "trace" else (n1, n2 or n1),
        samples=(n1, n2 or n1),
        num_outputs=C,
        contract=asked.contract,
        layers=tuple(layers),
        frozen=captured.view.frozen,
        keep_layers=options.keep_layers,
        passes=(names,),
        batch=max(n1, n2 or 0),
        block_bytes=torch.Size(asked.shape).numel() * like.element_size(),
        piece_bytes=piece_bytes,
        graph_bytes=options.graph_bytes,
        gradient_bytes=ordinary,
        output_bytes=sum(sizes) * (n1 + (n2 or 0)) // captured.num_samples,
        cross=n2 is not None,
    )
    if limit is None or free.peak_bytes <= limit:
        return free
    return _within(free, limit, where)


def layer_plan(
    factor: Factor,
    rule: str,
    asked: Products,
    options: PlanOptions,
    seen: dict[int, Tensor],
    where: str,
) -> LayerPlan:
    """How the rows of one factor are multiplied, and what that takes.

    Args:
        factor: the rows, of any number of samples.
        rule: that wrote them down.
        asked: the products.
        options: with the rates.
        seen: tensors other factors hold, see ``Factor.held_bytes``.
        where: the caller.

    Raises:
        InputError: a form was asked for that this layer does not have.
    """
    rates, both = options.rates, asked.n1 + (asked.n2 or 0)
    assert rates is not None
    form = choose_form(factor, asked, options, rates, where)
    work = factor.work(form, asked)
    tile = _tile_bytes(factor, form, asked) if work.stream else 0  # what passes through elementwise work is kept
    one, (held, kept) = factor.num_params * factor.element_size, factor.held_bytes(both, seen)
    rows = one * both * asked.num_outputs if form == "materialise" else 0
    return LayerPlan(
        parameters=tuple(factor.shapes),
        rule=rule,
        form=form,
        held_bytes=held,
        kept_bytes=kept,
        rows_bytes=rows,
        gradient_bytes=one,
        tile_bytes=factor.temporary_bytes(both, min(rows, factor.piece_bytes)) if rows else tile,
        flops=work.flops,
        seconds=seconds_of(work, rates),
    )


def choose_form(factor: Factor, asked: Products, options: PlanOptions, rates: Rates, where: str) -> Form:
    """The form asked for by layer or parameter name, or the cheapest one."""
    given = options.forms or {}
    for name in factor.shapes if given else ():
        form = given.get(name, given.get(layer_of(name)))
        if form is None:
            continue
        if form not in factor.forms:
            listed = ", ".join(repr(f) for f in factor.forms)
            raise input_error(where, f"a form of `{name}` among {listed}", repr(form), "Choose one of those")
        return form
    return cheapest_form(factor, asked, rates)


def cheapest_form(factor: Factor, asked: Products, rates: Rates) -> Form:
    """The form with the least estimated time."""
    works = {form: factor.work(form, asked) for form in factor.forms}
    return min(works, key=lambda form: seconds_of(works[form], rates))


def seconds_of(work: Work, rates: Rates) -> float:
    """Estimated time: everything at its own rate."""
    return work.gemm / rates.gemm + work.bmm / rates.bmm + work.stream / rates.stream


def _tile_bytes(factor: Factor, form: Form, asked: Products) -> int:
    """Temporaries of a tile: two matrices of its positions."""
    positions, rows_each = factor.positions(form), asked.num_outputs if asked.contract == "full" else 1
    side = min(asked.n1, tile_rows(factor, form, rows_each)) * positions
    outputs = rows_each if positions == 1 else 1
    return int(side * side * (1 + outputs**2) * factor.element_size)


def tile_rows(factor: Factor, form: Form, rows_each: int, *, triangle: bool = True) -> int:
    """Samples along the side of a tile: fewer where every sample brings many positions, or several rows of the block.

    At least eight tiles a side for a triangle, where they stay large enough: it then costs little more than half.
    """
    positions = factor.positions(form)
    if positions > 1:
        return max(1, TILE_POSITIONS // positions)
    most = (TILE_ROWS if rows_each == 1 else 2 * TILE_ROWS) // rows_each
    least = max(SMALLEST_TILE_ROWS, factor.num_samples // 8) if triangle else most
    return max(1, min(most, least))


def _within(free: KernelPlan, limit: int, where: str) -> KernelPlan:
    """The plan made smaller, step by step: smaller batches and pieces, more passes, no blocks of single layers."""
    smallest = min(free.piece_bytes, SMALLEST_PIECE_BYTES)
    for keep in (True, False) if free.keep_layers else (False,):
        least = replace(free, keep_layers=keep, piece_bytes=smallest, batch=1)
        for passes in range(1, len(free.layers) + 1):
            plan = replace(least, passes=_groups(free.layers, passes))
            if plan.peak_bytes <= limit:
                return _grown(plan, free, limit)
    needed = replace(least, passes=_groups(free.layers, len(free.layers))).peak_bytes
    raise input_error(
        where,
        f"a `memory_limit` of at least {needed} bytes for {free.samples[0]} x {free.samples[1]} samples",
        f"{limit}",
        "Raise the limit, pass fewer samples, or use kernel_to_store",
    )


def _grown(plan: KernelPlan, free: KernelPlan, limit: int) -> KernelPlan:
    """Pieces and batches as large as the limit allows."""
    for piece in (free.piece_bytes, free.piece_bytes // 4, free.piece_bytes // 16):
        if piece > plan.piece_bytes and replace(plan, piece_bytes=piece).peak_bytes <= limit:
            plan = replace(plan, piece_bytes=piece)
            break
    if replace(plan, batch=free.batch).peak_bytes <= limit:
        return replace(plan, batch=free.batch)
    low, high = plan.batch, free.batch - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if replace(plan, batch=middle).peak_bytes <= limit else (low, middle - 1)
    return replace(plan, batch=low)


def _groups(layers: tuple[LayerPlan, ...], count: int) -> tuple[tuple[str, ...], ...]:
    """Layers in ``count`` stretches of about equal captured bytes; the parameters of each."""
    share = sum(layer.held_bytes for layer in layers) / count
    groups: list[list[str]] = [[]]
    filled = 0.0
    for layer in layers:
        if groups[-1] and filled + layer.held_bytes / 2 > share * len(groups) and len(groups) < count:
            groups.append([])
        groups[-1] += layer.parameters
        filled += layer.held_bytes
    return tuple(tuple(group) for group in groups)
