"""``ScalePlan``: what a kernel on disk costs, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from pullback._results import Drawn
from pullback._text import count, span


@dataclass(frozen=True)
class ScalePlan(Drawn):
    """The cost of a kernel made on disk by ``workers`` workers; ``str(plan)`` is a table.

    Bytes and seconds are those of the worker that has most to do; operations are of all workers.

    Args:
        num_samples: N.
        workers: W.
        tile: samples along the side of a tile.
        num_tiles: on and below the diagonal.
        forward_flops: of all forward passes.
        backward_flops: of all backward passes.
        check_flops: of the summed rows and norms every block is checked by.
        tile_flops: of all tiles.
        passes: samples run through the model, single ones that are checked included, by the number of samples.
        capture_bytes: gradient factors of a sample.
        disk_bytes: what is on the shared disk at the end of the captures and of the tiles together.
        model_bytes: weights and buffers, in every worker.
        peak_bytes: held at a time beyond the model and the data.
        written_bytes: captures a worker writes.
        read_bytes: captures a worker reads.
        tile_bytes: tiles a worker writes.
        start_seconds: a sample captured, the plan, the files, weights hashed.
        capture_seconds: blocks run through the model, checked and written.
        tile_seconds: blocks read, tiles made and written.
    """

    num_samples: int
    workers: int
    tile: int
    num_tiles: int
    forward_flops: float
    backward_flops: float
    check_flops: float
    tile_flops: float
    passes: float
    capture_bytes: int
    disk_bytes: int
    model_bytes: int
    peak_bytes: int
    written_bytes: int
    read_bytes: int
    tile_bytes: int
    start_seconds: float
    capture_seconds: float
    tile_seconds: float

    @property
    def flops(self) -> float:
        """Operations of all workers."""
        return self.forward_flops + self.backward_flops + self.check_flops + self.tile_flops

    @property
    def wire_bytes(self) -> int:
        """Bytes between a worker and the shared disk."""
        return self.written_bytes + self.read_bytes + self.tile_bytes

    @property
    def seconds(self) -> float:
        """Expected time of the run."""
        return self.start_seconds + self.capture_seconds + self.tile_seconds

    def __str__(self) -> str:
        passes = self.forward_flops + self.backward_flops + self.check_flops
        rows = [
            ("", "operations", "to and from the disk, a worker", "time"),
            ("captures", count(passes, "FLOP"), count(self.written_bytes, "B"), span(self.capture_seconds)),
            (
                "tiles",
                count(self.tile_flops, "FLOP"),
                count(self.read_bytes + self.tile_bytes, "B"),
                span(self.tile_seconds),
            ),
            ("in all", count(self.flops, "FLOP"), count(self.wire_bytes, "B"), span(self.seconds)),
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = [
            f"{self.num_samples} samples in {self.num_tiles} tiles of {self.tile} x {self.tile} on {self.workers} "
            f"worker{'s' * (self.workers > 1)}"
        ]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(
            f"{self.passes:.3g} passes over the data; captures: {count(self.capture_bytes, 'B')} a sample; "
            f"on the disk: {count(self.disk_bytes, 'B')}"
        )
        lines.append(
            f"in each worker: {count(self.model_bytes, 'B')} of weights, {count(self.peak_bytes, 'B')} at the peak"
        )
        return "\n".join(lines)
