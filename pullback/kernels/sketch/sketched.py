"""``sketch_kernel``: unbiased estimates of backward kernels with standard errors, for layers that are too large.

Layers whose exact block is no dearer stay exact. Of the others ``repeats`` independent sketches are drawn, each gives
an estimate of every entry, and the mean and the spread of these are reported. Repeats run one after the other, so
that the rows of one repeat of one layer are all that is held beside the kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pullback._checks import check_names, input_error
from pullback._results import Drawn
from pullback.functional import LossFunction
from pullback.functional.batch import Batch
from pullback.functional.unwrap import without_autocast
from pullback.gradients.capture.captured import Captured
from pullback.gradients.capture.captured_rows import captured_rows
from pullback.gradients.capture.joined import aligned
from pullback.gradients.capture.sum_checks import summed
from pullback.kernels.gram.blocks import assemble
from pullback.kernels.plan.make import PLAIN, make_plan
from pullback.kernels.request import Given, Request, Side, loss_request
from pullback.kernels.sketch.plan import SketchPlan, make_sketch_plan
from pullback.kernels.sketch.project import Exact, Sketch, split
from pullback.kernels.sketch.repeats import Running, run_repeats


@dataclass(frozen=True)
class SketchedKernel(Drawn):
    """An estimate of a backward kernel, (N1, N2), with the standard error of every entry.

    Attributes:
        total: the estimate, loss^2 / parameter^2: exact layers, and the mean over the repeats of the others. A sum of
            Gram matrices, so positive semidefinite; symmetric to the bit if both sides are the same samples.
        stderr: standard error of ``total``, (N1, N2), from the spread of the repeats; 0 where all layers are exact.
        layers: module name -> its estimate; they sum to ``total``. In the order of the forward pass.
        layer_stderr: module name -> standard errors. Layers are drawn independently of each other, so the squares
            of these sum to the square of ``stderr`` on average, not entry by entry.
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
        from scipy.special import stdtrit  # here: loading SciPy takes longer than the rest of the package

        reach = error * float(stdtrit(self.repeats - 1, 0.5 + 0.5 * self.confidence))
        return middle - reach, middle + reach

    def __repr__(self) -> str:
        rows, columns = self.total.shape
        sketched = len(self.layers) - len(self.exact_layers)
        return f"SketchedKernel({rows} x {columns}, {sketched} of {len(self.layers)} layers sketched)"


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
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 20))
        >>> x, y = torch.randn(4, 8, 40), torch.randn(4, 8, 20)
        >>> kernel = sketch_kernel(model, nn.MSELoss(), x, y, size=8, exact="smaller")
        >>> low, high = kernel.interval()
        >>> known = reference.total_kernel(model, nn.MSELoss(), x, y)
        >>> bool(((low <= known) & (known <= high)).double().mean() > 0.75)
        True
    """
    where = "sketch_kernel"
    sketch = Sketch(size, repeats, seed, exact)
    if not 0 < confidence < 1:
        raise input_error(where, "a `confidence` between 0 and 1", f"{confidence}", "Pass 0.95 for 95 percent")
    request = loss_request(Given(where, model, x, y, x2, y2, None, params), loss_fn, PLAIN)
    left = _captured(request, request.rows)
    right = None
    if request.columns is not None:
        left, right = aligned(left, _captured(request, request.columns))
    with without_autocast():
        return estimate(left, right, sketch, confidence, where)


def _captured(request: Request, side: Side) -> Captured:
    return summed(captured_rows(side.view, request.readout, side.x, side.y, request.where), request.where)


def estimate(left: Captured, right: Captured | None, sketch: Sketch, confidence: float, where: str) -> SketchedKernel:
    """The sketched kernel of captured factors, of one side with itself or of two whose factors are in one order."""
    plan = make_sketch_plan(left, sketch, None if right is None else right.num_samples)
    sketched = {name for factor in plan.factors if factor.sketched for name in factor.parameters}
    exact = {name for factor in plan.factors for name in factor.parameters} - sketched
    layers: dict[str, Tensor] = {}
    total = left.factors[0].like.new_zeros(plan.shape)
    if exact:
        rows, columns = _without(left, sketched), right and _without(right, sketched)
        n2 = None if right is None else right.num_samples
        blocks = assemble(rows, columns, make_plan(rows, left.num_samples, n2, where), where)
        assert blocks.total is not None
        layers, total = blocks.layers, blocks.total
    errors = {layer: torch.zeros_like(block) for layer, block in layers.items()}
    error = torch.zeros_like(total)
    spreads: dict[str, Running] = {}
    if sketched:
        spread, spreads = run_repeats(left, right, sketch, exact, where)
        total, error = total + spread.mean, spread.stderr()
    for layer, each in spreads.items():
        layers[layer] = layers[layer] + each.mean if layer in layers else each.mean
        errors[layer] = each.stderr()
    return SketchedKernel(
        total=total,
        stderr=error,
        layers={layer: layers[layer] for layer in left.order},
        layer_stderr={layer: errors[layer] for layer in left.order},
        size=sketch.size,
        repeats=sketch.repeats,
        confidence=confidence,
        exact_layers=tuple(layer for layer in left.order if layer not in spreads),
        plan=plan,
    )


def _without(captured: Captured, names: set[str]) -> Captured:
    """The capture without the parameters in ``names``; factors that hold none of them stay whole."""
    pairs = [
        (factor, rule)
        for whole, rule in zip(captured.factors, captured.rules, strict=True)
        for factor in (split([whole]) if set(whole.shapes) & names else [whole])
        if not set(factor.shapes) & names
    ]
    return replace(captured, factors=tuple(f for f, _ in pairs), rules=tuple(rule for _, rule in pairs))
