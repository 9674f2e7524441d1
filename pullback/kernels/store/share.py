"""How the blocks and tiles of a store are shared out: what falls to the worker that has most to do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pullback.kernels.store.grid import Grid

MOST_TILES = 2**17  # shared out one by one; beyond, stretches are taken to be even


@dataclass(frozen=True)
class Share:
    """What the worker with most to do does, in whole blocks and tiles.

    Args:
        blocks: blocks it captures.
        off: tiles off the diagonal, by their area.
        diagonal: tiles on it, by their area.
        tiles: of both kinds.
        reads: blocks it reads.
    """

    blocks: int
    off: float
    diagonal: float
    tiles: int
    reads: int

    @classmethod
    def of(cls, grid: Grid, workers: int) -> Share:
        """The largest share, by the rule ``kernel_to_store`` shares out tiles."""
        blocks, tiles = grid.blocks, grid.blocks * (grid.blocks + 1) // 2
        captured = -(-blocks // workers)
        if tiles > MOST_TILES:
            each = -(-tiles // workers)
            return cls(captured, (tiles - blocks) / workers, blocks / workers, each, each + 1)
        order = grid.tiles()
        costs = np.array([0.5 if i == j else 1.0 for i, j in order])
        owner = ((np.cumsum(costs) - costs / 2) / costs.sum() * workers).astype(int)
        shares = [cls(captured, 0.0, 0.0, 0, 0)]
        for worker in np.unique(owner):
            mine = [order[k] for k in np.flatnonzero(owner == worker)]
            held: set[int] = set()
            off = diagonal = 0.0
            reads = 0
            for i, j in mine:
                area = grid.size(i) * grid.size(j) / grid.tile**2
                off, diagonal = (off, diagonal + area) if i == j else (off + area, diagonal)
                reads += len({i, j} - held)
                held = {i, j}
            shares.append(cls(captured, off, diagonal, len(mine), reads))
        return max(shares, key=lambda share: share.off + share.diagonal / 2)


def areas(count: int, tile: int) -> tuple[float, float]:
    """Tiles off and on the diagonal, in areas of a whole one."""
    whole, rest = divmod(count, tile)
    diagonal = whole + (rest / tile) ** 2
    return ((count / tile) ** 2 - diagonal) / 2, diagonal
