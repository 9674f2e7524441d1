"""Batch norm with the statistics of one batch held fixed, so that every sample has a gradient of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pullback._checks import input_error, unsupported
from pullback.functional.batch import Batch, check_batch
from pullback.functional.model_view import evaluate
from pullback.functional.undisturbed import undisturbed
from pullback.functional.unwrap import unwrap

Statistics = tuple[Tensor, Tensor]  # mean and biased variance per channel


@contextmanager
def frozen_batch_norm(model: nn.Module, x: Batch) -> Iterator[None]:
    """Within the block, batch-norm layers normalise with the mean and variance of ``x``, as constants.

    In train mode a batch-norm layer couples the samples, and no sample has a gradient of its own. Here the outputs
    on ``x`` are those of train mode (variances are biased, as there), but the statistics do not move with a sample:
    gradients are those of that function, not of training, whose gradient passes through mean and variance.

    Args:
        model: has layers of ``nn.BatchNorm1d`` to ``3d``, in any mode. Other layers keep their modes: call
            ``model.eval()`` before to switch dropout off. Layers ``x`` does not reach are left as they are.
        x: inputs, (N, ...), as for the model. Later calls in the block may be on any data.

    Yields:
        Nothing. After the block, or an exception in it, modes and running statistics are as before; the count of
        batches and the running statistics never move.

    Raises:
        InputError: a model without batch norm, a batch with one value per channel.
        UnsupportedError: a batch-norm layer that is called several times in a forward pass: each call has
            statistics of its own.

    Cost: one forward pass on ``x`` without a graph.

    References: Ioffe and Szegedy (2015), arXiv:1502.03167.

    Example:
        >>> import pullback as pb
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
        >>> x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
        >>> with pb.frozen_batch_norm(model, x):
        ...     kernel = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y).total
        ...     loop = pb.reference.total_kernel(model, nn.CrossEntropyLoss(), x, y)
        >>> bool(torch.allclose(kernel, loop))
        True
    """
    where = "frozen_batch_norm"
    check_batch(where, x)
    if not isinstance(model, nn.Module):
        raise input_error(where, "`model` to be an nn.Module", type(model).__name__, "Pass the model itself")
    model = unwrap(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise input_error(where, "a model with batch-norm layers", "none", "Call the model without this")
    with ExitStack() as stack:
        for layer, statistics in _statistics(model, layers, x, where):
            stack.enter_context(_normalising_with(layer, statistics))
        yield


def _statistics(
    model: nn.Module, layers: dict[str, _BatchNorm], x: Batch, where: str
) -> list[tuple[_BatchNorm, Statistics]]:
    """Of every layer's input in a forward pass in which the layers before it are frozen already."""
    found: dict[str, Statistics] = {}
    with undisturbed(model), torch.no_grad(), ExitStack() as stack:
        for name, layer in layers.items():

            def freeze(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                if name in found:
                    raise unsupported(
                        where,
                        "batch-norm layers that are called once in a forward pass",
                        f"`{name}` a second time",
                        "Give each call a layer of its own, or call model.eval()",
                    )
                found[name] = _moments(layer, args[0] if args else kwargs["input"], name, where)
                stack.enter_context(_normalising_with(layer, found[name]))

            stack.callback(layer.register_forward_pre_hook(freeze, with_kwargs=True).remove)
        evaluate(model, x)
    return [(layers[name], statistics) for name, statistics in found.items()]


def _moments(layer: _BatchNorm, values: Tensor, name: str, where: str) -> Statistics:
    """Mean and biased variance over all axes but the second, in the dtype of the layer's own tensors."""
    if values.numel() <= values.shape[1]:
        raise input_error(
            where, f"more than one value per channel in layer `{name}`", f"{tuple(values.shape)}", "Pass a larger batch"
        )
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    variance, mean = torch.var_mean(wide, [a for a in range(wide.dim()) if a != 1], correction=0)
    own = next((t for t in (layer.running_mean, layer.weight) if t is not None), values)
    return mean.to(own.dtype), variance.to(own.dtype)


@contextmanager
def _normalising_with(layer: _BatchNorm, statistics: Statistics) -> Iterator[None]:
    """The layer in eval mode with these running statistics while the block lasts; its own tensors are not written."""
    before = layer.training, layer._buffers["running_mean"], layer._buffers["running_var"]
    layer.training = False
    layer._buffers["running_mean"], layer._buffers["running_var"] = statistics
    try:
        yield
    finally:
        layer.training, layer._buffers["running_mean"], layer._buffers["running_var"] = before
