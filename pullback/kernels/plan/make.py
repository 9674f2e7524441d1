"""How a plan is made: a form for every layer, then smaller batches and pieces and more passes until it fits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pullback._checks import check_names, input_error
from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import block_shape
from pullback.kernels.plan.forms import PlanOptions, layer_plan
from pullback.kernels.plan.kernel_plan import KernelPlan, LayerPlan
from pullback.kernels.plan.rates import machine_rates

SMALLEST_PIECE_BYTES = 2**20


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
    contract, forms, limit = options.contract, options.forms or {}, options.memory_limit
    both, C = n1 + (n2 or 0), captured.num_outputs
    like = captured.factors[0].like
    if forms:
        known = dict.fromkeys(part for factor in captured.factors for n in factor.shapes for part in (n, layer_of(n)))
        check_names(where, "layers and parameters in `forms`", forms, known)
    options = replace(options, rates=options.rates or machine_rates(like.device, like.dtype))
    seen: dict[int, Tensor] = {}
    layers, piece_bytes = [], 0
    for factor, rule in zip(captured.factors, captured.rules, strict=True):
        layers.append(layer_plan(factor, rule, (n1, n2), options, seen, where))
        piece_bytes = max(piece_bytes, min(layers[-1].rows_bytes, factor.piece_bytes))
    shape = block_shape(n1, n2 or n1, C, contract)
    ordinary = sum(g.numel() * g.element_size() for g in captured.ordinary.values())
    sizes = [t.numel() * t.element_size() for t in tree_leaves(captured.outputs) if isinstance(t, Tensor)]
    free = KernelPlan(
        shape=(n1 * C, (n2 or n1) * C) if contract != "trace" else (n1, n2 or n1),
        samples=(n1, n2 or n1),
        num_outputs=C,
        contract=contract,
        layers=tuple(layers),
        frozen=captured.view.frozen,
        keep_layers=options.keep_layers,
        passes=(tuple(name for layer in layers for name in layer.parameters),),
        batch=max(n1, n2 or 0),
        block_bytes=torch.Size(shape).numel() * like.element_size(),
        piece_bytes=piece_bytes,
        graph_bytes=options.graph_bytes,
        gradient_bytes=ordinary,
        output_bytes=sum(sizes) * both // captured.num_samples,
        cross=n2 is not None,
    )
    if limit is None or free.peak_bytes <= limit:
        return free
    return _within(free, limit, where)


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
