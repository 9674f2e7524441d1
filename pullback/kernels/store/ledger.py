"""Which tiles of a store are finished, and whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pullback.kernels.store.disk_format import Folder, checksum
from pullback.kernels.store.grid import Tile


@dataclass
class Finished:
    """What the ledgers say is done: the newest entry for every block and tile, and how often it was tried."""

    blocks: dict[int, dict[str, Any]]
    tiles: dict[Tile, dict[str, Any]]
    attempts: dict[int | Tile, int]

    @classmethod
    def of(cls, folder: Folder) -> Finished:
        """Read all ledgers."""
        newest: dict[int | Tile, dict[str, Any]] = {}
        for entry in folder.entries():
            key = entry["block"] if "block" in entry else tuple(entry["tile"])
            if "inner" in entry:  # L^2 / 2 numbers a tile: not as objects
                entry["inner"] = torch.tensor(entry["inner"], dtype=torch.float64, device="cpu")
            if key not in newest or newest[key]["attempt"] <= entry["attempt"]:
                newest[key] = entry
        blocks = {key: entry for key, entry in newest.items() if isinstance(key, int)}
        tiles = {key: entry for key, entry in newest.items() if isinstance(key, tuple) and not entry.get("void")}
        return cls(blocks, tiles, {key: entry["attempt"] for key, entry in newest.items()})

    def next_attempt(self, key: int | Tile) -> int:
        """Number of a further entry for a block or tile: the highest counts, whichever ledger it is in."""
        return self.attempts.get(key, -1) + 1


def tile_is_whole(
    folder: Folder, tile: Tile, entry: dict[str, Any], shape: tuple[int, int], num_layers: int, dtype: torch.dtype
) -> bool:
    """Whether a tile's bytes are those its ledger entry was written for."""
    wanted = [("total", tile, shape, entry["crc"])]
    if "diagonal" in entry:
        wanted.append(("diagonal", (0, tile[0]), (num_layers, shape[1]), entry["diagonal"]))
    for name, index, chunk, crc in wanted:
        try:
            values = folder.read_chunk(name, index, chunk, dtype)
        except OSError:  # gone, or not to be read: it is made again
            return False
        if checksum(values.numpy()) != crc:
            return False
    return True
