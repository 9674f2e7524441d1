"""Products with derivatives of plain functions: of vectors, of parameter dicts, of any nest of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pullback._checks import check_option, input_error
from pullback.functional.differentiable import differentiable, forward_derivatives

Tree = Any  # a tensor, or a tuple, list or dict of them, nested
MODES = ("forward", "reverse")
func: Any = torch.func  # what its functions return depends on their arguments in ways no annotation follows


def jvp(f: Callable[[Tree], Tree], w: Tree, v: Tree, *, mode: str = "forward") -> Tree:
    """Derivative of ``f`` at ``w`` along ``v``: J v, the limit of (f(w + h v) - f(w)) / h; not the value f(w).

    Args:
        f: from ``w`` to a tensor or a nest of tensors; without side effects.
        w: the point: a vector, a dict of parameters, any nest of floating tensors.
        v: the direction, shaped like ``w``.
        mode: "forward" carries the derivative along with the values; "reverse" takes J^T twice (J^T u is linear in
            u, and its derivative along v is J v), for functions with a part that has no forward derivative.

    Returns:
        J v, shaped like ``f(w)``; differentiable itself wherever its arguments are.

    Raises:
        InputError: ``v`` or what ``f`` returns does not fit.
        UnsupportedError: a part of ``f`` has no forward derivative.

    Cost: 3 forward passes ("forward": the product of a linear layer and the two of its derivative), at most 5
        ("reverse"). Fused attention has neither derivative: inside the call torch's plain attention runs instead.

    References: Grosse (2021), Neural net training dynamics, chapter 2, section 1.2.

    Example:
        >>> w, v = torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0])
        >>> jvp(lambda w: w.prod() * w, w, v)
        tensor([ 8., -3.])
    """
    check_option("jvp", "mode", mode, MODES)
    check_like("jvp", "v", v, "w", w)
    if mode == "forward":
        with differentiable(every_order=True), forward_derivatives("jvp"):
            return in_dtype_of(*func.jvp(_checked(f, "jvp"), (w,), (v,)))
    with differentiable(every_order=True), forward_derivatives("jvp"):
        value, pull = func.vjp(_checked(f, "jvp"), w)
        zeros = tree_map(torch.zeros_like, value)
        _, push = func.vjp(lambda u: pull(u)[0], zeros)
        return push(v)[0]


def vjp(f: Callable[[Tree], Tree], w: Tree, u: Tree) -> Tree:
    """Transposed derivative of ``f`` at ``w`` applied to ``u``: J^T u; not the value f(w).

    Args:
        f: as for ``jvp``.
        w: as for ``jvp``.
        u: shaped like ``f(w)``; 1 for the gradient of a scalar.

    Returns:
        J^T u, shaped like ``w``.

    Raises:
        InputError: ``u`` or what ``f`` returns does not fit.

    Cost: one forward and one backward pass, at most 3 forward passes.

    Example:
        >>> vjp(lambda w: w.prod() * w, torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0]))
        tensor([12.,  4.])
    """
    check_like("vjp", "w", w)
    with differentiable(every_order=True):
        value, pull = func.vjp(_checked(f, "vjp"), w)
        check_like("vjp", "u", u, "f(w)", value)
        return pull(u)[0]


def hvp(loss: Callable[[Tree], Tensor], w: Tree, v: Tree, *, mode: str = "forward") -> Tree:
    """Hessian of a scalar function at ``w`` times ``v``, no matrix formed: the derivative of the gradient along v.

    Args:
        loss: from ``w`` to a scalar tensor.
        w: as for ``jvp``.
        v: shaped like ``w``.
        mode: "forward" carries the derivative along v through the computation of the gradient; "reverse" takes the
            gradient of the gradient.

    Returns:
        H v, shaped like ``w``.

    Raises:
        InputError: ``v`` does not fit, ``loss`` returns something else than a scalar.
        UnsupportedError: a part of ``loss`` has no forward derivative.

    Cost: at most 9 forward passes, 6 beyond the gradient that is made on the way; for many products at one point use
        ``Hessian``, which makes it once. Kinks (ReLU) and fused attention as there.

    References: Pearlmutter (1994).

    Example:
        >>> w, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
        >>> hvp(lambda w: w[0] ** 3 * w[1], w, v)
        tensor([15.,  3.])
    """
    check_option("hvp", "mode", mode, MODES)
    check_like("hvp", "v", v, "w", w)
    gradient = func.grad(_scalar(loss, "hvp"))
    with differentiable(every_order=True), forward_derivatives("hvp"):
        if mode == "forward":
            return in_dtype_of(*func.jvp(gradient, (w,), (v,)))
        return func.vjp(gradient, w)[1](v)[0]


def gauss_newton_vp(
    f: Callable[[Tree], Tree], loss: Callable[[Tree], Tensor], w: Tree, v: Tree, *, mode: str = "forward"
) -> Tree:
    """Gauss-Newton matrix at ``w`` times ``v``: J^T H_z J v, with J of ``f`` at w and H_z of ``loss`` at z = f(w).

    It is the product with the Hessian of ``loss(f_lin(w))``, f_lin the linearisation of f. The normalisation is that
    of ``loss``. f is run forward once: J v is carried along with z, and J^T goes back through the same pass.

    Args:
        f: from ``w`` to outputs z.
        loss: from z to a scalar tensor; it closes over the targets.
        w: as for ``jvp``.
        v: shaped like ``w``.
        mode: how J v is made, as for ``jvp``.

    Returns:
        G v, shaped like ``w``; v^T G v is not negative if ``loss`` is convex.

    Raises:
        InputError: ``v`` does not fit, ``loss`` returns something else than a scalar.
        UnsupportedError: a part of ``f`` or ``loss`` has no forward derivative.

    Cost: at most 5 forward passes of f, and a product with H_z.

    References: Schraudolph (2002); Grosse (2021), chapter 2, eq. 14.

    Example:
        >>> w, v = torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.0])  # f = 2 tanh(0.75), J = (1.7898, 0.6351)
        >>> gauss_newton_vp(lambda w: w[1] * torch.tanh(1.5 * w[0]), lambda z: (z - 0.3) ** 2 / 2, w, v)
        tensor([3.2032, 1.1368])
    """
    where = "gauss_newton_vp"
    check_option(where, "mode", mode, MODES)
    check_like(where, "v", v, "w", w)
    f, loss = _checked(f, where), _scalar(loss, where)
    with differentiable(every_order=True), forward_derivatives(where):
        if mode == "forward":
            # the value to be pulled back is z; J v comes out of the same pass beside it
            z, pull, change = func.vjp(lambda w: func.jvp(f, (w,), (v,)), w, has_aux=True)
        else:
            z, pull = func.vjp(f, w)
            change = func.vjp(lambda u: pull(u)[0], tree_map(torch.zeros_like, z))[1](v)[0]
        return pull(hvp(loss, z, in_dtype_of(z, change), mode=mode))[0]


def check_like(where: str, name: str, tree: Tree, like_name: str = "", like: Tree = None) -> None:
    """Refuse nests with leaves that are no floating tensors, or unlike another nest."""
    leaves, structure = tree_flatten(tree)
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves):
        bad = next((leaf for leaf in leaves if not (isinstance(leaf, Tensor) and leaf.is_floating_point())), None)
        got = "nothing" if not leaves else str(bad.dtype) if isinstance(bad, Tensor) else type(bad).__name__
        expected = f"`{name}` as a floating tensor, or a tuple, list or dict of them"
        raise input_error(where, expected, got, "Convert it with torch.as_tensor(..., dtype=torch.float64)")
    if not like_name:
        return
    others, structure_of_other = tree_flatten(like)
    pairs = list(zip(leaves, others, strict=False))
    # two dicts may list their entries in different orders and have the same structure
    if structure != structure_of_other:
        got, expected = str(structure), str(structure_of_other)
        raise input_error(where, f"`{name}` nested as `{like_name}`, {expected}", got, "Use the same names and order")
    for leaf, other in pairs:
        if (leaf.shape, leaf.dtype, leaf.device) != (other.shape, other.dtype, other.device):
            expected, got = (f"{tuple(t.shape)}, {t.dtype} on {t.device}" for t in (other, leaf))
            raise input_error(where, f"`{name}` shaped like `{like_name}`, {expected}", got, "Reshape or convert it")


def _checked(f: Callable[[Tree], Tree], where: str) -> Callable[[Tree], Tree]:
    """``f`` with a check of what it returns."""

    def of(w: Tree) -> Tree:
        value = f(w)
        check_like(where, "f(w)", value)
        return value

    return of


def _scalar(loss: Callable[[Tree], Tensor], where: str) -> Callable[[Tree], Tensor]:
    """``loss`` with a check that it returns one number; (1,) counts as one."""

    def of(w: Tree) -> Tensor:
        value = loss(w)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise input_error(where, "a scalar tensor from `loss`", got, "Take the mean or the sum over samples")
        return value.reshape(())

    return of


def in_dtype_of(value: Tree, change: Tree) -> Tree:
    """``change`` in the dtypes of ``value``: torch's forward derivatives of scalar tensors may come in float64."""
    return tree_map(lambda a, b: b.to(a.dtype), value, change)


def combine(factor: float, tree: Tree, other: Tree) -> Tree:
    """``other + factor * tree``, leaf by leaf."""
    leaves, structure = tree_flatten(tree)
    others = tree_flatten(other)[0]
    return tree_unflatten([b + factor * a for a, b in zip(leaves, others, strict=True)], structure)
