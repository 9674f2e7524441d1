"""Sums and products of data with a broadcast parameter: positions, class tokens, gains, layer scales.

Also the rule of last resort for tensors computed from parameters that hold one row a sample (an expanded class
token that is concatenated): an alias of each is what the call gets, and its gradient is the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.gradients.rows.contract import full_precision
from pullback.gradients.rows.factor import DenseFactor
from pullback.gradients.rules.registry import Arguments, Call, Rule, add_rule


def _elementwise(call: Call) -> DenseFactor:
    """Rows ``D * df/dS``, summed over the axes S is broadcast along."""
    ((argument, source),) = call.sources.items()
    other = call.arguments["other" if argument == "input" else "input"]
    gradient = full_precision(call.gradient)  # (N, C, *out), out as for a batch of one
    out = gradient.shape[2:]
    if call.function in _SUMS and call.arguments.get("alpha", 1) == 1:
        rows = gradient
    else:
        data = full_precision(call.samples(other))  # (N, *shape)
        data = data.reshape(len(data), *[1] * (len(out) - data.dim() + 1), *data.shape[1:]).expand(len(data), *out)
        with torch.enable_grad():
            shared = full_precision(call.samples(call.arguments[argument])).expand(data.shape).clone().requires_grad_()
            operands = {argument: shared, ("other" if argument == "input" else "input"): data}
            rest = {k: v for k, v in call.arguments.items() if k not in ("input", "other")}
            value = _plain(call.function)(operands["input"], operands["other"], **rest)
            (slope,) = torch.autograd.grad(value.sum(), shared)
        rows = gradient * slope.unsqueeze(1)
    return DenseFactor({source.name: _sum_to(rows, source.shape)})


def _sum_to(rows: Tensor, shape: torch.Size) -> Tensor:
    """(N, C, *out) to (N, C, *shape): sums over the axes ``shape`` is broadcast along."""
    lead = rows.dim() - 2 - len(shape)
    if lead:
        rows = rows.sum(tuple(range(2, 2 + lead)))
    axes = tuple(2 + i for i, size in enumerate(shape) if size == 1 and rows.shape[2 + i] != 1)
    return rows.sum(axes, keepdim=True) if axes else rows


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function without writing to its argument."""
    return _OUT_OF_PLACE.get(function, function)


def _copies(call: Call) -> DenseFactor:
    """The alias has one row a sample: its gradient is (N, C, *shape for a batch of one)."""
    return DenseFactor({call.names["value"]: full_precision(call.gradient)})


COPIES = Rule("copies", ("value",), ("value",), None, _copies)

_TWO = ("input", "other")
_T = torch.Tensor
_SUMS = {torch.add, _T.add, _T.__add__, _T.__radd__, _T.add_, _T.__iadd__}
_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {_T.add_: torch.add, _T.__iadd__: torch.add}
_OUT_OF_PLACE |= {_T.sub_: torch.sub, _T.__isub__: torch.sub}
_OUT_OF_PLACE |= {_T.mul_: torch.mul, _T.__imul__: torch.mul, _T.div_: torch.div, _T.__itruediv__: torch.div}


def _broadcasts(arguments: Arguments) -> bool:
    """The result has the data's shape: the parameter does not stretch it."""
    left, right = arguments.get("input"), arguments.get("other")
    return isinstance(left, Tensor) and isinstance(right, Tensor)


for _function in (
    *(torch.add, _T.add, _T.__add__, _T.__radd__, _T.add_, _T.__iadd__),
    *(torch.sub, _T.sub, _T.__sub__, _T.__rsub__, _T.sub_, _T.__isub__, torch.rsub),
    *(torch.mul, torch.multiply, _T.mul, _T.__mul__, _T.__rmul__, _T.mul_, _T.__imul__),
    *(torch.div, torch.true_divide, _T.div, _T.__truediv__, _T.__rtruediv__, _T.div_, _T.__itruediv__),
    *(torch.pow, _T.pow, _T.__pow__, torch.maximum, torch.minimum),
):
    add_rule(_function, Rule("elementwise", _TWO, _TWO, None, _elementwise, _broadcasts, positional=2))
