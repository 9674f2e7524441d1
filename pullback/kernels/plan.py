"""The plan of a kernel: the form of every layer, passes, operations, bytes and time, printable before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pullback._checks import check_names, input_error
from pullback.functional.model_view import layer_of
from pullback.kernels.coverage import Captured
from pullback.kernels.factors import Contract, Factor, Form
from pullback.kernels.forms import choose_form, seconds_of, tile_rows
from pullback.kernels.gram import block_shape
from pullback.kernels.rates import Rates, machine_rates

if TYPE_CHECKING:
    from pullback.kernels.scale import ScalePlan

SMALLEST_PIECE_BYTES = 2**20
BASE_BYTES = 48 * 2**20  # what libraries and the allocator take beside the tensors, but no more than those
PASS_SHARE = 1.12  # of the tensors of a pass, what the allocator takes for them; measured, as the next three
BATCH_SHARE = 1.35  # the same where batches or passes follow each other and leave holes
PARTS_SHARE = 1.15  # of the whole peak, then
HELD_SHARE = 1.2  # of tensors filled batch by batch
CAPTURE_BYTES = 96 * 2**20  # captured at a time where gradient rows take their place: near the caches, and reused


@dataclass(frozen=True)
class LayerPlan:
    """How one layer's block is computed.

    Args:
        parameters: names of the parameters it covers.
        rule: which rule wrote their gradients down.
        form: "ghost" (Gram matrices of inputs and output gradients), "shift" (the same for convolutions, from Gram
            matrices of pixels), "materialise" (gradient rows, then one product), "dense" (rows that are small
            anyway), "join" (embedding), "fallback" or "unused".
        flops: operations of the block, an add and a multiply counted as two.
        held_bytes: captured tensors kept for it, beyond the data.
        kept_bytes: those among them that autograd keeps for its backward pass anyway.
        data_bytes: captured tensors that are the data themselves; they are copied only if it comes in batches.
        rows_bytes: gradient rows, which take the place of captured tensors batch by batch if they are smaller; 0 if the
            form does not use them.
        seconds: estimated from the machine's rates.
    """

    parameters: tuple[str, ...]
    rule: str
    form: Form
    flops: float
    held_bytes: int
    kept_bytes: int
    data_bytes: int
    rows_bytes: int
    seconds: float

    @property
    def condensed(self) -> bool:
        """Whether gradient rows are held in place of captured tensors, where the data comes in batches."""
        return 0 < self.rows_bytes < self.held_bytes + self.data_bytes


@dataclass(frozen=True)
class KernelPlan:
    """What a kernel will cost; ``str(plan)`` is a table.

    Args:
        shape: of the kernel as a matrix, rows and columns.
        samples: (N1, N2).
        num_outputs: C.
        contract: of the output axes.
        layers: in the order of the forward pass.
        frozen: parameters that are not trained and so not in the kernel.
        keep_layers: whether the blocks of all layers are kept, or computed when they are asked for.
        passes: parameters covered by each pass over the data.
        batch: samples in one forward pass.
        block_bytes: one block of the kernel.
        piece_bytes: bound on gradient rows formed at a time.
        tile_bytes: other temporaries of pieces and tiles.
        graph_bytes: what autograd saves for one sample.
        gradient_bytes: ordinary gradients formed beside.
        cross: rows and columns are two sets.
        scale: the same kernel made tile by tile on disk, by one worker or many, if ``plan_kernel`` was asked for it.
    """

    shape: tuple[int, int]
    samples: tuple[int, int]
    num_outputs: int
    contract: Contract
    layers: tuple[LayerPlan, ...]
    frozen: tuple[str, ...]
    keep_layers: bool
    passes: tuple[tuple[str, ...], ...]
    batch: int
    block_bytes: int
    piece_bytes: int
    tile_bytes: int
    graph_bytes: int
    gradient_bytes: int
    cross: bool = False
    scale: ScalePlan | None = None

    @property
    def flops(self) -> float:
        """Operations of all blocks, without the forward and backward passes."""
        return sum(layer.flops for layer in self.layers)

    @property
    def seconds(self) -> float:
        """Estimated time of all blocks, without the forward and backward passes."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def kernel_bytes(self) -> int:
        """The total block, and one block a layer if they are kept."""
        return self.block_bytes * (1 + len(self._blocks) if self.keep_layers else 2)

    @property
    def _blocks(self) -> set[str]:
        return {name.rpartition(".")[0] for layer in self.layers for name in layer.parameters}

    @property
    def held_bytes(self) -> int:
        """Captured tensors of the largest pass."""
        return max((self._held(names) for names in self.passes), default=0)

    def _in_pass(self, names: tuple[str, ...]) -> list[LayerPlan]:
        return [layer for layer in self.layers if set(layer.parameters) & set(names)]

    @property
    def _in_batches(self) -> bool:
        return self.batch < max(self.samples)

    def _held(self, names: tuple[str, ...]) -> int:
        layers = self._in_pass(names)
        if not self._in_batches:
            return sum(a.held_bytes for a in layers)
        return sum(a.rows_bytes if a.condensed else a.held_bytes + a.data_bytes for a in layers)

    @property
    def condensed(self) -> frozenset[str]:
        """Parameters whose gradient rows are held in place of captured tensors."""
        layers = [a for a in self.layers if a.condensed and self._in_batches]
        return frozenset(name for a in layers for name in a.parameters)

    def condensing(self) -> KernelPlan:
        """The plan in batches, if that saves at least half of what would be captured at once."""
        captured = sum(a.held_bytes for a in self.layers)
        saved = sum(a.held_bytes - a.rows_bytes for a in self.layers if a.condensed)
        if captured <= CAPTURE_BYTES or saved < captured / 2:
            return self
        return replace(self, batch=max(1, self.batch * CAPTURE_BYTES // captured))

    @property
    def peak_bytes(self) -> int:
        """Estimated bytes held at once, above the model and the data: of the dearest moment of the dearest pass."""
        return max(self._peak(place, names) for place, names in enumerate(self.passes))

    def _peak(self, place: int, names: tuple[str, ...]) -> int:
        """While the last batch is captured, and while the kernel is made."""
        held, layers = self._held(names), self._in_pass(names)
        both = sum(self.samples) if self.cross else self.samples[0]
        share = min(1.0, self.batch / both)
        new = sum(a.held_bytes - a.kept_bytes for a in layers) * share
        known = self.kernel_bytes if place else 0
        in_parts = self._in_batches or len(self.passes) > 1
        passing = (self.batch * self.graph_bytes + new) * (BATCH_SHARE if in_parts else PASS_SHARE)
        held = int(held * HELD_SHARE) if self._in_batches else held
        capturing = known + held * (1 - share) + passing + self.gradient_bytes
        making = held + self.kernel_bytes + self.piece_bytes + self.tile_bytes
        tensors = int(max(capturing, making) * (PARTS_SHARE if in_parts else 1))
        return tensors + min(tensors, BASE_BYTES)

    def __str__(self) -> str:
        rows = [("parameters", "rule", "form", "GFLOP", "MB held", "s")]
        rows += [
            (
                ", ".join(a.parameters),
                a.rule,
                a.form,
                f"{a.flops / 1e9:.3g}",
                f"{a.held_bytes / 2**20:.3g}",
                f"{a.seconds:.2g}",
            )
            for a in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        outputs = f", {self.num_outputs} outputs ({self.contract})" if self.num_outputs > 1 else ""
        lines.append(
            f"kernel {self.shape[0]} x {self.shape[1]}{outputs}: {self.flops / 1e9:.3g} GFLOP, about "
            f"{self.seconds:.2g} s of products, {self.peak_bytes / 2**20:.0f} MB at the peak"
        )
        if len(self.passes) > 1 or self.batch < max(self.samples):
            lines.append(f"{len(self.passes)} passes over the data, {self.batch} samples at a time")
        if not self.keep_layers:
            lines.append("blocks of single layers are computed when they are asked for")
        if self.frozen:
            lines.append(f"frozen, not covered: {', '.join(self.frozen)}")
        if self.scale is not None:
            lines += ["", str(self.scale)]
        return "\n".join(lines)


def make_plan(
    captured: Captured,
    n1: int,
    n2: int | None,
    memory_limit: int | None,
    where: str,
    *,
    contract: Contract = "full",
    forms: Mapping[str, Form] | None = None,
    keep_layers: bool = True,
    graph_bytes: int = 0,
    data: frozenset[int] = frozenset(),
    rates: Rates | None = None,
) -> KernelPlan:
    """Choose a form per factor for an n1 x n1 (n2 None) or n1 x n2 kernel, and count.

    Args:
        captured: of any number of samples.
        n1: samples of the rows.
        n2: samples of the columns; None for the symmetric kernel.
        memory_limit: bytes to stay below; None plans without a limit.
        where: the caller.
        contract: of the output axes.
        forms: layer or parameter name -> form, where the choice is not left to the cost.
        keep_layers: keep the blocks of all layers, if the limit allows.
        graph_bytes: what autograd saves for one sample.
        data: storages of the data, by ``storage_key``.
        rates: of the machine; None takes this one's.

    Raises:
        InputError: the memory limit cannot be kept; says what would be enough. A form a layer does not have.
    """
    both, C = n1 + (n2 or 0), captured.num_outputs
    like = captured.factors[0].like
    known = dict.fromkeys(part for factor in captured.factors for n in factor.shapes for part in (n, layer_of(n)))
    check_names(where, "layers and parameters in `forms`", forms or {}, known)
    speed = rates or machine_rates(like.device, like.dtype)
    layers = []
    seen: set[int] = set()
    for factor, rule in zip(captured.factors, captured.rules, strict=True):
        form = choose_form(factor, n1, n2, contract, forms or {}, speed, where)
        seconds = seconds_of(factor, form, n1, n2, contract, speed)
        flops = factor.flops(form, n1, n2, contract)
        held = held_bytes(factor, both, seen, data)
        numbers = factor.num_params * both * C * like.element_size() if form == "materialise" else 0
        layers.append(LayerPlan(tuple(factor.shapes), rule, form, flops, *held, numbers, seconds))
    shape = block_shape(n1, n2 or n1, C, contract)
    element = like.element_size()
    pairs = list(zip(captured.factors, layers, strict=True))
    rows = [min(a.rows_bytes, f.piece_bytes) for f, a in pairs]
    tiles = [
        f.temporary_bytes(both, rows[k]) if rows[k] else _tile_bytes(f, a.form, n1, contract)
        for k, (f, a) in enumerate(pairs)
    ]
    ordinary = sum(g.numel() * g.element_size() for g in captured.ordinary.values())
    free = KernelPlan(
        shape=(n1 * C, (n2 or n1) * C) if contract != "trace" else (n1, n2 or n1),
        samples=(n1, n2 or n1),
        num_outputs=C,
        contract=contract,
        layers=tuple(layers),
        frozen=captured.view.frozen,
        keep_layers=keep_layers,
        passes=(tuple(name for layer in layers for name in layer.parameters),),
        batch=max(n1, n2 or 0),
        block_bytes=torch.Size(shape).numel() * element,
        piece_bytes=max(rows, default=0),
        tile_bytes=max(tiles, default=0),
        graph_bytes=graph_bytes,
        gradient_bytes=ordinary,
        cross=n2 is not None,
    )
    if memory_limit is None or free.peak_bytes <= memory_limit:
        return free
    return _within(free, memory_limit, where)


def storage_key(tensor: Tensor) -> int:
    """What tensors that share memory have in common; also on the meta device, where all data is at address 0."""
    return tensor.untyped_storage()._cdata


def held_bytes(factor: Factor, n: int, seen: set[int], data: frozenset[int]) -> tuple[int, int, int]:
    """Bytes a factor keeps for ``n`` samples, each storage once: beyond the data, kept by autograd too, of the data."""
    held = kept = own = 0
    for name, tensor in factor.tensors().items():
        if (key := storage_key(tensor)) in seen:
            continue
        seen.add(key)
        size = min(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size())
        size = size * n // max(1, factor.num_samples)
        if key in data:
            own += size
            continue
        held += size
        kept += size if name in factor.kept_by_autograd else 0
    return held, kept, own


def _tile_bytes(factor: Factor, form: Form, n1: int, contract: Contract) -> int:
    """Temporaries of a tile: two matrices of its positions."""
    if form not in ("ghost", "shift"):
        return 0
    positions = factor.dims[0]  # type: ignore[attr-defined]
    side = min(n1, tile_rows(factor, form, contract)) * positions
    outputs = factor.num_outputs if contract == "full" and positions == 1 else 1
    return int(side * side * (1 + outputs**2) * factor.element_size)


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


def form_of(plan: KernelPlan, factor: Factor) -> Form:
    """The planned form of a factor, or of the part of one."""
    names = set(factor.shapes)
    planned = next(layer.form for layer in plan.layers if names & set(layer.parameters))
    return planned if planned in factor.forms() else factor.forms()[0]
