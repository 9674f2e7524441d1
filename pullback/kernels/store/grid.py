"""The tiles of a store, and which worker makes which."""

from __future__ import annotations

Tile = tuple[int, int]


class Grid:
    """Blocks of samples and the tiles on and below the diagonal."""

    def __init__(self, count: int, tile: int) -> None:
        self.count, self.tile = count, tile
        self.blocks = -(-count // tile)

    def samples(self, block: int) -> tuple[int, int]:
        """First sample of a block, and the one after its last."""
        return block * self.tile, min((block + 1) * self.tile, self.count)

    def size(self, block: int) -> int:
        """Samples in a block."""
        start, stop = self.samples(block)
        return stop - start

    def tiles(self) -> list[Tile]:
        """Row by row, every other row backwards: from one tile to the next a single block changes."""
        rows = [[(i, j) for j in range(i + 1)] for i in range(self.blocks)]
        return [tile for i, row in enumerate(rows) for tile in (row[::-1] if i % 2 else row)]
