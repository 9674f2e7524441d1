"""Kernels shared out over the ranks of a ``torch.distributed`` group.

1. Every rank captures a stretch of the samples: one forward and backward pass over its share.
2. Layer inputs and output gradients are gathered, so that every rank holds those of all samples.
3. The tiles of a layer go round the ranks. Where gradient rows must be formed, every rank forms those of a stretch of
   the weight instead, for all samples, and from them its part of all tiles.
4. Tiles are exchanged; parts are added up, each stretch of the sum by one rank. So all ranks hold the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
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
        jobs = _jobs(team, [left, *right], own, plan)
        for job in jobs.values():
            job.run(team, plan, left.combination)
    for job in jobs.values():
        job.complete(team)
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
    """A block (a layer's, or of all layers): this rank's part of it first, then the whole.

    Args:
        block: laid out as ``block_shape`` says; of a symmetric one the lower triangle is made.
        pairs: what goes into it: rows of all samples, and of this rank's.
        places: rank -> rows and columns, in samples, of the tiles it makes.
        rows_each: rows of the block a sample.
        summed: some gradient rows are formed, a stretch by each rank, so that every entry is a sum over ranks. Else
            every tile is made by one rank alone.
        totals: of every pair this rank's part of the summed rows of each side, then the whole.
    """

    block: Tensor
    pairs: list[tuple[Part, Part]]
    places: list[list[tuple[slice, slice]]]
    rows_each: int
    summed: bool
    totals: list[list[Tensors]] = field(default_factory=list)

    def tile(self, place: tuple[slice, slice]) -> Tensor:
        """A part of the block; rows and columns in samples."""
        rows, columns = place
        return self.block[..., scaled(rows, self.rows_each), scaled(columns, self.rows_each)]

    def run(self, team: Team, plan: KernelPlan, outputs: Tensor) -> None:
        """Make this rank's part."""
        add = self.summed
        if add:
            self.block.zero_()
        for part, own in self.pairs:
            form = form_of(plan, part.left)
            sides = [side for side in (part.left, part.right) if side is not None]
            formed = form == "materialise"
            totals = [_zeros(side) for side in sides] if formed else _own_sums(own, form, outputs)
            places = [place for of_rank in self.places for place in of_rank] if formed else self.places[team.rank]
            for pieces in _own_pieces(sides, form, plan, team):
                for total, piece in zip(totals, pieces, strict=True):
                    for name, offset, value in piece.totals(outputs) if formed else ():
                        total[name][offset : offset + len(value)] += value
                for rows, columns in places:
                    pieces[0].tile(self.tile((rows, columns)), rows, pieces[-1], columns, plan.contract, add=add)
                add = True
            ordered = zip(sides, totals, strict=True)
            self.totals.append([_in_piece_order(side, total) for side, total in ordered] if formed else totals)
        if not add:  # parameters nothing depends on
            self.block.zero_()

    def complete(self, team: Team) -> None:
        """Exchange the parts of the block and of the summed rows; nothing above the diagonal of a symmetric one."""
        views = [self.tile(place) for of_rank in self.places for place in of_rank] if self.summed else []
        rows = [totals for sides in self.totals for totals in sides]
        sums = iter(team.sums([*views, *(value for totals in rows for value in totals.values())]))
        for view in views:
            view.copy_(next(sums))
        for totals in rows:
            totals.update({name: next(sums) for name in totals})
        if not self.summed:
            self._exchange(team)

    def _exchange(self, team: Team) -> None:
        """Every tile from the rank that made it."""
        views = [[self.tile(place) for place in of_rank] for of_rank in self.places]
        sizes = [[view.numel() for view in of_rank] for of_rank in views]
        own = [view.reshape(-1) for view in views[team.rank]]
        found = team.exchanged(torch.cat(own) if own else self.block.new_empty(0), [sum(each) for each in sizes])
        for rank in (rank for rank in range(team.count) if rank != team.rank):
            for view, part in zip(views[rank], found[rank].split(sizes[rank]), strict=True):
                view.copy_(part.view_as(view))


def _jobs(team: Team, whole: list[Captured], own: list[Captured], plan: KernelPlan) -> dict[str, _Job]:
    """Layer -> block, or one block of all layers: nothing of them is made yet."""
    left, right = whole[0], whole[1] if len(whole) > 1 else None
    mine = parts(own[0], own[1] if right is not None else None)
    groups: dict[str, list[tuple[Part, Part]]] = {}
    for pair in zip(parts(left, right), mine, strict=True):
        groups.setdefault(pair[0].layer if plan.keep_layers else "all layers", []).append(pair)
    jobs: dict[str, _Job] = {}
    turn = 0
    for name, pairs in groups.items():
        forms = [form_of(plan, part.left) for part, _ in pairs]
        side = min(tile_rows(part.left, form, plan.contract) for (part, _), form in zip(pairs, forms, strict=True))
        places = list(tiles(left.num_samples, (right or left).num_samples, side, symmetric=right is None))
        shared = [places[(rank - turn) % team.count :: team.count] for rank in range(team.count)]
        turn += len(places)
        rows_each = left.num_outputs if plan.contract == "full" else 1
        jobs[name] = _Job(new_block(left, right, plan), pairs, shared, rows_each, "materialise" in forms)
    return jobs


def _own_pieces(sides: list[Factor], form: Form, plan: KernelPlan, team: Team) -> Iterator[tuple[Piece, ...]]:
    """Pieces to work on here: all of them where tiles are shared out; of rows that are formed this rank's stretch."""
    left = sides[0]
    numbers = min(plan.piece_bytes, left.piece_bytes) // left.element_size // sum(side.num_samples for side in sides)
    outers = [side for side in sides if isinstance(side, OuterFactor)]
    weight = outers[0].weight if outers else None
    if form != "materialise":
        yield from matched([side.pieces(form, numbers) for side in sides])
    elif weight is None:  # a bias alone, or a table that is also a head
        for place, pieces in enumerate(matched([side.pieces(form, numbers) for side in sides])):
            if place % team.count == team.rank:
                yield pieces
    else:
        own = share_of(outers[0].dims[3], team.rank, team.count)
        yield from matched([_weight_pieces(side, weight, own, numbers) for side in outers])
        if (bias := outers[0].bias) is not None and team.rank == 0:
            yield from matched([dense_pieces(bias, 0, side.bias_rows(slice(None))) for side in outers])


def _weight_pieces(factor: OuterFactor, name: str, outputs: slice, max_numbers: int) -> Iterator[Piece]:
    """Rows of a stretch of a layer's outputs for all samples, a few outputs at a time; numbers in the order (g, p, d).

    A convolution's own pieces may be stretches of inputs, in another order: they cannot be asked for by output.
    """
    _, g, d, p = factor.dims
    step = max(1, max_numbers // (g * d * factor.num_outputs))
    for start in range(outputs.start, outputs.stop, step):
        stop = min(start + step, outputs.stop)
        block = factor.outer(slice(0, factor.num_samples), slice(start, stop))  # (n, C, g, p', d)
        for k in range(g):
            yield from dense_pieces(name, (k * p + start) * d, block[:, :, k].flatten(2))


def _in_piece_order(factor: Factor, totals: Tensors) -> Tensors:
    """Summed rows from the order of ``_weight_pieces`` to the factor's own."""
    if not isinstance(factor, OuterFactor) or factor.weight is None:
        return totals
    _, g, d, p = factor.dims
    weight = factor._as_weight(totals[factor.weight].view(1, 1, g, p, d))[0, 0]
    return totals | {factor.weight: factor.piece_order(factor.weight, weight).reshape(-1)}


def _zeros(factor: Factor) -> Tensors:
    return {name: factor.like.new_zeros(shape.numel()) for name, shape in factor.shapes.items()}


def _own_sums(part: Part, form: Form, outputs: Tensor) -> list[Tensors]:
    """Summed rows of this rank's samples, flat, in the order of pieces; none where there are no pieces."""
    sums = []
    for side in (side for side in (part.left, part.right) if side is not None):
        total = {} if form == "unused" else _zeros(side)
        if total and side.num_samples:
            found = side.total(outputs)
            total = {name: side.piece_order(name, value).reshape(-1).to(total[name]) for name, value in found.items()}
        sums.append(total)
    return sums


def _finished(jobs: dict[str, _Job], left: Captured, right: Captured | None, plan: KernelPlan, where: str) -> Blocks:
    """Mirror and check the blocks, and add up those of layers."""
    checks = SumChecks(where, loosest([side.dtype for side in (left, right) if side is not None]))
    layers: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name, job in jobs.items():
        if right is None:
            mirror(job.block)
        done = [(part, totals) for (part, _), totals in zip(job.pairs, job.totals, strict=True)]
        check_sums(checks, job.block, done, name, left, right, plan)
        if plan.keep_layers:
            layers[name] = job.block
            total = job.block.clone() if total is None else total.add_(job.block)
        else:
            total = job.block
    checks.evaluate()
    return Blocks(total, layers)
