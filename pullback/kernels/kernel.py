"""``backward_kernel``: K_ij = <g_i, g_j>, whole and per layer, from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from pullback._checks import input_error
from pullback.functional import LossFunction, ModelView, check_batch, undisturbed
from pullback.functional.batch import Batch
from pullback.functional.model_view import layer_of
from pullback.kernels.capture import Capture, refuse_recurrent_dropout
from pullback.kernels.coverage import UNSEEN, Captured, SumChecks, capture_factors
from pullback.kernels.factors import Factor
from pullback.kernels.gram import gram
from pullback.kernels.plan import KernelPlan, form_of, make_plan, tile_rows
from pullback.operators.base import Operator


class Kernel(Operator):
    """Inner products of per-sample gradients, (N1, N2), with its blocks per layer and per parameter.

    Attributes:
        total: Tensor (N1, N2), loss^2 / parameter^2. Symmetric to the bit if both sides are the same samples.
        layers: module name -> its block (N1, N2), in the order of the forward pass; the blocks sum to ``total``.
        parameters: parameter name -> its block, computed when first asked for; shared parameters appear once.
        num_params: P, the number of trainable numbers covered.
        layer_sizes: module name -> the number of trainable numbers it owns.
        plan: the plan that was run.
        losses: the rows' losses, (N1,).
        outputs: what the model returned for the rows.
    """

    def __init__(
        self,
        layers: dict[str, Tensor],
        plan: KernelPlan,
        captured: Captured,
        parameter_block: Callable[[str], Tensor],
        *,
        symmetric: bool,
    ) -> None:
        self.layers: Mapping[str, Tensor] = layers
        blocks = iter(layers.values())
        self.total = next(blocks).clone()
        for block in blocks:
            self.total += block
        self.plan = plan
        self.losses = captured.losses
        self.outputs = captured.outputs
        view = captured.view
        self.num_params = view.num_params
        self.layer_sizes = {
            layer: sum(view.parameters[name].numel() for name in names) for layer, names in view.layers.items()
        }
        self.symmetric = symmetric
        self.parameters: Mapping[str, Tensor] = _Blocks(tuple(view.parameters), parameter_block)
        rows, columns = self.total.shape
        super().__init__((rows, columns), self.total.dtype, self.total.device)

    def _matmat(self, matrix: Tensor) -> Tensor:
        return self.total @ matrix

    def _rmatmat(self, matrix: Tensor) -> Tensor:
        return self.total.T @ matrix

    def to_dense(self) -> Tensor:
        """The whole kernel, ``total``."""
        return self.total

    def __repr__(self) -> str:
        return f"Kernel({self.shape[0]} x {self.shape[1]}, {len(self.layers)} layers, P={self.num_params})"


class _Blocks(Mapping[str, Tensor]):
    """Blocks by parameter, computed on first access and kept."""

    def __init__(self, names: tuple[str, ...], compute: Callable[[str], Tensor]) -> None:
        self._names = names
        self._compute = compute
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._known:
            self._known[name] = self._compute(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def backward_kernel(
    model: nn.Module,
    loss_fn: LossFunction,
    x: Batch,
    y: Batch,
    *,
    x2: Batch | None = None,
    y2: Batch | None = None,
    params: Iterable[str] | None = None,
    memory_limit: int | None = None,
) -> Kernel:
    """Backward kernel K_ij = <g_i, g_j>, g_i the gradient of sample i's own loss; exact, no 1/N anywhere.

    One forward and one backward pass over the samples. Gradients are never formed where their inner products are
    cheaper from layer inputs and output gradients. It is not the tangent kernel (gradients of outputs), and what
    it shares its spectrum with is the empirical Fisher matrix G^T G, not the Hessian.

    Args:
        model: any module in eval mode; parameters no rule covers go through a fallback the plan reports.
        loss_fn: a loss module with a ``reduction``, or a callable returning one loss per sample, (N,).
        x: inputs, (N1, ...): a tensor, or a tuple, list or dict of tensors for several model arguments.
        y: targets, (N1, ...).
        x2: other inputs, (N2, ...), for the cross-kernel between two sets; None for K(x, x).
        y2: their targets.
        params: names of parameters or modules to restrict the gradients to; None for all trainable ones.
        memory_limit: bytes the plan must stay below; None plans without a limit.

    Returns:
        Kernel with ``total`` (N1, N2), ``layers``, ``parameters``, ``plan``.

    Raises:
        InputError: empty, non-finite or mismatched data, labels out of range, a loss that returns a scalar.
        UnsupportedError: batch norm or dropout in train mode, a loss or a model that mixes samples.
        SelfCheckError: a result contradicts the ordinary gradient; see ``coverage`` for the checks.

    Cost: a forward and a backward pass, then for a linear layer from d to p features N^2 (d + p) operations
        without positions and the lesser of N^2 T^2 (d + p) and N^2 d p + 2 N T d p with T positions. The captured
        layer inputs and output gradients stay alive with the kernel.

    References: ghost inner products, Goodfellow (2015), arXiv:1510.01799; forms and choice, ``docs/kernels.md``.

    Example:
        >>> import torch
        >>> from pullback import reference
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        >>> x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
        >>> kernel = backward_kernel(model, nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(kernel.total, reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)))
        True
    """
    where = "backward_kernel"
    check_batch(where, x, y)
    if (x2 is None) != (y2 is None):
        given, missing = ("x2", "y2") if y2 is None else ("y2", "x2")
        raise input_error(where, "`x2` and `y2` together", f"only `{given}`", f"Pass `{missing}` too")
    if x2 is not None:
        check_batch(where, x2, y2, ("x2", "y2"))
    view = ModelView.of(model, params, where)
    refuse_recurrent_dropout(model, where)
    with undisturbed(model):
        left = capture_factors(view, loss_fn, x, y, where)
        right = None if x2 is None else _aligned(capture_factors(view, loss_fn, x2, y2, where), left)
    n2 = None if right is None else right.num_samples
    return assemble(left, right, make_plan(left, left.num_samples, n2, memory_limit, where), where)


class KernelSeries:
    """Backward kernels of one model again and again while it trains, for callers that watch it.

    The first call makes every check; later ones leave out the two samples that are run alone (unless ``anew``),
    and keep the proof of coverage and the sums, which come with the one forward and backward pass.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        self.model, self.loss_fn = model, loss_fn
        self._first: Capture | None = None

    def __call__(self, x: Batch, y: Batch, *, anew: bool = False) -> Kernel:
        """Kernel of a batch at the weights as they are now."""
        where = "backward_kernel"
        check_batch(where, x, y)
        view = ModelView.of(self.model, None, where)
        refuse_recurrent_dropout(self.model, where)
        with undisturbed(self.model):
            captured = capture_factors(view, self.loss_fn, x, y, where, None if anew else self._first)
        self._first = captured.first
        return assemble(captured, None, make_plan(captured, captured.num_samples, None, None, where), where)


