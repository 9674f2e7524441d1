"""One layer's plan: the form with the least time, by operations and the machine's measured rates, and what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pullback._checks import input_error
from pullback.functional.model_view import layer_of
from pullback.gradients.rows.contract import Contract, Form, Work
from pullback.gradients.rows.factor import Factor
from pullback.kernels.plan.kernel_plan import LayerPlan
from pullback.kernels.plan.rates import Rates

TILE_ROWS = 512  # rows of a tile without positions: its temporaries (1 MB each in float32) stay in cache
SMALLEST_TILE_ROWS = 64  # rows of a tile below which products are slow
TILE_POSITIONS = 1024  # rows times positions of a tile with positions


@dataclass(frozen=True)
class PlanOptions:
    """What a plan has to keep to.

    Args:
        contract: of the output axes.
        forms: layer or parameter name -> form, where the choice is not left to the cost.
        keep_layers: keep the blocks of all layers, if the limit allows.
        memory_limit: bytes to stay below; None plans without a limit.
        graph_bytes: see ``KernelPlan``.
        rates: of the machine; None takes this one's.
    """

    contract: Contract = "full"
    forms: Mapping[str, Form] | None = None
    keep_layers: bool = True
    memory_limit: int | None = None
    graph_bytes: int = 0
    rates: Rates | None = None


def layer_plan(
    factor: Factor,
    rule: str,
    samples: tuple[int, int | None],
    options: PlanOptions,
    seen: dict[int, Tensor],
    where: str,
) -> LayerPlan:
    """How the rows of one factor are multiplied, and what that takes.

    Args:
        factor: the rows, of any number of samples.
        rule: that wrote them down.
        samples: n1 of the rows and n2 of the columns; None for the symmetric kernel.
        options: with the rates.
        seen: tensors other factors hold, see ``held_bytes``.
        where: the caller.

    Raises:
        InputError: a form was asked for that this layer does not have.
    """
    (n1, n2), contract, rates = samples, options.contract, options.rates
    assert rates is not None
    both = n1 + (n2 or 0)
    form = choose_form(factor, samples, options, rates, where)
    held, kept = held_bytes(factor, both, seen)
    one = factor.num_params * factor.element_size
    rows = one * both * factor.num_outputs if form == "materialise" else 0
    work = factor.work(form, n1, n2, contract)
    if rows:
        temporary = factor.temporary_bytes(both, min(rows, factor.piece_bytes))
    else:  # only what passes through elementwise work is written down first
        temporary = _tile_bytes(factor, form, n1, contract) if work.stream else 0
    return LayerPlan(
        parameters=tuple(factor.shapes),
        rule=rule,
        form=form,
        held_bytes=held,
        kept_bytes=kept,
        rows_bytes=rows,
        gradient_bytes=one,
        tile_bytes=temporary,
        flops=work.flops,
        seconds=seconds_of(work, rates),
    )


def choose_form(
    factor: Factor, samples: tuple[int, int | None], options: PlanOptions, rates: Rates, where: str
) -> Form:
    """The form asked for by layer or parameter name, or the cheapest one."""
    asked = options.forms or {}
    for name in factor.shapes if asked else ():
        form = asked.get(name, asked.get(layer_of(name)))
        if form is None:
            continue
        if form not in factor.forms():
            listed = ", ".join(repr(f) for f in factor.forms())
            raise input_error(where, f"a form of `{name}` among {listed}", repr(form), "Choose one of those")
        return form
    return cheapest_form(factor, *samples, options.contract, rates)


def cheapest_form(factor: Factor, n1: int, n2: int | None, contract: Contract, rates: Rates) -> Form:
    """The form with the least estimated time."""
    works = {form: factor.work(form, n1, n2, contract) for form in factor.forms()}
    return min(works, key=lambda form: seconds_of(works[form], rates))


def seconds_of(work: Work, rates: Rates) -> float:
    """Estimated time: everything at its own rate."""
    return work.gemm / rates.gemm + work.bmm / rates.bmm + work.stream / rates.stream


def storage_key(tensor: Tensor) -> int:
    """What tensors that share memory have in common; also on the meta device, where all data is at address 0."""
    return tensor.untyped_storage()._cdata


def held_bytes(factor: Factor, n: int, seen: dict[int, Tensor]) -> tuple[int, int]:
    """Bytes a factor keeps for ``n`` samples, each storage once, and those of them that autograd keeps too.

    ``seen`` holds the tensors it knows: a storage that is freed would pass its key on to another one.
    """
    held = kept = 0
    for name, tensor in factor.tensors().items():
        if (key := storage_key(tensor)) in seen:
            continue
        seen[key] = tensor
        size = min(tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size())
        size = size * n // max(1, factor.num_samples)
        held += size
        kept += size if name in factor.kept_by_autograd else 0
    return held, kept


def _tile_bytes(factor: Factor, form: Form, n1: int, contract: Contract) -> int:
    """Temporaries of a tile: two matrices of its positions."""
    positions = factor.positions(form)
    side = min(n1, tile_rows(factor, form, contract)) * positions
    outputs = factor.num_outputs if contract == "full" and positions == 1 else 1
    return int(side * side * (1 + outputs**2) * factor.element_size)


def tile_rows(factor: Factor, form: Form, contract: Contract, *, triangle: bool = True) -> int:
    """Samples along the side of a tile: fewer where every sample brings many positions or outputs.

    At least eight tiles a side for a triangle, where they stay large enough: it then costs little more than half.
    """
    outputs = factor.num_outputs if contract == "full" else 1
    positions = factor.positions(form)
    if positions > 1:
        return max(1, TILE_POSITIONS // positions)
    most = (TILE_ROWS if outputs == 1 else 2 * TILE_ROWS) // outputs
    least = max(SMALLEST_TILE_ROWS, factor.num_samples // 8) if triangle else most
    return max(1, min(most, least))
