"""Derivatives of models: what torch runs in one call and cannot differentiate, or wrongly, is replaced or refused.

Torch has operations whose backward pass cannot be differentiated (fused attention, bags of embeddings, distances,
margin losses, CTC), whose second derivative is another number (weight norm; determinants of matrices with equal
singular values), that have no forward derivative (layers' fast paths) or a wrong one in nested passes (layer norm),
and whose derivative is wrong under vmap (``cdist``). In ``differentiable`` they are made of elementary operations.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from pullback._checks import unsupported
from pullback.functional.elementary import ALGEBRA, CONFIDENT, LAYERS, LOSSES, NORMS
from pullback.functional.plain_calls import PlainCalls, plain_arguments

# nodes of autograd's graph with a wrong derivative; from code no mode sees (TorchScript), or from before the block
UNRELIABLE = {
    "WeightNormInterfaceBackward0": "torch._weight_norm, whose second derivative is another number",
    "CdistBackward0": "torch.cdist, whose derivative is another number under vmap",
}
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


@contextmanager
def differentiable(*, every_order: bool = False) -> Iterator[None]:
    """In the block torch's functions have right second derivatives and forward derivatives, or are refused.

    Args:
        every_order: also where derivatives are nested further: forward in forward, or three times.
    """
    with plain_attention(), elementary(every_order=every_order):
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by torch's plain formula alone; entering takes half as long as a small model's product of curvature."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def elementary(*, every_order: bool = False) -> Iterator[None]:
    """The replacements alone: values as ``differentiable`` has them, attention as the model runs it by itself."""
    with _Elementary(_table(every_order)):
        yield


@cache
def _table(every_order: bool) -> dict[Any, Callable[..., Any] | None]:
    tables = (LAYERS, LOSSES, CONFIDENT, ALGEBRA, dict.fromkeys(RECURRENT), NORMS if every_order else {})
    return {key: value for table in tables for key, value in table.items()}


class _Elementary(PlainCalls):
    """Plain calls, of which torch's functions go to their replacements, and recurrent layers past cuDNN."""

    def __init__(self, table: dict[Any, Callable[..., Any] | None]) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = plain_arguments(func, args, kwargs or {})
        key = getattr(func, "overloadpacket", func)
        if key not in self.table:
            return func(*args, **kwargs)
        if (replacement := self.table[key]) is not None:
            return replacement(*args, **kwargs)
        with torch.backends.cudnn.flags(enabled=False):
            return func(*args, **kwargs)


@contextmanager
def forward_derivatives(where: str, remedy: str = "Pass mode='reverse'") -> Iterator[None]:
    """Say in this package's words that some operation has no forward derivative."""
    try:
        with warnings.catch_warnings():  # torch's own tables for forward derivatives, on first use
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            yield
    except RuntimeError as error:
        if lacks_forward_derivative(error):
            got = first_line(error)
            raise unsupported(where, "operations with a forward derivative", got, remedy) from error
        if lacks_derivative(error):
            raise no_second_derivative(where, error) from error
        raise


def lacks_forward_derivative(error: BaseException) -> bool:
    """Whether torch says of an operation that it has no forward derivative."""
    text = str(error)
    return any(part in text for part in ("forward AD", "forward mode", "jvp", "aten::_efficientzerotensor"))


def lacks_derivative(error: Exception) -> bool:
    """Whether torch says of an operation that it cannot be differentiated (again)."""
    text = str(error)
    return "once_differentiable" in text or ("derivative for" in text and "not implemented" in text)


def no_second_derivative(where: str, error: Exception) -> Exception:
    """The error for an operation that torch can differentiate only once."""
    return unsupported(
        where,
        "operations that torch can differentiate twice",
        first_line(error),
        "Write that operation with elementary ones, or leave its layer out with `params`",
    )


def first_line(error: Exception) -> str:
    """What torch says, without its closing dot."""
    return str(error).partition("\n")[0].rstrip(".")


def refuse_unreliable(values: Iterable[Tensor], where: str) -> None:
    """Refuse graphs with operations whose further derivatives are wrong; one look at every node."""
    for node in nodes(values):
        if (found := UNRELIABLE.get(node.name())) is not None:
            raise unsupported(
                where,
                "operations that torch differentiates rightly",
                f"{found}, called from compiled or scripted code",
                "Pass the model as it was before torch.jit",
            )


@contextmanager
def open_functions(values: Iterable[Tensor], where: str) -> Iterator[None]:
    """Refuse functions of a user's own whose gradient, taken in the block, does not show what it depends on.

    Such a backward pass is ``once_differentiable``, or returns tensors that were cut off from the ones passed back. The
    derivative of the gradient lacks that part then, without an error.
    """
    hidden: list[str] = []

    def watch(node: Any) -> Callable[[Any, Any], None]:
        def see(given: Any, returned: Any) -> None:
            depends = [t.requires_grad for t in given if t is not None]
            if any(t is not None and t.requires_grad for t in returned) and depends and not any(depends):
                hidden.append(node.name())

        return see

    own = [node for node in nodes(values) if isinstance(node, BackwardCFunction)]
    hidden += [node.name() for node in own if _once(type(node)._forward_cls.backward)]  # type: ignore[attr-defined]
    handles = [] if hidden else [node.register_hook(watch(node)) for node in own]
    try:
        if not hidden:
            yield
    finally:
        for handle in handles:
            handle.remove()
    if hidden:
        raise no_second_derivative(where, RuntimeError(f"{hidden[0]}, a backward pass that cannot be differentiated"))


def _once(backward: Any) -> bool:
    """Whether torch's ``once_differentiable`` is around it."""
    return (
        hasattr(backward, "__wrapped__") and backward.__code__.co_filename == once_differentiable.__code__.co_filename
    )


def nodes(values: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the values' graph, once."""
    waiting: list[Any] = [value.grad_fn for value in values if value.grad_fn is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions if following is not None]


def refuse_not_finite(found: Tensor, given: Tensor, where: str) -> None:
    """Refuse products that are nan or infinite though the vectors are not: a derivative that does not exist there."""
    if bool(torch.isfinite(found.sum())) or bool(torch.isfinite(found).all()) or not bool(torch.isfinite(given).all()):
        return
    raise unsupported(
        where,
        "derivatives that are finite numbers",
        "nan or infinity in a product with finite vectors",
        "Look for the norm of a zero vector, the root of zero, equal singular values or an overflow in the model",
    )


@cache
def say_by_rows(where: str, reason: str) -> None:
    """Once a process, kind of operator and reason."""
    logging.getLogger("pullback").warning(
        "%s: %s; products J v are made row by row, one backward pass for every number the model returns.",
        where,
        reason,
    )


@cache
def say_plain_attention(where: str) -> None:
    """Once a process and kind of operator."""
    logging.getLogger("pullback").warning(
        "%s: fused attention has no second derivative; products use torch's plain attention (SDPBackend.MATH), "
        "and the backend is restored after each of them.",
        where,
    )
