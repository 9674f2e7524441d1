"""The plan of a kernel: the form of every layer, passes, operations, bytes and time, printable before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pullback._results import Drawn, Shown
from pullback.gradients.rows.contract import Contract, Form

BASE_BYTES = 12 * 2**20  # what libraries and the allocator take beside the tensors, but no more than those
ALLOCATED = 1.03  # bytes the allocator takes for a byte of tensors
CHECKED = 4  # gradients of a layer's size at once where its rows are compared with the ordinary gradient
CAPTURE_BYTES = 96 * 2**20  # captured at a time where gradient rows take their place: near the caches, and reused


@dataclass(frozen=True)
class LayerPlan(Shown):
    """How one layer's block is computed.

    Args:
        parameters: names of the parameters it covers.
        rule: which rule wrote their gradients down.
        form: "ghost" (Gram matrices of inputs and output gradients), "shift" (the same for convolutions, from Gram
            matrices of pixels), "materialise" (gradient rows, then one product), "dense" (rows that are small
            anyway), "join" (embedding), "fallback" or "unused".
        flops: operations of the block, an add and a multiply counted as two.
        held_bytes: captured tensors kept for it.
        kept_bytes: those among them that autograd keeps for its backward pass anyway.
        rows_bytes: gradient rows, which take the place of captured tensors batch by batch if they are smaller; 0 if the
            form does not use them.
        gradient_bytes: one gradient of its parameters.
        tile_bytes: temporaries beside its gradient rows, or of a tile made without them.
        seconds: estimated from the machine's rates.
    """

    parameters: tuple[str, ...]
    rule: str
    form: Form
    flops: float
    held_bytes: int
    kept_bytes: int
    rows_bytes: int
    gradient_bytes: int
    tile_bytes: int
    seconds: float

    @property
    def condensed(self) -> bool:
        """Whether gradient rows are held in place of captured tensors, where the data comes in batches."""
        return 0 < self.rows_bytes < self.held_bytes


@dataclass(frozen=True)
class KernelPlan(Drawn):
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
        graph_bytes: what autograd saves for one sample, and the largest gradient on its way through.
        gradient_bytes: ordinary gradients formed beside.
        output_bytes: of all samples; they stay.
        cross: rows and columns are two sets.
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
    graph_bytes: int
    gradient_bytes: int
    output_bytes: int
    cross: bool = False

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
        """The total block, and one a layer if they are kept; without them a second pass adds to the first one's."""
        return self.block_bytes * (1 + (len(self._blocks) if self.keep_layers else len(self.passes) > 1))

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
        return sum(a.rows_bytes if a.condensed else a.held_bytes for a in layers)

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
    def tile_bytes(self) -> int:
        """Temporaries beside gradient rows and tiles; rows that are held need none."""
        return max((a.tile_bytes for a in self.layers if not (a.condensed and self._in_batches)), default=0)

    @property
    def peak_bytes(self) -> int:
        """Estimated bytes held at once, above the model and the data: of the dearest moment of the dearest pass."""
        tensors = max(max(self._moments(place, names)) for place, names in enumerate(self.passes))
        return int(ALLOCATED * tensors) + min(int(tensors), BASE_BYTES)

    def _moments(self, place: int, names: tuple[str, ...]) -> tuple[float, ...]:
        """Bytes of tensors while the last batch runs, while samples are compared, while rows are formed, at the end."""
        layers = self._in_pass(names)
        both = sum(self.samples) if self.cross else self.samples[0]
        share = min(1.0, self.batch / both)
        copied = self._in_batches
        captured = sum(a.held_bytes for a in layers) * share
        beyond_graph = sum(a.held_bytes - a.kept_bytes for a in layers) * share
        held = self._held(names)
        earlier = (self.kernel_bytes if place else 0) + (held * (1 - share) if copied else 0)
        gradients = [a.gradient_bytes for a in layers]
        running = self.output_bytes + earlier + self.batch * self.graph_bytes + beyond_graph + self.gradient_bytes
        comparing = (
            self.output_bytes * share
            + (self.kernel_bytes if place else 0)
            + captured
            + sum(gradients)
            + (CHECKED - 1) * max(gradients, default=0)
        )
        formed = [a.tile_bytes for a in layers if a.condensed and copied]  # half of it, where rows stay: measured
        forming = self.output_bytes + earlier + captured + (held + max(formed) / 2) * share if formed else 0.0
        making = (
            self.output_bytes
            + held
            + self.kernel_bytes
            + self.piece_bytes
            + self.tile_bytes
            + CHECKED * max(gradients, default=0)
        )
        return running, comparing, forming, making

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
        return "\n".join(lines)
