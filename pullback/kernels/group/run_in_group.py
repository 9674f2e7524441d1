"""Kernels shared out over the ranks of a ``torch.distributed`` group.

1. Every rank captures a stretch of the samples: one forward and backward pass over its share.
2. Layer inputs and output gradients are gathered, so that every rank holds those of all samples.
3. The tiles of a layer go round the ranks. Where gradient rows must be formed, every rank forms those of a stretch of
   the weight instead, for all samples, and from them its part of all tiles.
4. Tiles are exchanged; parts are added up, each stretch of the sum by one rank. So all ranks hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from pullback._checks import input_error
from pullback.functional import take
from pullback.functional.agreement import loosest
from pullback.functional.batch import Batch
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.capture.joined import aligned
from pullback.gradients.capture.sum_checks import SumChecks
from pullback.kernels.gram.blocks import Blocks, partial_block
from pullback.kernels.gram.parts import check_sums as check_sums
from pullback.kernels.gram.parts import mirror
from pullback.kernels.group.captures import gather
from pullback.kernels.group.same import compare, fingerprint
from pullback.kernels.group.shared_blocks import SharedBlock, shared_blocks
from pullback.kernels.group.team import Team
from pullback.kernels.kernel import Kernel
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.rates import Rates, machine_rates
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
        told = json.dumps(fingerprint(request))
    compare([json.loads(text) for text in team.texts(told)], where)
    sides = [request.rows] if request.columns is None else [request.rows, request.columns]
    shares = [team.stretch(side.count) for side in sides]
    with team.phase():
        captures = [_captured(request, side, share) for side, share in zip(sides, shares, strict=True)]
        rates = _rates(captures[0]) if team.rank == 0 else None
    gathered = [gather(team, captured, share) for captured, share in zip(captures, shares, strict=True)]
    del captures
    rates = json.loads(team.texts(json.dumps(rates))[0])  # the first rank's, so that all choose the same forms
    with team.phase(), without_autocast():
        left, *right = aligned(*(side.whole for side in gathered)) if len(gathered) > 1 else [gathered[0].whole]
        own = aligned(*(side.own for side in gathered)) if len(gathered) > 1 else [gathered[0].own]
        plan = request.plan(left, rates=Rates(**rates))
        shared = shared_blocks(team, [left, *right], own, plan)
        for block in shared.values():
            block.run(team, left.combination)
    for block in shared.values():
        block.complete(team)
    with team.phase(), without_autocast():
        blocks = _finished(shared, left, right[0] if right else None, plan, where)

    def block_of(names: tuple[str, ...]) -> Tensor:
        return partial_block(left, right[0] if right else None, plan, names)

    return Kernel(blocks, plan, left, block_of, symmetric=not right, by_output=by_output)


def _refuse(request: Request, team: Team) -> None:
    if request.options.memory_limit is not None:
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


def _captured(request: Request, side: Side, share: slice) -> Captured:
    """Capture of a share; where that is empty, of the last sample, which shows how factors are built."""
    index = share if share.stop > share.start else slice(side.count - 1, side.count)
    x: Batch = take(side.x, index)
    y: Batch = None if side.y is None else take(side.y, index)
    return captured_rows(side.view, request.readout, x, y, request.where)


def _rates(captured: Captured) -> dict[str, float]:
    like = captured.factors[0].like
    return asdict(machine_rates(like.device, like.dtype))


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