def assemble(left: Captured, right: Captured | None, plan: KernelPlan, where: str) -> Kernel:
    """Run a plan over captured factors, check the sums, and collect the blocks by layer."""
    layers: dict[str, Tensor] = {}
    checks = SumChecks(where)
    others: list[Factor | None] = [None] * len(left.factors) if right is None else list(right.factors)
    for factor, other in zip(left.factors, others, strict=True):
        if _spans_layers(factor):
            parts = [(factor.only(n), other and other.only(n), layer_of(n)) for n in factor.shapes]
        else:
            parts = [(factor, other, layer_of(next(iter(factor.shapes))))]
        for part, other_part, layer in parts:
            form = form_of(plan, factor)
            tile = tile_rows(part, form)
            block, totals = gram(part, other_part, form, plan.piece_bytes, tile)
            _add_checks(checks, part, block, totals, left, right, other_part, layer)
            layers[layer] = layers[layer] + block if layer in layers else block

    checks.evaluate()
    layers = {layer: layers[layer] for layer in forward_order(left, layers)}

    def parameter_block(name: str) -> Tensor:
        index = next(i for i, factor in enumerate(left.factors) if name in factor.shapes)
        part, other = left.factors[index].only(name), others[index]
        form = form_of(plan, left.factors[index])
        form = form if form in part.forms() else part.forms()[0]
        tile = tile_rows(part, form)
        return gram(part, other and other.only(name), form, plan.piece_bytes, tile)[0]

    return Kernel(layers, plan, left, parameter_block, symmetric=right is None)


def forward_order(captured: Captured, layers: Iterable[str]) -> list[str]:
    """Layers in the order of first use; those whose use was not seen follow their predecessor in the model."""
    unseen = {
        layer_of(n) for f, r in zip(captured.factors, captured.rules, strict=True) if r in UNSEEN for n in f.shapes
    }
    order = [layer for layer in layers if layer not in unseen]
    defined = list(captured.view.layers)
    for place, layer in enumerate(defined):
        if layer not in order:
            order.insert(order.index(defined[place - 1]) + 1 if place else 0, layer)
    return order


def _spans_layers(factor: Factor) -> bool:
    """Whether a factor covers parameters of several layers (the fallback and unused ones do)."""
    return len({layer_of(name) for name in factor.shapes}) > 1


def _aligned(right: Captured, left: Captured) -> Captured:
    """Factors of the second set in the order of the first; both must be written down the same way."""
    by_use = {(r, *f.shapes): (f, r) for f, r in zip(right.factors, right.rules, strict=True)}
    wanted = [(r, *f.shapes) for f, r in zip(left.factors, left.rules, strict=True)]
    if missing := [use for use in wanted if use not in by_use]:
        raise input_error(
            "backward_kernel",
            "both data sets to take the same path through the model",
            f"parameters {', '.join(missing[0][1:])} used differently",
            "Pass inputs of the same kind",
        )
    factors, rules = zip(*(by_use[use] for use in wanted), strict=True)
    return replace(right, factors=factors, rules=rules)


def _add_checks(
    checks: SumChecks,
    factor: Factor,
    block: Tensor,
    totals: list[dict[str, Tensor]],
    left: Captured,
    right: Captured | None,
    other: Factor | None,
    layer: str,
) -> None:
    """The sums of rows, and of the block, against the ordinary gradients of both sides."""
    captured = [left] if right is None else [left, right]
    squares = [block.diagonal()] if right is None else [f.squared_norms() for f in (factor, other) if f is not None]
    bounds = [(len(square) * square.sum().clamp(min=0)).sqrt() for square in squares]
    for side, total, bound in zip(captured, totals, bounds, strict=True):
        checks.add_totals(factor, side, total, bound)
    sums = [[side.ordinary[name] for name in factor.shapes] for side in captured]
    checks.add_kernel(layer, block, sums[0], sums[-1], bounds[0] * bounds[-1])
