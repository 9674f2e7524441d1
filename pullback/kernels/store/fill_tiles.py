"""Fills a store: captures every block of samples once, then makes tile after tile from the captured factors.

Reading the next block and writing the last tile go on in one background thread while a tile is computed. At most one
finished tile waits to be written, so a killed worker repeats at most that one.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error, self_check_error
from pullback._progress import Progress
from pullback.functional import ModelView, undisturbed
from pullback.functional.readout import Readout
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.kernels.gram.squares import Squares, side_of_square
from pullback.kernels.group.workers import Workers
from pullback.kernels.plan.kernel_plan import KernelPlan
from pullback.kernels.store.background import Background
from pullback.kernels.store.data_blocks import Blocks
from pullback.kernels.store.disk_format import CAPTURES, Folder, on_disk
from pullback.kernels.store.factor_files import Buffers, factor_bytes, load, rebuilt, save, structure
from pullback.kernels.store.fingerprint import digest
from pullback.kernels.store.grid import Grid, Tile
from pullback.kernels.store.ledger import Finished, tile_is_whole
from pullback.kernels.store.sketching import Sketching
from pullback.kernels.store.summary import triangle
from pullback.kernels.store.tile import Block, TileResult, check_block, make_tile


@dataclass
class Filler:
    """One worker's part in filling a store.

    Args:
        templates: captured factors of a few samples, to rebuild those of blocks from. One sample alone may be written
            down in another way than several (it does not show which axis the samples are in), so the last template
            is that of a single sample where the last block is one.
        sketching: what is done to captured blocks before they are written; None in an exact store.
        pair: how a tile is made.
        layers: in the order of the summaries.
        dtype: of the kernel.
    """

    folder: Folder
    grid: Grid
    data: Blocks
    view: ModelView
    readout: Readout
    templates: list[Captured]
    pair: KernelPlan
    layers: list[str]
    dtype: torch.dtype
    workers: Workers
    progress: Progress
    where: str
    sketching: Sketching | None = None

    def __post_init__(self) -> None:
        self.shape = (self.grid.tile, self.grid.tile)
        self._paths = [structure(self._kept(template)) for template in self.templates]
        if self.sketching is not None:
            self.templates = [self.sketching(template, self.where) for template in self.templates]
        self._structures = [structure(self._kept(template)) for template in self.templates]
        self._memory, self._read = Buffers(), set[int]()

    # What was done before

    def look(self) -> None:
        """See what is missing. All workers look between two meetings, so that they share out the same list."""
        self.finished = Finished.of(self.folder)
        self._missing = [tile for tile in self.grid.tiles() if tile not in self.finished.tiles]
        needed = sorted({block for tile in self._missing for block in tile})
        there = self.finished.blocks
        self._wanted = [block for block in needed if block not in there or not self._file(block).is_file()]

    def verify(self) -> None:
        """Void what is in the ledger and no longer on the disk; refuse data other than the blocks were made of."""
        tiles = self.finished.tiles
        mine = self.workers.share(sorted(tiles), [1.0] * len(tiles))
        size = self.grid.tile**2 * self.dtype.itemsize
        if mine:
            self.progress.start("checking finished tiles", len(mine) * size)
        for tile in mine:
            self.progress.advance(size)
            if not tile_is_whole(self.folder, tile, tiles[tile], self.shape, len(self.layers), self.dtype):
                self.folder.record({"tile": tile, "attempt": self.finished.next_attempt(tile), "void": True})
        blocks = self.finished.blocks
        for block in self.workers.share(sorted(blocks), [1.0] * len(blocks)):
            self._check_data(block, digest(self.data.take(*self.grid.samples(block))))

    def _check_data(self, block: int, fingerprint: str) -> None:
        if (entry := self.finished.blocks.get(block)) and entry["data"] != fingerprint:
            start, stop = self.grid.samples(block)
            raise input_error(
                self.where,
                "the data this store was begun with",
                f"others in samples {start} to {stop - 1}",
                "Pass that data again, or choose another path",
            )

    # Blocks

    def capture(self) -> None:
        """Capture this worker's share of the blocks that unfinished tiles need."""
        mine = self._wanted[self.workers.rank :: self.workers.count]
        per_sample = factor_bytes(self.templates[0]) // self.templates[0].num_samples
        self.progress.start("capturing", sum(self.grid.size(block) for block in mine) * per_sample)
        with Background() as background:
            for block in mine:
                background.write(self._save, block, *self._capture(block))
                self.progress.advance(self.grid.size(block) * per_sample)

    def _file(self, block: int) -> Path:
        return self.folder.path / CAPTURES / f"{block}.bin"

    def _capture(self, block: int) -> tuple[Captured, str]:
        x, y = self.data.take(*self.grid.samples(block))
        fingerprint = digest((x, y))
        self._check_data(block, fingerprint)
        with undisturbed(self.view.model):
            captured = capture_factors(self.view, self.readout, x, y, self.where)
        if structure(self._kept(captured)) not in self._paths:
            start, stop = self.grid.samples(block)
            raise input_error(
                self.where,
                "all blocks of samples to take the same path through the model",
                f"another one for samples {start} to {stop - 1}",
                "Pass inputs of one kind and shape, or leave out by `params=` the layers that only some samples reach",
            )
        return captured if self.sketching is None else self.sketching(captured, self.where), fingerprint

    @staticmethod
    def _kept(captured: Captured) -> dict[str, Any]:
        """What tiles need of a captured block."""
        return {"factors": captured.factors, "values": captured.values}

    def _save(self, block: int, captured: Captured, found: str) -> None:
        losses = captured.values.squeeze(1).to("cpu", self.dtype)
        entry: dict[str, Any] = {"block": block, "attempt": self.finished.next_attempt(block), "data": found}
        entry["template"] = self._structures.index(structure(self._kept(captured)))
        sums, norms = check_block(captured, self.layers, self.where)
        entry["squared_norms"] = norms.tolist()
        entry["losses"] = self.folder.write_chunk("losses", (block,), losses, (self.grid.tile,))
        entry |= save(self.folder, self._file(block), self._kept(captured) | {"sums": sums})
        self.folder.record(entry)
        self.finished.blocks[block] = entry

    def _load(self, block: int) -> Block:
        """A block's factors from the disk; captured again if the file was damaged.

        The checksum is compared when this process reads a file first. What happens to it later is left to the sums
        of every tile, which are compared with those of its blocks.
        """
        tensors, memory = self._read_block(block)
        if tensors is None:
            self._save(block, *self._capture(block))
            tensors, memory = self._read_block(block)
        if tensors is None:
            raise self_check_error(
                self.where,
                f"to read back what was just written to {self._file(block)}",
                "other bytes",
                "Check the disk, or choose another path",
            )
        entry = self.finished.blocks[block]
        template = self.templates[entry["template"]]
        kept = rebuilt(self._kept(template), tensors, self.grid.size(block))
        names = (name for factor in template.factors for name in factor.shapes)
        sums = {name: tensors[f"/sums/{name}"] for name in names}
        norms = torch.tensor(entry["squared_norms"], dtype=torch.float64, device="cpu")
        return Block(replace(template, **kept), sums, norms, aligned=entry["template"] == 0, memory=memory)

    def _read_block(self, block: int) -> tuple[dict[str, Tensor] | None, Tensor]:
        entry, checked = self.finished.blocks[block], block in self._read
        memory = self._memory.take(entry["bytes"])
        with on_disk(self.where, "read", self._file(block)):
            tensors = load(self._file(block), entry, self.templates[0].values.device, memory, checked=checked)
        if tensors is not None:
            self._read.add(block)
        return tensors, memory

    # Tiles

    def fill(self) -> None:
        """Make this worker's share of the unfinished tiles."""
        element, device = self.dtype.itemsize, self.data.device
        squares_a_side = -(-self.grid.tile // side_of_square(self.pair, len(self.layers), element, device))
        diagonal = (1 + 1 / squares_a_side) / 2  # squares on the diagonal are made whole
        mine = self.workers.share(self._missing, [diagonal if i == j else 1.0 for i, j in self._missing])
        size = self.grid.tile**2 * self.dtype.itemsize
        self.progress.start("tiles", len(mine) * size)
        held: dict[int, Future[Block]] = {}
        totals = Buffers()
        with Background() as background, Squares(self.data.device) as squares:
            for place, (i, j) in enumerate(mine):
                following = mine[place + 1] if place + 1 < len(mine) else ()
                for block in (i, j, *following):  # the next tile's blocks are read while this one is computed
                    if block not in held:
                        held[block] = background.read(self._load, block)
                left, right = held[i].result(), None if i == j else held[j].result()
                memory = totals.take(size)
                made = self._tile(left, right, squares, memory)
                background.write(self._write, (i, j), made, totals, memory)
                self.progress.advance(size)
                for block in (i, j):
                    if block in held and block not in following:
                        self._memory.give(held.pop(block).result().memory)

    def _tile(self, left: Block, right: Block | None, squares: Squares, memory: Tensor) -> TileResult:
        return make_tile(left, right, self.pair, self.layers, self.where, squares, memory)

    def _write(self, tile: Tile, made: TileResult, totals: Buffers, memory: Tensor) -> None:
        entry: dict[str, Any] = {"tile": tile, "attempt": self.finished.next_attempt(tile)}
        entry["crc"] = self.folder.write_chunk("total", tile, made.total.cpu(), self.shape)
        if made.diagonals is not None:
            diagonals = made.diagonals.cpu()
            shape = (len(self.layers), self.grid.tile)
            entry["diagonal"] = self.folder.write_chunk("diagonal", (0, tile[0]), diagonals, shape)
            entry["trace"] = diagonals.sum(1, dtype=torch.float64).tolist()
        self.folder.record(entry | {"inner": triangle(made.inner), "sums": made.sums.tolist()})
        totals.give(memory)

    def finish(self) -> None:
        """See that all tiles are there, and remove the captured factors."""
        done = Finished.of(self.folder).tiles
        if missing := [tile for tile in self.grid.tiles() if tile not in done]:
            raise self_check_error(
                self.where,
                f"{len(self.grid.tiles())} tiles in the ledgers",
                f"none for tile {missing[0]} and {len(missing) - 1} others",
                "Call again with the same arguments to make them",
            )
        self.folder.tidy()
