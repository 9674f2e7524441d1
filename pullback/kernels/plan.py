"""The plan of a kernel: the form of every layer, operations and bytes, printable before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from pullback._checks import input_error
from pullback.functional import LossFunction, ModelView, check_batch, take, undisturbed
from pullback.functional.batch import Batch
from pullback.kernels.capture import refuse_recurrent_dropout
from pullback.kernels.coverage import Captured, capture_factors
from pullback.kernels.factors import Factor, Form

DEFAULT_PIECE_BYTES = 256 * 2**20  # what a materialised piece may take when no memory limit is given
TILE_ROWS = 512  # rows of a tile without positions: its temporaries (1 MB each in float32) stay in cache
TILE_POSITIONS = 1024  # rows times positions of a tile with positions


@dataclass(frozen=True)
class LayerPlan:
    """How one layer's block is computed.

    Args:
        parameters: names of the parameters it covers.
        rule: which rule wrote their gradients down.
        form: "ghost" (Gram matrices of inputs and output gradients), "materialise" (gradient rows, then one
            product), "dense" (rows that are small anyway), "join" (embedding), "fallback" or "unused".
        flops: operations of the block, an add and a multiply counted as two.
        held_bytes: captured tensors kept for it.
    """

    parameters: tuple[str, ...]
    rule: str
    form: Form
    flops: float
    held_bytes: int


@dataclass(frozen=True)
class KernelPlan:
    """What a kernel will cost; ``str(plan)`` is a table.

    Args:
        shape: (N1, N2) of the kernel.
        layers: in the order of the forward pass.
        kernel_bytes: the total block and one block per layer.
        piece_bytes: bound on gradient rows formed at a time.
        frozen: parameters that are not trained and so not in the kernel.
    """

    shape: tuple[int, int]
    layers: tuple[LayerPlan, ...]
    kernel_bytes: int
    piece_bytes: int
    frozen: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Operations of all blocks, without the forward and backward pass."""
        return sum(layer.flops for layer in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Estimated bytes held at once: kernels, captured tensors, one piece and the tiles' temporaries."""
        held = sum(layer.held_bytes for layer in self.layers)
        return self.kernel_bytes + held + self.piece_bytes + 4 * max(TILE_ROWS, TILE_POSITIONS) ** 2 * 4

    def __str__(self) -> str:
        rows = [("parameters", "rule", "form", "GFLOP", "MB held")]
        rows += [
            (", ".join(a.parameters), a.rule, a.form, f"{a.flops / 1e9:.3g}", f"{a.held_bytes / 2**20:.3g}")
            for a in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(
            f"kernel {self.shape[0]} x {self.shape[1]}: {self.flops / 1e9:.3g} GFLOP, "
            f"about {self.peak_bytes / 2**20:.0f} MB at the peak"
        )
        if self.frozen:
            lines.append(f"frozen, not covered: {', '.join(self.frozen)}")
        return "\n".join(lines)


def cheapest_form(factor: Factor, n1: int, n2: int | None) -> Form:
    """The form with the fewest operations."""
    return min(factor.forms(), key=lambda form: factor.flops(form, n1, n2))


def make_plan(captured: Captured, n1: int, n2: int | None, memory_limit: int | None, where: str) -> KernelPlan:
    """Choose a form per factor for an n1 x n1 (n2 None) or n1 x n2 kernel, and count.

    Raises:
        InputError: the memory limit cannot be kept; says what would be enough.
    """
    layers = []
    for factor, rule in zip(captured.factors, captured.rules, strict=True):
        form = cheapest_form(factor, n1, n2)
        held = factor.held_bytes(n1 + (n2 or 0))
        layers.append(LayerPlan(tuple(factor.shapes), rule, form, factor.flops(form, n1, n2), held))
    element = max(captured.losses.element_size(), 4)
    blocks = len({name.rpartition(".")[0] for layer in layers for name in layer.parameters}) + 1
    kernel_bytes = n1 * (n2 or n1) * element * blocks
    rows = [
        factor.num_params * (n1 + (n2 or 0)) * element
        for factor, layer in zip(captured.factors, layers, strict=True)
        if layer.form == "materialise"
    ]
    piece_bytes = min(DEFAULT_PIECE_BYTES, max(rows, default=0))
    plan = KernelPlan((n1, n2 or n1), tuple(layers), kernel_bytes, piece_bytes, captured.view.frozen)
    if memory_limit is None or plan.peak_bytes <= memory_limit:
        return plan
    spare = memory_limit - (plan.peak_bytes - piece_bytes)
    smallest = min(piece_bytes, 2**20)
    if spare < smallest:
        needed = plan.peak_bytes - piece_bytes + smallest
        raise input_error(
            where,
            f"a `memory_limit` of at least {needed} bytes for {n1} x {n2 or n1}",
            f"{memory_limit}",
            "Raise the limit, or pass fewer samples",
        )
    return KernelPlan(plan.shape, plan.layers, kernel_bytes, spare, plan.frozen)


def plan_kernel(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    x2: Batch | None = None,
    y2: Batch | None = None,
    params: Iterable[str] | None = None,
    memory_limit: int | None = None,
) -> KernelPlan:
    """What ``backward_kernel`` with the same arguments will do and cost, from one pass over a single sample.

    Returns:
        KernelPlan; print it. Bytes and operations are estimates from shapes, not measurements.

    Raises:
        InputError, UnsupportedError: as ``backward_kernel`` would.

    Cost: one forward and one backward pass over one sample.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> x, y = torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)
        >>> plan_kernel(model, torch.nn.CrossEntropyLoss(), x, y).layers[0].form
        'ghost'
    """
    where = "plan_kernel"
    n1 = check_batch(where, x, y)
    n2 = None if x2 is None else check_batch(where, x2, y2, ("x2", "y2"))
    view = ModelView.of(model, params, where)
    refuse_recurrent_dropout(model, where)
    with undisturbed(model):
        captured = capture_factors(view, loss_fn, take(x, [0]), take(y, [0]), where)
    return make_plan(captured, n1, n2, memory_limit, where)


def form_of(plan: KernelPlan, factor: Factor) -> Form:
    """The planned form of a factor."""
    names = tuple(factor.shapes)
    return next(layer.form for layer in plan.layers if layer.parameters == names)


def tile_rows(factor: Factor, form: Form) -> int:
    """Samples along the side of a tile: fewer where every sample brings many positions."""
    if form != "ghost":
        return TILE_ROWS
    positions = factor.dims[0]  # type: ignore[attr-defined]
    return TILE_ROWS if positions == 1 else max(1, TILE_POSITIONS // positions)
