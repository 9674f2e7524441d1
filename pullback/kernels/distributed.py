"""Kernels shared out over the ranks of a ``torch.distributed`` group.

1. Every rank captures a stretch of the samples: one forward and backward pass over its share.
2. Layer inputs and output gradients are gathered, so that every rank holds those of all samples.
3. Of a layer whose tiles are made from them (ghost, shift, join), the tiles go round the ranks; of one whose gradient
   rows are formed, every rank forms the rows of a stretch of the weight for all samples, and its part of the kernel.
4. The parts are added up once, each stretch of the sum by one rank: all ranks hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.functional import take, undisturbed
from pullback.functional.batch import Batch, tensors
from pullback.functional.unwrap import without_autocast
from pullback.kernels.assemble import Blocks, Part, aligned, forward_order, new_block, partial_block, parts
from pullback.kernels.assemble import _check as check_sums
from pullback.kernels.checks import SumChecks, loosest
from pullback.kernels.coverage import Captured, capture_factors
from pullback.kernels.distributed_captures import gather, share_of
from pullback.kernels.distributed_team import Team
from pullback.kernels.factors import Factor, Form, Piece, Tensors, dense_pieces
from pullback.kernels.forms import tile_rows
from pullback.kernels.gram import matched, mirror, scaled, tiles
from pullback.kernels.kernel import Kernel
from pullback.kernels.outer import OuterFactor
from pullback.kernels.plan import KernelPlan, form_of, make_plan
from pullback.kernels.rates import Rates, machine_rates
from pullback.kernels.request import Request, Side

_TILED = ("ghost", "shift", "join")  # forms whose pieces are not gradient rows


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
        jobs = _own_blocks(team, [left, *right], own, plan)
    for job in jobs.values():
        job.add_up(team)
    with team.phase(), without_autocast():
        blocks = _finished(jobs, left, right[0] if right else None, plan, where)

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


@dataclass
class _Job:
    """A block (a layer's, or all), this rank's part of it first and then the sum, with the summed rows behind it."""

    block: Tensor
    done: list[tuple[Part, list[Tensors]]]
    symmetric: bool

    def add_up(self, team: Team) -> None:
        """Replace parts by sums over ranks; of a symmetric block only what is not above the diagonal is sent."""
        n1, n2 = self.block.shape[-2:]
        views = [self.block]
        if self.symmetric:
            views = [self.block[..., rows, columns] for rows, columns in tiles(n1, n2, 256, symmetric=True)]
        rows = [totals for _, both in self.done for totals in both]
        flat = [value for totals in rows for value in totals.values()]
        sums = team.sums([*views, *flat])
        for view, found in zip(views, sums, strict=False):
            view.copy_(found)
        found_rows = iter(sums[len(views) :])
        for totals in rows:
            totals.update({name: next(found_rows) for name in totals})


class _Turns:
    """Pieces of work go round the ranks; every rank counts all of them."""

    def __init__(self, team: Team) -> None:
        self.rank, self.count, self._next = team.rank, team.count, 0

    def mine(self) -> bool:
        """Whether the next piece is this rank's."""
        self._next += 1
        return (self._next - 1) % self.count == self.rank


def _own_blocks(team: Team, whole: list[Captured], own: list[Captured], plan: KernelPlan) -> dict[str, _Job]:
    """This rank's part of every block: layer -> block, or one block of all layers."""
    turns = _Turns(team)
    jobs: dict[str, _Job] = {}
    both = [captures[1] if len(captures) > 1 else None for captures in (whole, own)]
    for part, mine in zip(parts(whole[0], both[0]), parts(own[0], both[1]), strict=True):
        name = part.layer if plan.keep_layers else "all layers"
        if name not in jobs:
            jobs[name] = _Job(new_block(whole[0], both[0], plan).zero_(), [], both[0] is None)
        totals = _run_part(jobs[name].block, part, mine, plan, whole[0].combination, turns)
        jobs[name].done.append((part, totals))
    return jobs


def _run_part(block: Tensor, part: Part, own: Part, plan: KernelPlan, outputs: Tensor, turns: _Turns) -> list[Tensors]:
    """Add this rank's part of a layer's block, and return its part of the summed rows of each side, see ``add_gram``.

    Args:
        block: zero where nothing was added yet; of a symmetric one the lower triangle is made.
        part: rows of all samples.
        own: rows of this rank's samples, whose sum is this rank's part if no rows are formed.
        plan: the plan.
        outputs: combination of the outputs in the summed rows.
        turns: who does what.
    """
    form = form_of(plan, part.left)
    sides = [side for side in (part.left, part.right) if side is not None]
    if form == "unused":
        return [{} for _ in sides]
    tile = tile_rows(part.left, form, plan.contract)
    every = list(tiles(part.left.num_samples, sides[-1].num_samples, tile, symmetric=part.right is None))
    rows_each = part.left.num_outputs if plan.contract == "full" else 1
    most = min(plan.piece_bytes, part.left.piece_bytes) // part.left.element_size
    most //= sum(side.num_samples for side in sides)
    formed = form not in _TILED
    totals = [_zeros(side) for side in sides] if formed else _own_sums(own, outputs)
    for pieces in _own_pieces(sides, form, most, turns):
        for total, piece in zip(totals, pieces, strict=True):
            for name, offset, value in piece.totals(outputs) if formed else ():
                total[name][offset : offset + len(value)] += value
        for rows, columns in every:
            if formed or turns.mine():
                out = block[..., scaled(rows, rows_each), scaled(columns, rows_each)]
                pieces[0].tile(out, rows, pieces[-1], columns, plan.contract, add=True)
    return totals


def _own_pieces(sides: list[Factor], form: Form, max_numbers: int, turns: _Turns) -> Iterator[tuple[Piece, ...]]:
    """Pieces to work on here: all of those whose tiles are shared out, else this rank's."""
    if form in _TILED:
        yield from matched([side.pieces(form, max_numbers) for side in sides])
        return
    outers = [side for side in sides if isinstance(side, OuterFactor)]
    if not outers or (weight := outers[0].weight) is None:
        for pieces in matched([side.pieces(form, max_numbers) for side in sides]):
            if turns.mine():
                yield pieces
        return
    p = outers[0].dims[3]
    own = share_of(p, turns.rank, turns.count)
    if p < turns.count:  # no stretch for everybody
        own = slice(0, p) if turns.mine() else slice(0, 0)
    yield from matched([_weight_pieces(side, weight, own, max_numbers) for side in outers])
    if (bias := outers[0].bias) is not None and turns.mine():
        yield from matched([dense_pieces(bias, 0, side.bias_rows(slice(None))) for side in outers])


def _weight_pieces(factor: OuterFactor, name: str, outputs: slice, max_numbers: int) -> Iterator[Piece]:
    """Rows of a stretch of a layer's outputs for all samples, a few outputs at a time."""
    _, g, d, p = factor.dims
    step = max(1, max_numbers // (g * d * factor.num_outputs))
    for start in range(outputs.start, outputs.stop, step):
        stop = min(start + step, outputs.stop)
        block = factor.outer(slice(0, factor.num_samples), slice(start, stop))  # (n, C, g, p', d)
        for k in range(g):
            yield from dense_pieces(name, (k * p + start) * d, block[:, :, k].flatten(2))


def _zeros(factor: Factor) -> Tensors:
    return {name: factor.like.new_zeros(shape.numel()) for name, shape in factor.shapes.items()}


def _own_sums(part: Part, outputs: Tensor) -> list[Tensors]:
    """Summed rows of this rank's samples, flat, in the order of pieces."""
    sums = []
    for side in (part.left, part.right):
        if side is None:
            continue
        total = _zeros(side)
        if side.num_samples:
            found = side.total(outputs)
            total = {name: side.piece_order(name, value).reshape(-1).to(total[name]) for name, value in found.items()}
        sums.append(total)
    return sums


def _finished(jobs: dict[str, _Job], left: Captured, right: Captured | None, plan: KernelPlan, where: str) -> Blocks:
    """Mirror and check the blocks that were added up, and add them up in turn."""
    dtypes = [side.dtype for side in (left, right) if side is not None]
    checks = SumChecks(where, loosest(dtypes))
    total: Tensor | None = None
    for name, job in jobs.items():
        if right is None:
            mirror(job.block)
        check_sums(checks, job.block, job.done, name, left, right, plan)
        if plan.keep_layers:
            total = job.block.clone() if total is None else total.add_(job.block)
    checks.evaluate()
    return (
        Blocks(total, {name: job.block for name, job in jobs.items()})
        if plan.keep_layers
        else Blocks(jobs["all layers"].block, {})
    )
