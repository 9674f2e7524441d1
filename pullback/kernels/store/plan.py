"""``StorePlan``: what a kernel on disk costs, as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pullback._checks import input_error
from pullback._results import Drawn
from pullback._text import count, duration


@dataclass(frozen=True)
class StorePlan(Drawn):
    """The cost of a kernel made on disk by ``workers`` workers; ``str(plan)`` is a table.

    Bytes and seconds are those of the worker that has most to do; operations are of all workers. A store knows what
    its tiles cost; what goes through the model is counted by ``plan_store`` alone, and None elsewhere.

    Args:
        num_samples: N.
        workers: W.
        tile: samples along the side of a tile.
        num_tiles: on and below the diagonal.
        forward_flops: of all forward passes.
        backward_flops: of all backward passes.
        check_flops: of the summed rows and norms every block is checked by.
        tile_flops: of all tiles. Making sketches is in none of these.
        passes: samples run through the model, single ones that are checked included, by the number of samples.
        capture_bytes: gradient factors of a sample.
        disk_bytes: what is on the shared disk at the end of the captures and of the tiles together.
        finished_bytes: of those, what stays when the store is finished.
        model_bytes: weights and buffers, in every worker.
        peak_bytes: held at a time beyond the model and the data.
        written_bytes: captures a worker writes.
        read_bytes: captures a worker reads.
        tile_bytes: tiles a worker writes.
        start_seconds: a sample captured, the plan, the files, weights hashed.
        capture_seconds: blocks run through the model, checked and written.
        tile_seconds: blocks read, tiles made and written.
        sketched: how the kernel is estimated; None for an exact one.
    """

    num_samples: int
    workers: int
    tile: int
    num_tiles: int
    tile_flops: float
    capture_bytes: int
    disk_bytes: int
    finished_bytes: int
    model_bytes: int
    peak_bytes: int
    written_bytes: int
    read_bytes: int
    tile_bytes: int
    start_seconds: float
    tile_seconds: float
    sketched: str | None = None
    forward_flops: float | None = None
    backward_flops: float | None = None
    check_flops: float | None = None
    passes: float | None = None
    capture_seconds: float | None = None

    @property
    def pass_flops(self) -> float:
        """Operations of all passes through the model and their checks; 0 where they are not counted."""
        return (self.forward_flops or 0.0) + (self.backward_flops or 0.0) + (self.check_flops or 0.0)

    @property
    def flops(self) -> float:
        """Operations of all workers."""
        return self.pass_flops + self.tile_flops

    @property
    def wire_bytes(self) -> int:
        """Bytes between a worker and the shared disk."""
        return self.written_bytes + self.read_bytes + self.tile_bytes

    @property
    def seconds(self) -> float:
        """Expected time of the run."""
        return self.start_seconds + (self.capture_seconds or 0.0) + self.tile_seconds

    def __str__(self) -> str:
        rows = [("", "operations", "to and from the disk, a worker", "time")]
        if self.capture_seconds is not None:
            captured = count(self.written_bytes, "B"), duration(self.capture_seconds)
            rows.append(("captures", count(self.pass_flops, "FLOP"), *captured))
        moved = count(self.read_bytes + self.tile_bytes, "B")
        rows.append(("tiles", count(self.tile_flops, "FLOP"), moved, duration(self.tile_seconds)))
        if self.capture_seconds is not None:
            rows.append(("in all", count(self.flops, "FLOP"), count(self.wire_bytes, "B"), duration(self.seconds)))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        samples, tile, workers = self.num_samples, self.tile, self.workers
        passes = [] if self.passes is None else [f"{self.passes:.3g} passes over the data"]
        captures = f"captures: {count(self.capture_bytes, 'B')} a sample"
        disk = f"on the disk: {count(self.disk_bytes, 'B')}, {count(self.finished_bytes, 'B')} of it for good"
        lines = [
            f"{samples} samples in {self.num_tiles} tiles of {tile} x {tile} on {workers} worker{'s' * (workers > 1)}",
            *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows),
            "; ".join([*passes, captures, disk]),
            f"in each worker: {count(self.model_bytes, 'B')} of weights, {count(self.peak_bytes, 'B')} at the peak",
        ]
        return "\n".join([*lines, *([] if self.sketched is None else [self.sketched])])

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
