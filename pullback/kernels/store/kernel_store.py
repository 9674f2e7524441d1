"""``KernelStore``: a finished kernel on disk, read tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pullback._checks import input_error
from pullback.kernels.store.disk_format import Folder, on_disk
from pullback.kernels.store.grid import Grid, Tile
from pullback.kernels.store.ledger import Finished, tile_is_whole
from pullback.kernels.store.plan import StorePlan
from pullback.kernels.store.sketching import exact_layers, from_json
from pullback.kernels.store.summary import LayerSummary, summed
from pullback.operators.operator import Operator

DENSE_LIMIT = 2**31  # bytes `to_dense` makes without being asked twice


class KernelStore(Operator):
    """A finished backward kernel on disk, (N, N), read tile by tile; products stream through it.

    Attributes:
        path: its folder, a Zarr v3 group whose array ``total`` holds the tiles on and below the diagonal.
        layers: module name -> LayerSummary, in the order of the forward pass.
        trace: sum over samples of their squared gradient norms.
        frobenius_norm: root of the summed squares of all N^2 entries.
        sum: of all N^2 entries, which is the squared norm of the summed gradient.
        losses: the samples' losses, (N,).
        num_params: P, the number of trainable numbers covered.
        tile_size: samples along the side of a tile.
        sketch: settings of the sketch this is an estimate by; None for an exact kernel.
        exact_layers: layers without sketched parts; all of them in an exact kernel.
    """

    symmetric = True

    def __init__(self, path: str | Path) -> None:
        where = "open_store"
        self.path = Path(path)
        self._folder = Folder(self.path)
        about = self._folder.description()
        self._grid = Grid(about["num_samples"], about["tile"])
        finished = Finished.of(self._folder)
        self._entries = finished.tiles
        if missing := [tile for tile in self._grid.tiles() if tile not in self._entries]:
            whole = len(self._grid.tiles())
            raise input_error(
                where,
                f"a finished store at {self.path}",
                f"{whole - len(missing)} of {whole} tiles",
                "Call `kernel_to_store` with the same arguments to finish it",
            )
        super().__init__((self._grid.count, self._grid.count), getattr(torch, about["dtype"]), torch.device("cpu"))
        self.tile_size = self._grid.tile
        self.num_params: int = about["num_params"]
        self._planned: dict[str, Any] = about["plan"]
        traces, sums, self._inner = summed(self._entries.values(), len(about["layers"]))
        norms = self._inner.diagonal().clamp(min=0).sqrt()
        numbers = zip(traces.tolist(), norms.tolist(), sums.tolist(), about["layer_sizes"], strict=True)
        self.layers: Mapping[str, LayerSummary] = {
            layer: LayerSummary(*each) for layer, each in zip(about["layers"], numbers, strict=True)
        }
        self.trace = float(traces.sum())
        self.frobenius_norm = float(self._inner.sum().clamp(min=0).sqrt())
        self.sum = float(sums.sum())
        self.losses = self._vector("losses", ())
        self.sketch = from_json(about.get("sketch"))
        self.exact_layers = exact_layers(about["layers"], about["params"], about)

    def __repr__(self) -> str:
        whole = super().__repr__()
        return whole if self.sketch is None else f"{whole[:-1]}, an estimate by {self.sketch})"

    @property
    def plan(self) -> StorePlan:
        """What it was expected to cost, with one worker.

        Raises:
            InputError: the store was begun by another version, whose plans are others; all else can be read.
        """
        return StorePlan.from_json(self._planned, "KernelStore.plan")

    def tile(self, i: int, j: int) -> Tensor:
        """Tile of block i with block j; above the diagonal the transpose of its mirror image."""
        if not (0 <= i < self._grid.blocks and 0 <= j < self._grid.blocks):
            last = self._grid.blocks - 1
            raise input_error("KernelStore.tile", f"block numbers from 0 to {last}", f"({i}, {j})", "Stay inside")
        if i < j:
            return self.tile(j, i).T
        shape = (self.tile_size, self.tile_size)
        try:
            whole = self._folder.read_chunk("total", (i, j), shape, self.dtype)
        except OSError as error:
            raise input_error(
                "KernelStore.tile",
                f"a readable file for tile ({i}, {j})",
                f"an error ({error})",
                "Call `kernel_to_store` with the same arguments to make it again",
            ) from None
        return whole[: self._grid.size(i), : self._grid.size(j)]

    def rows(self, index: slice) -> Tensor:
        """Rows of the kernel, (n, N), for a slice of samples."""
        samples = range(self._grid.count)[index]
        result = torch.empty(len(samples), self._grid.count, dtype=self.dtype, device="cpu")
        chosen = torch.tensor(list(samples), dtype=torch.long, device="cpu")
        for i in sorted({int(block) for block in (chosen // self.tile_size).unique()}):
            start, stop = self._grid.samples(i)
            mine = (chosen >= start) & (chosen < stop)
            for j in range(self._grid.blocks):
                result[mine, slice(*self._grid.samples(j))] = self.tile(i, j)[chosen[mine] - start]
        return result

    def diagonal(self) -> Tensor:
        """Squared gradient norms of the samples, (N,)."""
        parts = [self.tile(i, i).diagonal() for i in range(self._grid.blocks)]
        return torch.cat(parts)

    def layer_diagonals(self) -> Tensor:
        """Squared gradient norms by layer, (L, N)."""
        return self._vector("diagonal", (len(self.layers),))

    def layer_inner_products(self) -> Tensor:
        """``<K_a, K_b>``, sums over all N^2 entries, for every pair of layers, (L, L) in float64; not centred."""
        return self._inner.clone()

    def layer_alignment(self) -> Tensor:
        """Kernel alignment ``<K_a, K_b> / (|K_a| |K_b|)`` for every pair of layers, (L, L); not centred.

        Layers without any gradient have no direction: their rows are NaN.
        """
        norms = self._inner.diagonal().clamp(min=0).sqrt()
        return self._inner / norms.unsqueeze(1) / norms

    def to_dense(self, *, memory_limit: int = DENSE_LIMIT) -> Tensor:
        """The whole matrix, (N, N), if it takes at most ``memory_limit`` bytes (2 GiB unless told otherwise)."""
        needed = self._grid.count**2 * self.dtype.itemsize
        if needed > memory_limit:
            raise input_error(
                "KernelStore.to_dense",
                f"a matrix of at most {memory_limit} bytes",
                f"{needed}",
                "Read `rows` or `tile`, or pass a larger `memory_limit`",
            )
        return self.rows(slice(None))

    def verify(self) -> list[Tile]:
        """Read everything and compare checksums: the tiles whose bytes are not those that were written.

        Call ``kernel_to_store`` with the same arguments to make them again.
        """
        shape, layers = (self.tile_size, self.tile_size), len(self.layers)
        return [
            tile
            for tile, entry in sorted(self._entries.items())
            if not tile_is_whole(self._folder, tile, entry, shape, layers, self.dtype)
        ]

    def _matmat(self, matrix: Tensor) -> Tensor:
        result = torch.zeros(self.shape[0], matrix.shape[1], dtype=self.dtype, device="cpu")
        for (i, j), tile in self._stream():
            rows, columns = slice(*self._grid.samples(i)), slice(*self._grid.samples(j))
            result[rows] += tile @ matrix[columns]
            if i != j:
                result[columns] += tile.T @ matrix[rows]
        return result

    def _stream(self) -> Iterator[tuple[Tile, Tensor]]:
        """All stored tiles, the next being read while one is used."""
        tiles = self._grid.tiles()
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = pool.submit(self.tile, *tiles[0])
            for tile, following in zip(tiles, [*tiles[1:], None], strict=True):
                values = ahead.result()
                if following is not None:
                    ahead = pool.submit(self.tile, *following)
                yield tile, values

    def _vector(self, name: str, lead: tuple[int, ...]) -> Tensor:
        index = (0,) * len(lead)
        shape = (*lead, self.tile_size)
        with on_disk("KernelStore", "read", self.path / name):
            parts = [self._folder.read_chunk(name, (*index, i), shape, self.dtype) for i in range(self._grid.blocks)]
        return torch.cat(parts, dim=-1)[..., : self._grid.count]


def open_store(path: str | Path) -> KernelStore:
    """A finished store, to be read.

    Raises:
        InputError: there is no store at ``path``, or it is not finished.
    """
    return KernelStore(path)
