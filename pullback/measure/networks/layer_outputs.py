"""The outputs of a model's layers with weights, caught by hooks that are gone afterwards, also after an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import input_error, unsupported
from pullback.functional.model_view import ROOT_LAYER

TABLES_AND_NORMS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm)  # their weights are no matrices that act on units


@dataclass(frozen=True)
class LayerOutput:
    """What a layer returned in one call.

    Attributes:
        name: of the module; from the second call in a pass on with its number, "encoder.query#2".
        output: as the layer returned it, before any in-place change.
        unit_axis: of ``output``: the channels of a convolution, else the last.
    """

    name: str
    output: Tensor
    unit_axis: int

    def by_unit(self, tensor: Tensor) -> Tensor:
        """``output``, or anything of its shape, as (N, units, positions)."""
        moved = tensor.movedim(self.unit_axis, 1)
        return moved.reshape(moved.shape[0], moved.shape[1], -1)


def has_matrix(module: nn.Module) -> bool:
    """Whether a module's ``weight`` is a matrix or a stack of filters: linear, convolutional, and user's layers."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not isinstance(module, TABLES_AND_NORMS)


@contextmanager
def caught(model: nn.Module, count: int, where: str, *, in_graph: bool = True) -> Iterator[list[LayerOutput]]:
    """Outputs of the layers of ``model`` that have a matrix, in the order of their calls in the block.

    What a layer hands on is a copy, so that an in-place activation does not change what was caught.

    Args:
        model: any module.
        count: N, the number of samples in the batch.
        where: the caller, for errors.
        in_graph: let every output take part in a graph, so that gradients reach it also where parameters are frozen.
    """
    outputs: list[LayerOutput] = []
    calls: dict[str, int] = {}
    handles = []
    try:
        for name, module in model.named_modules():
            if has_matrix(module):
                handles.append(
                    module.register_forward_hook(_catch(name or ROOT_LAYER, outputs, calls, count, where, in_graph))
                )
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _catch(name: str, outputs: list[LayerOutput], calls: dict[str, int], count: int, where: str, in_graph: bool) -> Any:
    def hook(module: nn.Module, _: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or output.dim() < 2 or len(output) != count:
            got = f"{tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise unsupported(
                where, f"layer outputs ({count}, …) with the samples first", f"{got} of `{name}`", "Pass a model whose "
                "layers keep the samples apart"
            )  # fmt: skip
        calls[name] = calls.get(name, 0) + 1
        label = name if calls[name] == 1 else f"{name}#{calls[name]}"
        if in_graph and not output.requires_grad and not is_transformed(output):
            output.requires_grad_()
        outputs.append(
            LayerOutput(label, output, 1 if isinstance(module, nn.modules.conv._ConvNd) else output.dim() - 1)
        )
        return output.clone()

    return hook


def is_transformed(tensor: Tensor) -> bool:
    """Whether it belongs to a transformation of torch.func, outside of which it is nothing."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def layer_names(outputs: list[LayerOutput], where: str) -> tuple[str, ...]:
    """Names of the layers; refuse a model in which there are none."""
    if not outputs:
        expected = "a model with linear or convolutional layers"
        raise input_error(where, expected, "none that was called", "Pass another model")
    return tuple(layer.name for layer in outputs)


def check_finite(names: Sequence[str], outputs: Sequence[Tensor], where: str) -> None:
    """Refuse outputs, or what was made of them, that are not finite."""
    for name, output in zip(names, outputs, strict=True):
        if not torch.isfinite(output.sum()) and not torch.isfinite(output).all():
            got = f"NaN or infinity in `{name}`"
            raise input_error(where, "finite signals", got, "Lower sigma_w or check the activation")
