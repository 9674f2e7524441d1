"""What a store will cost: tile size under a memory limit, operations, bytes on disk, bytes held, expected time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from pullback._checks import input_error
from pullback._memory import physical_bytes
from pullback._results import Drawn
from pullback._text import duration
from pullback.functional import ModelView, undisturbed
from pullback.functional.memory import data_bytes, graph_bytes
from pullback.functional.model_view import layer_of
from pullback.functional.readout import Readout
from pullback.gradients.capture.aligned import forward_order
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Form
from pullback.kernels.gram.squares import workspace_bytes
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import SMALLEST_PIECE_BYTES, make_plan
from pullback.kernels.plan.rates import Rates
from pullback.kernels.sketch.project import BLOCK_NUMBERS
from pullback.kernels.store.data import Blocks
from pullback.kernels.store.factor_files import factor_bytes

DEFAULT_TILE = 2048  # samples along the side of a tile without a limit: reading is then far below computing
BASE_BYTES = 2**27  # libraries loaded on the way, and what the allocator does not give back
SMALLEST_TILE = 16  # a limit that allows only fewer would spend its time on files
GRANULE = 256  # from here on tiles grow in larger steps


@dataclass(frozen=True)
class StorePlan(Drawn):
    """The cost of a store; ``str(plan)`` is what is printed before the work.

    Args:
        num_samples: N.
        tile: samples along the side of a tile.
        num_tiles: tiles on and below the diagonal.
        flops: operations of all tiles, an add and a multiply counted as two.
        disk_bytes: the finished store.
        capture_bytes: gradient factors on disk while the work lasts.
        peak_bytes: the most one worker holds at a time beyond the model and the data set.
        seconds: expected time of the tiles with one worker, from the machine's rates.
        sketched: how the kernel is estimated; None for an exact one. Making the sketches is not in ``flops``.
    """

    num_samples: int
    tile: int
    num_tiles: int
    flops: float
    disk_bytes: int
    capture_bytes: int
    peak_bytes: int
    seconds: float
    sketched: str | None = None

    def __str__(self) -> str:
        lines = [
            f"kernel {self.num_samples} x {self.num_samples} in {self.num_tiles} tiles of {self.tile} x {self.tile}: "
            f"{self.flops / 1e9:.3g} GFLOP",
            f"{self.disk_bytes / 1e9:.3g} GB on disk, and {self.capture_bytes / 1e9:.3g} GB of gradient factors "
            "until it is finished",
            f"about {self.peak_bytes / 1e6:.0f} MB in memory at the peak, about {duration(self.seconds)} for the tiles",
        ]
        lines += [] if self.sketched is None else [self.sketched]
        return "\n".join(lines)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> StorePlan:
        """What ``to_json`` gave.

        Raises:
            InputError: values of another version.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise input_error(where, "a store's plan", f"another one ({error})", "Make the store anew") from None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Footprint:
    """Bytes and operations by sample, from the capture of a few samples.

    Args:
        captured: factors of a few samples.
        layers: names of the layers, in the order of the forward pass.
        layer_sizes: trainable numbers of each.
        dtype: of the kernel.
        data_bytes: of the samples' inputs and targets.
        factor_bytes: of their factors.
        graph_bytes: what autograd keeps for their backward pass.
        parameter_bytes: of one gradient of all parameters.
        rates: of a machine other than this one.
        captured_bytes: of the factors before they are sketched; None in an exact store.
        sketched: how the kernel is estimated; None in an exact store.
    """

    captured: Captured
    layers: tuple[str, ...]
    layer_sizes: tuple[int, ...]
    dtype: torch.dtype
    data_bytes: int
    factor_bytes: int
    graph_bytes: int
    parameter_bytes: int
    rates: Rates | None = None
    captured_bytes: int | None = None
    sketched: str | None = None

    def plan(
        self,
        count: int,
        tile: int,
        where: str,
        *,
        memory_limit: int | None = None,
        forms: Mapping[str, Form] | None = None,
        piece_bytes: int | None = None,
    ) -> tuple[StorePlan, KernelPlan]:
        """The cost of a store of ``count`` samples with tiles of side ``tile``, and the plan of one tile.

        Args:
            count: N.
            tile: samples along the side of a tile.
            where: the caller.
            memory_limit: gradient rows are formed in pieces as small as it needs, but it may not be kept.
            forms: of a store begun earlier.
            piece_bytes: of a store begun earlier.
        """
        pair = make_plan(self.captured, tile, tile, None, where, forms=forms, keep_layers=False, rates=self.rates)
        blocks = -(-count // tile)
        tiles = blocks * (blocks + 1) // 2
        whole = count * (count + tile / 2) / 2 / tile**2  # in tiles off the diagonal: one on it costs half
        n, element, device = self.captured.num_samples, self.dtype.itemsize, self.captured.values.device
        sums = self.parameter_bytes
        if self.captured_bytes is not None:  # sums of sketched rows may be longer than parameters
            sums += self.factor_bytes // n
        factors = self.factor_bytes * tile // n + sums
        capturing = 2 * factors + (self.data_bytes + self.graph_bytes) * tile // n + 4 * self.parameter_bytes
        if self.captured_bytes is not None:  # repeats are made one by one and then joined
            capturing += self.captured_bytes * tile // n + 2 * factors + BLOCK_NUMBERS * element
        formed = {layer_of(name) for a in pair.layers if a.form == "materialise" for name in a.parameters}
        # the total, one on its way to the disk, layers that are made whole
        squares = (2 + len(formed)) * tile * tile * element + workspace_bytes(pair, len(self.layers), element, device)
        fixed = squares + 3 * factors + 2 * pair.tile_bytes
        if piece_bytes is None:
            room = pair.piece_bytes if memory_limit is None else memory_limit - BASE_BYTES - fixed
            piece_bytes = min(pair.piece_bytes, max(SMALLEST_PIECE_BYTES, room))
        pair = replace(pair, piece_bytes=piece_bytes)
        tiling = fixed + pair.piece_bytes
        return StorePlan(
            num_samples=count,
            tile=tile,
            num_tiles=tiles,
            flops=pair.flops * whole,
            disk_bytes=tiles * tile * tile * element + (len(self.layers) + 1) * count * element,
            capture_bytes=blocks * sums + self.factor_bytes * count // n,
            peak_bytes=BASE_BYTES + max(capturing, tiling),
            seconds=pair.seconds * whole,
            sketched=self.sketched,
        ), pair

    def choose_tile(self, count: int, memory_limit: int | None, where: str) -> int:
        """The largest useful side of a tile that keeps the limit; without one, that leaves room for everything else.

        Raises:
            InputError: no tile does; says what would.
        """
        sides = [side for side in _sides() if side < count] + ([count] if count <= DEFAULT_TILE else [])
        sides = [side for side in sides if side == 1 or count % side != 1] or [count]
        limit = physical_bytes() // 4 if memory_limit is None else memory_limit
        for side in reversed(sides):
            if self.plan(count, side, where, memory_limit=limit)[0].peak_bytes <= limit:
                return side
        self.check(count, sides[0], memory_limit, where)
        return sides[0]

    def check(
        self, count: int, tile: int, memory_limit: int | None, where: str, piece_bytes: int | None = None
    ) -> None:
        """Refuse a limit that a tile of this side cannot keep."""
        plan, _ = self.plan(count, tile, where, memory_limit=memory_limit, piece_bytes=piece_bytes)
        needed = plan.peak_bytes
        if memory_limit is not None and needed > memory_limit:
            raise input_error(
                where,
                f"a `memory_limit` of at least {needed} bytes for tiles of {tile} samples",
                f"{memory_limit}",
                "Raise the limit" + (", or pass a smaller `tile`" if tile > SMALLEST_TILE else ""),
            )


def _sides() -> Iterator[int]:
    yield from range(SMALLEST_TILE, GRANULE, SMALLEST_TILE)
    yield from range(GRANULE, DEFAULT_TILE + 1, SMALLEST_TILE * 4)


def footprint_of(view: ModelView, readout: Readout, data: Blocks, captured: Captured, where: str) -> Footprint:
    """What one captured block says of the whole store."""
    x, y = data.take(0, captured.num_samples)
    with undisturbed(view.model):
        graph = graph_bytes(view, readout, x, y, where)
    layers = forward_order(captured)
    sizes = {layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()}
    parameters = sum(p.numel() * p.element_size() for p in view.parameters.values())
    return Footprint(
        captured=captured,
        layers=tuple(layers),
        layer_sizes=tuple(sizes[layer] for layer in layers),
        dtype=captured.factors[0].like.dtype,
        data_bytes=data_bytes(x, y),
        factor_bytes=factor_bytes(captured),
        graph_bytes=graph,
        parameter_bytes=parameters,
    )
