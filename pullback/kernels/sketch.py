"""``sketch_kernel``: an unbiased estimate of the backward kernel with its standard error, for layers that are too large.

Layers whose exact block is no dearer stay exact. Of the others ``repeats`` independent sketches are drawn, each gives
an estimate of every entry, and the mean and the spread of these are reported. Repeats run one after the other, so
that the rows of one repeat of one layer are all that is held beside the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from pullback._checks import check_names, input_error, self_check_error
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.kernels.coverage import Captured, tolerance
from pullback.kernels.factors import Factor
from pullback.kernels.gram import mirror, tiles
from pullback.kernels.plan import TILE_ROWS
from pullback.kernels.sketch_rows import Exact, Sketch, as_matrix, project, projections


@dataclass(frozen=True)
class SketchedKernel:
    """An estimate of a backward kernel, (N1, N2), with the standard error of every entry.

    Attributes:
        total: the estimate, loss^2 / parameter^2: exact layers and the mean over the repeats of the others.
            Symmetric to the bit if both sides are the same samples; not always positive semidefinite to rounding
            of the exact one, but always positive semidefinite, being a sum of Gram matrices.
        stderr: standard error of ``total``, (N1, N2), from the spread of the repeats; 0 where all layers are exact.
        layers: module name -> its estimate; they sum to ``total``. In the order of the forward pass.
        layer_stderr: module name -> standard errors. Layers are drawn independently: their squares sum to that of
            ``stderr`` in the mean, not in every entry.
        size: k, the side of a sketched layer.
        repeats: R, how many draws the mean and the standard error are of.
        confidence: of ``interval``.
        exact_layers: layers without sketched parts.
        plan: what was sketched and what it cost.
    """

    total: Tensor
    stderr: Tensor
    layers: Mapping[str, Tensor]
    layer_stderr: Mapping[str, Tensor]
    size: int
    repeats: int
    confidence: float
    exact_layers: tuple[str, ...]
    plan: SketchPlan

    def interval(self, layer: str | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper end, (N1, N2) each, of Student's t interval for every entry of ``total`` or of a layer.

        Each entry is covered with about the probability ``confidence``, not all of them together. How near the
        nominal one it comes is measured in ``docs/sketches.md``: skewness costs up to three percent on the diagonal
        for sizes and numbers of repeats below 8 and 16.

        Raises:
            InputError: no such layer.
        """
        if layer is not None:
            check_names("SketchedKernel.interval", "layers", [layer], self.layers)
        middle = self.total if layer is None else self.layers[layer]
        error = self.stderr if layer is None else self.layer_stderr[layer]
        reach = error * float(stdtrit(self.repeats - 1, 0.5 + 0.5 * self.confidence))
        return middle - reach, middle + reach

    def __repr__(self) -> str:
        rows, columns = self.total.shape
        sketched = len(self.layers) - len(self.exact_layers)
        return f"SketchedKernel({rows} x {columns}, {sketched} of {len(self.layers)} layers sketched)"


@dataclass(frozen=True)
class FactorSketch:
    """How the block of one factor is found.

    Args:
        parameters: names of the parameters it covers.
        rule: which rule wrote their gradients down.
        sketched: whether it is estimated.
        exact_flops: operations of the exact block in its cheapest form.
        sketch_flops: operations of all repeats.
    """

    parameters: tuple[str, ...]
    rule: str
    sketched: bool
    exact_flops: float
    sketch_flops: float


