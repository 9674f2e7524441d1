"""What a product of two matrices is: attention, something that mixes tokens in another way, or neither."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from pullback.measure.rank_collapse.attention_weights import Masks, are_equal, call_of, sums_to_one
from pullback.measure.rank_collapse.fused_attention import Call
from pullback.measure.rank_collapse.traces import Trace, Traces, spread

THREE = "products of queries, keys and values without rows of weights that sum to one"
OTHER_AXIS = "weights that sum to one along another axis than that of the keys"
OWN_KEYS = "weights of keys that each query has to itself"
NONE = ""


def read(left: Tensor, right: Tensor, traces: Traces, masks: Masks) -> Call | str | int | None:
    """The attention in a product (..., T, S) times (..., S, d); what it is else, in words; None if it mixes no tokens.

    A number stands for a square matrix of that size, which mixes tokens if there are as many.

    Weights may stand on either side. Their rows sum to one, they are computed, and several queries share the values;
    averages, whose weights are equal and come from masks alone, are none. What inputs enter three times is a mixture
    that cannot be read; so is the sum of such over keys before queries come in, of linear attention.
    """
    for A, V in ((left, right), (right.mT, left.mT)):
        trace = traces.of(A)
        if trace is None or trace.given or not (trace.data or trace.weighed):
            continue
        shared = traces.has_data(V) or (not trace.data and traces.of(V) is not None)
        if not shared or (rows := _rows(A, trace, traces)) is None:
            continue
        P, split = rows
        said = _no_attention(P, split, V, trace, traces)
        return call_of(P, _values(P, split, V), masks) if said is None else said
    if all(map(traces.has_data, (left, right))):
        if traces.is_pair(left) or traces.is_pair(right):
            return THREE
        return next((A.shape[-1] for A in (left, right) if A.shape[-1] == A.shape[-2] > 1), None)
    return None


def _rows(A: Tensor, trace: Trace, traces: Traces) -> tuple[Tensor, int] | None:
    """Weights of a factor as they were made, before dropout and casts, and how many of their axes are samples of A."""
    made, source = trace.as_made(A), trace.source
    turned = [(made.mT, None if source is None else source.mT)] if made.dim() > 1 else []
    for whole, before in [(made, source), *turned]:
        for split in range(whole.dim()):
            if _is_view(A, whole, split):
                P = whole if before is None else before
                root = traces.of(P) or trace
                return (_queries_last(P, split, root), split) if sums_to_one(P) else None
    before = trace.before(A)
    A = A if before is None else before
    return (A, A.dim() - 2) if sums_to_one(A) else None


def _queries_last(P: Tensor, split: int, root: Trace) -> Tensor:
    """Axes of its rows, of which einsum may have changed the order or added some, with that of the queries at the end.

    It is the last as the weights were made, or the only one of as many queries as keys.
    """
    rows = [k for k in range(split, P.dim() - 1) if P.shape[k] > 1]
    if len(rows) + split == P.dim() - 1 < 3 or not rows:
        return P
    strides = list(root.layout[1])
    if all(P.stride()[k] in strides for k in rows):
        rows.sort(key=lambda k: strides.index(P.stride()[k]))
    square = [k for k in rows if P.shape[k] == P.shape[-1]]
    if len(square) == 1:
        rows.sort(key=lambda k: k in square)
    ones = [k for k in range(split, P.dim() - 1) if P.shape[k] == 1]
    P = P.permute(*range(split), *ones, *rows, P.dim() - 1)
    return P.flatten(split, split + len(ones)) if ones else P


def _no_attention(P: Tensor, split: int, V: Tensor, trace: Trace, traces: Traces) -> str | None:
    """Why rows that sum to one are no attention that can be read: in words, empty if they are none at all."""
    made = traces.of(P)
    if not trace.pair:
        if traces.is_pair(V):
            return THREE
        if are_equal(P) and not trace.weighed:
            return NONE
        if made is not None and made.layout[1][-1] != P.stride(-1):
            return OTHER_AXIS
    if math.prod(P.shape[split:-1]) == 1 and (made.layout[0] if made else P.shape)[-2] > 1:
        return OWN_KEYS if trace.pair else NONE
    return None


def _values(P: Tensor, split: int, V: Tensor) -> Tensor:
    """Values for each of the weights (..., T, S)."""
    lead, inner = P.shape[:split], P.dim() - 2 - split
    return V.reshape(*lead, *[1] * inner, *V.shape[-2:]).expand(*P.shape[:-2], *V.shape[-2:])


def _is_view(A: Tensor, whole: Tensor, split: int) -> bool:
    """Whether A is a view of it, the first ``split`` axes being samples and the next ones rows."""
    shape = (*[math.prod(whole.shape[:split])] * (A.dim() - 2), math.prod(whole.shape[split:-1]), whole.shape[-1])
    if shape != tuple(A.shape) or (A.dim() == 2 and split):
        return False
    try:
        view = whole.view(shape)
    except RuntimeError:
        return False
    alike = all(size == 1 or a == b for size, a, b in zip(shape, view.stride(), A.stride(), strict=True))
    return alike and view.data_ptr() == A.data_ptr()


def entry_by_entry(left: Tensor, right: Tensor, axis: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What a product entry by entry, summed along an axis, is as one of matrices (..., T, S) and (..., S, d)."""
    dims = max(left.dim(), right.dim())
    axis %= dims
    sizes = [spread(x, dims) for x in (left, right)]
    both = [x.expand([1] * (dims - x.dim()) + list(x.shape)) for x in (left, right)]
    one, other = (_narrowed(x, size) for x, size in zip(both, sizes, strict=True))
    for A, V in ((one, other), (other, one)):
        rows = [k for k in range(dims) if k != axis and A.shape[k] > 1 and V.shape[k] == 1]
        columns = [k for k in range(dims) if k != axis and V.shape[k] > 1 and A.shape[k] == 1]
        if rows and columns and A.shape[axis] == V.shape[axis]:
            lead = [k for k in range(dims) if k not in (*rows, *columns, axis)]
            P = A.permute(*lead, *rows, axis, *columns).flatten(len(lead) + len(rows))
            values = V.permute(*lead, *rows, axis, *columns).flatten(len(lead) + len(rows) + 1)
            values = values.squeeze(len(lead) + len(rows) - 1)
            yield P, values.expand(*P.shape[:-2], *values.shape[-2:])


def _narrowed(x: Tensor, sizes: list[int]) -> Tensor:
    for axis, size in enumerate(sizes):
        x = x.narrow(axis, 0, 1) if size == 1 else x
    return x
