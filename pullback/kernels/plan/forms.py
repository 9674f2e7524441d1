"""Which form of a layer's kernel to use: the least time, by operations and the machine's measured rates."""

from __future__ import annotations

from collections.abc import Mapping

from pullback._checks import input_error
from pullback.functional.model_view import layer_of
from pullback.gradients.rows.contract import Contract, Form, Work
from pullback.gradients.rows.factor import Factor
from pullback.kernels.plan.rates import Rates

TILE_ROWS = 512  # rows of a tile without positions: its temporaries (1 MB each in float32) stay in cache
SMALLEST_TILE_ROWS = 64  # rows of a tile below which products are slow
TILE_POSITIONS = 1024  # rows times positions of a tile with positions


def choose_form(
    factor: Factor,
    n1: int,
    n2: int | None,
    contract: Contract,
    asked: Mapping[str, Form],
    rates: Rates,
    where: str,
) -> Form:
    """The form asked for by layer or parameter name, or the cheapest one.

    Raises:
        InputError: a form was asked for that this layer does not have.
    """
    for name in factor.shapes:
        form = asked.get(name, asked.get(layer_of(name)))
        if form is None:
            continue
        if form not in factor.forms():
            listed = ", ".join(repr(f) for f in factor.forms())
            raise input_error(where, f"a form of `{name}` among {listed}", repr(form), "Choose one of those")
        return form
    return cheapest_form(factor, n1, n2, contract, rates)


def cheapest_form(factor: Factor, n1: int, n2: int | None, contract: Contract, rates: Rates) -> Form:
    """The form with the least estimated time."""
    works = {form: factor.work(form, n1, n2, contract) for form in factor.forms()}
    return min(works, key=lambda form: seconds_of(works[form], rates))


def seconds_of(work: Work, rates: Rates) -> float:
    """Estimated time: everything at its own rate."""
    return work.gemm / rates.gemm + work.bmm / rates.bmm + work.stream / rates.stream


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