@dataclass(frozen=True)
class SketchPlan:
    """What a sketched kernel costs; ``str(plan)`` is a table.

    Args:
        shape: (N1, N2).
        settings: size, repeats, seed and the choice of exact layers.
        factors: in the order of the forward pass.
    """

    shape: tuple[int, int]
    settings: Sketch
    factors: tuple[FactorSketch, ...]

    @property
    def flops(self) -> float:
        """Operations of all blocks as planned, without the forward and backward pass."""
        return sum(f.sketch_flops if f.sketched else f.exact_flops for f in self.factors)

    def __str__(self) -> str:
        rows = [("parameters", "rule", "form", "GFLOP exact", "GFLOP sketched")]
        rows += [
            (
                ", ".join(f.parameters),
                f.rule,
                "sketch" if f.sketched else "exact",
                f"{f.exact_flops / 1e9:.3g}",
                f"{f.sketch_flops / 1e9:.3g}",
            )
            for f in self.factors
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        n1, n2 = self.shape
        size, repeats = self.settings.size, self.settings.repeats
        lines.append(f"kernel {n1} x {n2}, {repeats} sketches of {size} x {size}: {self.flops / 1e9:.3g} GFLOP")
        return "\n".join(lines)


def sketch_kernel(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    x2: Batch | None = None,
    y2: Batch | None = None,
    size: int = 64,
    repeats: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
    params: Iterable[str] | None = None,
    exact: Exact = "cheaper",
) -> SketchedKernel:
    """Estimate K_ij = <g_i, g_j> of the samples' own losses, without bias and with a standard error.

    Every layer's W_i, (p, d), becomes L^T W_i R, (size, size), with L and R of random signs over root size; inner
    products of these are unbiased estimates of <W_i, W_j>. Both sets of samples see the same L and R. Layers are
    drawn independently of each other, and all of them anew in every repeat.

    Args:
        model: any module in eval mode.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample, (N,).
        x: inputs, (N1, ...).
        y: targets, (N1, ...).
        x2: other inputs, (N2, ...), for the cross-kernel between two sets; None for K(x, x).
        y2: their targets.
        size: k, the side of a sketched layer. The error falls as 1 / root(size * repeats) for aligned gradients and
            as 1 / (size root(repeats)) for orthogonal ones.
        repeats: R, independent draws to take the mean and the standard error of.
        confidence: of ``SketchedKernel.interval``, between 0 and 1.
        seed: of all draws.
        params: names of parameters or modules to restrict the gradients to; None for all trainable ones.
        exact: "cheaper" leaves layers exact where that needs no more operations; "smaller" only where a layer is no
            longer than ``size`` on both sides, so that the choice does not depend on the number of samples.

    Raises:
        InputError: size below 1, repeats below 2, confidence not between 0 and 1; else as ``backward_kernel``.
        UnsupportedError: as ``backward_kernel``.
        SelfCheckError: the sketched rows do not sum to the sketch of the ordinary gradient.

    Cost: a forward and a backward pass, then for a sketched layer with T positions, a repeat, N T size (d + p + size)
        multiplications and N^2 size^2 of them for the pairs. Layer inputs and output gradients are held as for the
        exact kernel, and two (N1, N2) matrices a layer.

    References: two random projections of outer products as data attribution uses them, Choe et al. (2024),
        arXiv:2405.13954; variance and coverage, ``docs/sketches.md``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20))
        >>> x, y = torch.randn(4, 8, 40), torch.randn(4, 8, 20)
        >>> kernel = sketch_kernel(model, nn.MSELoss(), x, y, size=8, exact="smaller")
        >>> low, high = kernel.interval()
        >>> bool(((low <= kernel.total) & (kernel.total <= high)).all())
        True
    """
    where = "sketch_kernel"
    sketch = Sketch(size, repeats, seed, exact)
    if not 0 < confidence < 1:
        raise input_error(where, "a `confidence` between 0 and 1", f"{confidence}", "Pass 0.95 for 95 percent")
    check_batch(where, x, y)
    left, right = CAPTURE
    return estimate(left, right, sketch, confidence, where)


def estimate(left: Captured, right: Captured | None, sketch: Sketch, confidence: float, where: str) -> SketchedKernel:
    """The sketched kernel of captured factors, of one side with itself or of two whose factors are in one order."""
    n1, n2 = left.num_samples, None if right is None else right.num_samples
    plan = make_sketch_plan(left, sketch, n2)
    exact = {name for factor in plan.factors if not factor.sketched for name in factor.parameters}
    layers: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    total = stderr = None
    if any(f.sketched for f in plan.factors):
        ...


def make_sketch_plan(captured: Captured, sketch: Sketch, n2: int | None) -> SketchPlan:
    """Which factors of an n1 x n1 (n2 None) or n1 x n2 kernel are sketched, and the operations."""
    n1 = captured.num_samples
    kept = exact_parameters(captured.factors, sketch, n1, n2)
    factors = [
        FactorSketch(
            tuple(factor.shapes),
            rule,
            next(iter(factor.shapes)) not in kept,
            exact_flops(factor, n1, n2),
            sketch_flops(factor, sketch, n1, n2),
        )
        for whole, rule in zip(captured.factors, captured.rules, strict=True)
        for factor in split([whole])
    ]
    return SketchPlan((n1, n2 or n1), sketch, tuple(factors))


@dataclass
class _Running:
    """Mean and summed squared deviations of blocks that come one after the other."""

    count: int = 0
    mean: Tensor | None = None
    squares: Tensor | None = None

    def add(self, block: Tensor) -> None:
        """Take in one more block."""
        self.count += 1
        if self.mean is None or self.squares is None:
            self.mean, self.squares = block.clone(), torch.zeros_like(block)
            return
        step = block - self.mean
        self.mean += step / self.count
        self.squares += step * (block - self.mean)

    def stderr(self) -> Tensor:
        """Standard error of the mean."""
        assert self.squares is not None
        return (self.squares / (self.count * (self.count - 1))).sqrt()
