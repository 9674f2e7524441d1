"""Kernels shared out over the ranks of a ``torch.distributed`` group.

1. Every rank captures a stretch of the samples: one forward and backward pass over its share.
2. Layer inputs and output gradients are gathered, so that every rank holds those of all samples.
3. The tiles of a layer go round the ranks. Where gradient rows must be formed, every rank forms those of a stretch of
   the weight instead, for all samples, and from them its part of all tiles.
4. Tiles are exchanged; parts are added up, each stretch of the sum by one rank. So all ranks hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional import take, undisturbed
from pullback.functional.agreement import loosest
from pullback.functional.batch import Batch, tensors
from pullback.functional.unwrap import without_autocast
from pullback.kernels.assemble import Blocks, aligned, forward_order, partial_block
from pullback.kernels.assemble import check_sums as check_sums
from pullback.kernels.captured import Captured
from pullback.kernels.checks import SumChecks
from pullback.kernels.coverage import capture_factors
from pullback.kernels.distributed_blocks import SharedBlock, shared_blocks
from pullback.kernels.distributed_captures import gather, share_of
from pullback.kernels.distributed_team import Team
from pullback.kernels.gram import mirror
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan import KernelPlan
from pullback.kernels.planning import make_plan
from pullback.kernels.rates import Rates, machine_rates
from pullback.kernels.request import Request, Side


def run_in_group(make: Callable[[], Request], group: Any, where: str, *, by_output: bool = False) -> Kernel:
    """The kernel of a request that every rank makes for itself, the work shared by the ranks of ``group``.

    Args:
        make: makes (and checks) the request; an error in one rank is an error in all.
        group: a ProcessGroup, or "world".
        where: the caller.
        by_output: as for ``run``.
    """
    team = Team(group, where)
    with team.phase():
        request = make()
        _refuse(request, team)
        told = json.dumps(_fingerprint(request))
    _compare([json.loads(text) for text in team.texts(told)], where)
    sides = [request.rows] if request.columns is None else [request.rows, request.columns]
    shares = [share_of(side.count, team.rank, team.count) for side in sides]
    with team.phase():
        captures = [_captured(request, side, share) for side, share in zip(sides, shares, strict=True)]
        rates = _rates(captures[0]) if team.rank == 0 else None
    found = [gather(team, captured, share) for captured, share in zip(captures, shares, strict=True)]
    del captures
    rates = json.loads(team.texts(json.dumps(rates))[0])  # the first rank's, so that all choose the same forms
    with team.phase(), without_autocast():
        left, *right = aligned(*(side.whole for side in found)) if len(found) > 1 else [found[0].whole]
        own = aligned(*(side.own for side in found)) if len(found) > 1 else [found[0].own]
        plan = _plan(request, left, Rates(**rates))
        shared = shared_blocks(team, [left, *right], own, plan)
        for block in shared.values():
            block.run(team, plan, left.combination)
    for block in shared.values():
        block.complete(team)
    with team.phase(), without_autocast():
        blocks = _finished(shared, left, right[0] if right else None, plan, where)

    def block_of(names: tuple[str, ...]) -> Tensor:
        with without_autocast():
            return partial_block(left, right[0] if right else None, plan, names)

    return Kernel(blocks, forward_order(left), plan, left, block_of, symmetric=not right, by_output=by_output)


def _refuse(request: Request, team: Team) -> None:
    if request.memory_limit is not None:
        raise input_error(
            request.where,
            "`memory_limit` or `group`, not both",
            "both",
            "Leave one of them out; kernel_to_store shares kernels larger than memory over several processes",
        )
    device = next(iter(request.rows.view.parameters.values())).device.type
    if device not in team.devices:
        listed = " or ".join(repr(name) for name in team.devices)
        raise input_error(
            request.where,
            f"a model on a device of type {listed}, which `group` can exchange",
            repr(device),
            "Move the model, or pass a group of another backend, torch.distributed.new_group(backend=...)",
        )


def _fingerprint(request: Request) -> dict[str, Any]:
    """What must be the same on all ranks: arguments, weights and data; the tensors as one number each."""
    sides = [request.rows] if request.columns is None else [request.rows, request.columns]
    data = [leaf for side in sides for batch in (side.x, side.y) for leaf in ([] if batch is None else tensors(batch))]
    models = [side.view.model for side in sides]
    weights = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return {
        "arguments": [
            request.where,
            request.contract,
            request.keep_layers,
            sorted((request.forms or {}).items()),
            [[side.count, list(side.view.parameters)] for side in sides],
        ],
        "weights": [_shapes(weights), digest(weights)],
        "data": [_shapes(data), digest(data)],
    }


def _shapes(of: Iterable[Tensor]) -> list[Any]:
    return [[list(t.shape), str(t.dtype)] for t in of]


def digest(of: Iterable[Tensor]) -> int:
    """One number for the bits of tensors: other bits give another, but for one case in about 2^64."""
    odd, result = 0x9E3779B97F4A7C15 - 2**64, 0
    for t in of:
        numbers = t.detach().reshape(-1).contiguous().view(torch.uint8)
        for stretch in numbers.split(2**23):
            words = torch.cat([stretch, stretch.new_zeros(-len(stretch) % 8)]).view(torch.int64)
            places = torch.arange(1, 2 * len(words), 2, device=t.device) * odd  # all odd: no bit of a word is lost
            result = (result * 6364136223846793005 + int((words * places).sum())) % 2**64
    return result


def _compare(told: list[dict[str, Any]], where: str) -> None:
    remedies = {
        "arguments": "Make the same call on every rank",
        "weights": "Broadcast the model from one rank first, as DistributedDataParallel does",
        "data": "Pass all samples on every rank: the call itself shares them out",
    }
    for what, remedy in remedies.items():
        if other := [rank for rank, each in enumerate(told) if each[what] != told[0][what]]:
            got = f"others on rank {other[0]} than on rank 0"
            raise input_error(where, f"the same {what} on all {len(told)} ranks", got, remedy)


def _captured(request: Request, side: Side, share: slice) -> Captured:
    """Capture of a share; where that is empty, of the last sample, which shows how factors are built."""
    index = share if share.stop > share.start else slice(side.count - 1, side.count)
    x: Batch = take(side.x, index)
    y: Batch = None if side.y is None else take(side.y, index)
    with undisturbed(side.view.model):
        return capture_factors(side.view, request.readout, x, y, request.where)


def _rates(captured: Captured) -> dict[str, float]:
    like = captured.factors[0].like
    return asdict(machine_rates(like.device, like.dtype))


def _plan(request: Request, left: Captured, rates: Rates) -> KernelPlan:
    return make_plan(
        left,
        request.rows.count,
        None if request.columns is None else request.columns.count,
        None,
        request.where,
        contract=request.contract,
        forms=request.forms,
        keep_layers=request.keep_layers,
        rates=rates,
    )


def _finished(
    shared: dict[str, SharedBlock], left: Captured, right: Captured | None, plan: KernelPlan, where: str
) -> Blocks:
    """Mirror and check the blocks, and add up those of layers."""
    checks = SumChecks(where, loosest([side.dtype for side in (left, right) if side is not None]))
    layers: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name, made in shared.items():
        if right is None:
            mirror(made.block)
        done = [(part, totals) for (part, _), totals in zip(made.pairs, made.totals, strict=True)]
        check_sums(checks, made.block, done, name, left, right, plan)
        if plan.keep_layers:
            layers[name] = made.block
            total = made.block.clone() if total is None else total.add_(made.block)
        else:
            total = made.block
    checks.evaluate()
    return Blocks(total, layers)
