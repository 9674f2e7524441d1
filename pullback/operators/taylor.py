"""``taylor``: the polynomial of order 0, 1 or 2 that agrees with a function at a point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pullback._checks import check_option
from pullback.functional.differentiable import differentiable, forward_derivatives
from pullback.operators.products import Tree, check_like, combine, func, in_dtype_of, jvp


def taylor(f: Callable[[Tree], Tree], w0: Tree, order: int) -> Callable[[Tree], Tree]:
    """Taylor polynomial of ``f`` around ``w0``, a function of w: f(w0) + J dw + dw^T H dw / 2 with dw = w - w0.

    The terms are made by products (``jvp`` nested in ``jvp`` for the quadratic one), for scalar and for
    vector-valued f alike; no Jacobian or Hessian is formed. The error is of the order of ``|dw|^(order + 1)`` where f
    has that many derivatives. The value f(w0) is computed once, here.

    Args:
        f: from ``w`` to a tensor or a nest of tensors; without side effects.
        w0: a vector, a dict of parameters, any nest of floating tensors. A copy is kept.
        order: 0, 1 or 2.

    Returns:
        A function of w, shaped like ``w0``, that returns what ``f`` returns; differentiable in w.

    Raises:
        InputError: another order; on use, a ``w`` unlike ``w0``.
        UnsupportedError: on use, a part of ``f`` has no forward derivative.

    Cost: per evaluation 0, 3 or at most 9 forward passes.

    References: Grosse (2021), chapter 2, eq. 1 and 10.

    Example:
        >>> quadratic = taylor(lambda w: torch.exp(w).sum(), torch.zeros(2), order=2)
        >>> quadratic(torch.tensor([0.1, 0.2]))  # 2 + 0.3 + (0.01 + 0.04) / 2
        tensor(2.3250)
    """
    check_option("taylor", "order", order, (0, 1, 2))
    check_like("taylor", "w0", w0)
    w0 = tree_map(lambda leaf: leaf.detach().clone(), w0)
    with torch.no_grad():
        value = f(w0)
    check_like("taylor", "f(w0)", value)

    def approximation(w: Tree) -> Tree:
        check_like("taylor", "w", w, "w0", w0)
        change = combine(-1.0, w0, w)
        if order == 0:
            return tree_map(Tensor.clone, value)
        if order == 1:
            return combine(1.0, jvp(f, w0, change), value)
        along = partial(_slope, f, change)
        with differentiable(every_order=True), forward_derivatives("taylor"):
            slope, bend = func.jvp(along, (w0,), (change,))
        return in_dtype_of(value, combine(0.5, bend, combine(1.0, slope, value)))

    return approximation


def _slope(f: Callable[[Tree], Tree], change: Tree, w: Tree) -> Tree:
    """Derivative of ``f`` at ``w`` along ``change``."""
    return func.jvp(f, (w,), (change,))[1]
