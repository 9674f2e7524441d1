"""What a sample of a store takes, from a few of them: bytes held, and the tiles that keep a memory limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from pullback._checks import input_error
from pullback._memory import physical_bytes
from pullback.functional.batch import Batch
from pullback.functional.memory import data_bytes
from pullback.functional.model_view import layer_of
from pullback.gradients.capture.captured import Captured
from pullback.gradients.rows.contract import Form
from pullback.kernels.gram.squares import workspace_bytes
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.plan.make import SMALLEST_PIECE_BYTES, TOTAL, make_plan
from pullback.kernels.plan.rates import Rates
from pullback.kernels.sketch.project import BLOCK_NUMBERS
from pullback.kernels.store.factor_files import factor_bytes

DEFAULT_TILE = 2048  # samples along the side of a tile without a limit: reading is then far below computing
BASE_BYTES = 2**27  # libraries loaded on the way, and what the allocator does not give back
SMALLEST_TILE = 16  # a limit that allows only fewer would spend its time on files
GRANULE = 256  # from here on tiles grow in larger steps


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

    @classmethod
    def of(
        cls, captured: Captured, pair: tuple[Batch, Batch], graph_bytes: int, rates: Rates | None = None
    ) -> Footprint:
        """What a few captured samples say of all.

        Args:
            captured: factors of a few samples.
            pair: their inputs and targets.
            graph_bytes: what autograd keeps for all of them.
            rates: of a machine other than this one.
        """
        view, layers = captured.view, captured.order
        sizes = {layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()}
        return cls(
            captured=captured,
            layers=layers,
            layer_sizes=tuple(sizes[layer] for layer in layers),
            dtype=captured.factors[0].like.dtype,
            data_bytes=data_bytes(*pair),
            factor_bytes=factor_bytes(captured),
            graph_bytes=graph_bytes,
            parameter_bytes=sum(p.numel() * p.element_size() for p in view.parameters.values()),
            rates=rates,
        )

    @property
    def sum_bytes(self) -> int:
        """Of the summed gradients that are kept with a block; those of sketched rows may be longer than parameters."""
        sketched = 0 if self.captured_bytes is None else self.factor_bytes // self.captured.num_samples
        return self.parameter_bytes + sketched

    def pair_plan(
        self,
        tile: int,
        where: str,
        *,
        memory_limit: int | None = None,
        forms: Mapping[str, Form] | None = None,
        piece_bytes: int | None = None,
    ) -> KernelPlan:
        """The plan of one tile.

        Args:
            tile: samples along its side.
            where: the caller.
            memory_limit: gradient rows are formed in pieces as small as it needs, but it may not be kept.
            forms: of a store begun earlier.
            piece_bytes: of a store begun earlier.
        """
        pair = make_plan(self.captured, tile, tile, where, replace(TOTAL, forms=forms, rates=self.rates))
        if piece_bytes is None:
            room = pair.piece_bytes
            if memory_limit is not None:
                room = memory_limit - BASE_BYTES - self._held_bytes(tile, pair)
            piece_bytes = min(pair.piece_bytes, max(SMALLEST_PIECE_BYTES, room))
        return replace(pair, piece_bytes=piece_bytes)

    def _held_bytes(self, tile: int, pair: KernelPlan) -> int:
        """Bytes while a tile is made, but for pieces of gradient rows."""
        element, device = self.dtype.itemsize, self.captured.values.device
        formed = {layer_of(name) for a in pair.layers if a.form == "materialise" for name in a.parameters}
        # the total, one on its way to the disk, layers that are made whole
        squares = (2 + len(formed)) * tile * tile * element + workspace_bytes(pair, len(self.layers), element, device)
        factors = self.factor_bytes * tile // self.captured.num_samples + self.sum_bytes
        return squares + 3 * factors + 2 * pair.tile_bytes

    def peak_bytes(self, tile: int, pair: KernelPlan) -> int:
        """The most a worker holds beyond the model and the data set, while it captures or while it makes tiles."""
        n = self.captured.num_samples
        factors = self.factor_bytes * tile // n + self.sum_bytes
        capturing = 2 * factors + (self.data_bytes + self.graph_bytes) * tile // n + 4 * self.parameter_bytes
        if self.captured_bytes is not None:  # repeats are made one by one and then joined
            capturing += self.captured_bytes * tile // n + 2 * factors + BLOCK_NUMBERS * self.dtype.itemsize
        return BASE_BYTES + max(capturing, self._held_bytes(tile, pair) + pair.piece_bytes)

    def choose_tile(self, count: int, memory_limit: int | None, where: str) -> int:
        """The largest useful side of a tile that keeps the limit; without one, that leaves room for everything else.

        Raises:
            InputError: no tile does; says what would.
        """
        sides = [side for side in _sides() if side < count] + ([count] if count <= DEFAULT_TILE else [])
        sides = [side for side in sides if side == 1 or count % side != 1] or [count]
        limit = physical_bytes() // 4 if memory_limit is None else memory_limit
        for side in reversed(sides):
            if self.peak_bytes(side, self.pair_plan(side, where, memory_limit=limit)) <= limit:
                return side
        self.check(sides[0], memory_limit, where)
        return sides[0]

    def check(self, tile: int, memory_limit: int | None, where: str, piece_bytes: int | None = None) -> None:
        """Refuse a limit that a tile of this side cannot keep."""
        pair = self.pair_plan(tile, where, memory_limit=memory_limit, piece_bytes=piece_bytes)
        needed = self.peak_bytes(tile, pair)
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
