"""Sums of outer products over positions, at the cheaper of both ends."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.gradients.rows.contract import Contract


def combine(
    out: Tensor, inner: Tensor, d: tuple[Tensor, Tensor], contract: Contract, plus: bool, *, unit: bool, add: bool
) -> None:
    """Write or add ``sum_ts inner_ts (D D^T)_ts`` to a tile.

    Args:
        out: the tile, laid out as ``Piece`` says.
        inner: A A^T, (n1, T, n2, S); may be overwritten.
        d: output gradients of the rows, (n1, C, T, p), and of the columns, (n2, C, S, p).
        contract: of the output axes.
        plus: one is to be added to ``inner``: the layer has a bias.
        unit: D is the identity (T = S = 1).
        add: add to what is there.
    """
    d1, d2 = d
    (n1, T, n2, S), C = inner.shape, d1.shape[1]
    if plus and T == S == C == 1 and contract != "diagonal" and not (unit or add):  # outer + inner outer: one pass
        outer = d1.flatten(1) @ d2.flatten(1).T
        torch.addcmul(outer, inner[:, 0, :, 0], outer, out=out)
        return
    if plus:
        inner += 1
    if unit:
        _combine_unit(out, inner[:, 0, :, 0], C, contract, add=add)
    elif C == 1 or contract == "trace":
        left = d1.transpose(1, 2).reshape(n1 * T, -1)  # (n1 T, C p)
        outer = left @ d2.transpose(1, 2).reshape(n2 * S, -1).T
        target = out[0] if contract == "diagonal" else out
        if T == S == 1:
            target.addcmul_(inner[:, 0, :, 0], outer) if add else torch.mul(inner[:, 0, :, 0], outer, out=target)
        else:
            _store(target, inner.reshape(n1 * T, -1).mul_(outer).view(n1, T, n2, S).sum((1, 3)), add=add)
    elif T == S == 1 and contract == "full":
        outer = (d1.flatten(0, 2) @ d2.flatten(0, 2).T).view(n1, C, n2, C)
        target = out.view(n1, C, n2, C)
        weights = inner[:, :, :, 0].unsqueeze(3)  # (n1, 1, n2, 1)
        target.addcmul_(weights, outer) if add else torch.mul(weights, outer, out=target)
    else:
        for c in range(C):
            for e in range(C) if contract == "full" else (c,):
                outer = (d1[:, c].flatten(0, 1) @ d2[:, e].flatten(0, 1).T).view(n1, T, n2, S)
                target = out.unflatten(0, (n1, C)).unflatten(2, (n2, C))[:, c, :, e] if contract == "full" else out[c]
                _store(target, outer.mul_(inner).sum((1, 3)), add=add)


def _combine_unit(out: Tensor, inner: Tensor, C: int, contract: Contract, *, add: bool) -> None:
    """The last layer: ``D D^T`` is the identity over outputs, so no product is needed."""
    if contract == "trace":
        _store(out, inner * C, add=add)
    elif contract == "diagonal":
        _store(out, inner.expand_as(out), add=add)
    else:
        if not add:
            out.zero_()
        target = out.unflatten(0, (len(inner), C)).unflatten(2, (inner.shape[1], C)).diagonal(dim1=1, dim2=3)
        target += inner.unsqueeze(2)


def _store(target: Tensor, value: Tensor, *, add: bool) -> None:
    torch.add(target, value, out=target) if add else target.copy_(value)
