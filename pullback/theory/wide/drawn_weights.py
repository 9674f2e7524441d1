"""Weights of a network as what they are drawn from: a variance, and whether they are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pullback._checks import check_names, check_option, input_error

Source = Literal["measured", "torch"] | Mapping[str, float]

_APART = 6  # standard errors from 0 of a mean: such numbers were not drawn around 0


@dataclass(frozen=True)
class Drawn:
    """A tensor of weights.

    Attributes:
        name: as the model names it.
        shape: of the tensor.
        variance: of its numbers, around 0.
        trained: whether it is.
        scale: that it was multiplied by in the forward pass.
        transposed: whether its axes were exchanged.
        uniform: whether they are drawn from an interval, and not from a normal distribution.
    """

    name: str
    shape: tuple[int, ...]
    variance: float
    trained: bool
    scale: float = 1.0
    transposed: bool = False
    uniform: bool = False

    def times(self, factor: float) -> Drawn:
        """Multiplied by a number."""
        return replace(self, scale=self.scale * factor)

    def turned(self) -> Drawn:
        """Axes exchanged."""
        return replace(self, transposed=not self.transposed)

    @property
    def spread(self) -> float:
        """Variance after scaling."""
        return self.scale**2 * self.variance

    @property
    def own(self) -> float:
        """Mean square of the derivative of scaled weights in the weights themselves; 0 if they are not trained."""
        return self.scale**2 * self.trained


class Reader:
    """Reads tensors of a model as weights.

    Args:
        model: whose parameters and buffers they are.
        source: "measured", the mean square of what is there; "torch", what ``nn.Linear`` and convolutions draw when
            they are made; or standard deviations by parameter name, others measured.
        where: the caller, for error messages.

    Attributes:
        dtype: that the model computes in, by the first of them.
    """

    def __init__(self, model: nn.Module, source: Source, where: str) -> None:
        self._where, self._source = where, source
        tensors = [*model.named_parameters(), *model.named_buffers()]
        if (unmade := next((name for name, tensor in tensors if nn.parameter.is_lazy(tensor)), None)) is not None:
            got = f"`{unmade}` without a shape, of a lazy layer"
            raise input_error(where, "a model whose parameters are there", got, "Call the model on one batch first")
        self._names = {id(tensor): name for name, tensor in reversed(tensors)}
        self.dtype = next((t.dtype for _, t in tensors if t.is_floating_point()), torch.get_default_dtype())
        if isinstance(source, str):
            check_option(where, "weights", source, ("measured", "torch"))
        else:
            check_names(where, "parameters in `weights`", source, [name for name, _ in tensors])
            for name, std in source.items():
                if not 0 <= std < math.inf:
                    expected = "standard deviations of at least 0 in `weights`"
                    raise input_error(where, expected, f"{std!r} for {name!r}", "Pass a number of at least 0")

    def drawn(self, tensor: Tensor, fan_in: int | None = None) -> Drawn:
        """One tensor; ``fan_in`` where it belongs to a layer that torch draws by it."""
        name = self._names.get(id(tensor), f"a constant of shape {tuple(tensor.shape)}")
        uniform = self._source == "torch" and fan_in is not None
        variance = self._variance(name, tensor, fan_in)
        return Drawn(name, tuple(tensor.shape), variance, tensor.requires_grad, uniform=uniform)

    def _variance(self, name: str, tensor: Tensor, fan_in: int | None) -> float:
        if not isinstance(self._source, str) and name in self._source:
            return float(self._source[name]) ** 2
        if self._source == "torch" and fan_in is not None:
            return 1 / (3 * fan_in)  # of the uniform numbers up to 1 / sqrt(fan_in), biases too
        values = tensor.detach().double()
        square = float(values.square().mean())
        if not math.isfinite(square):
            raise input_error(
                self._where, f"finite numbers in `{name}`", "NaN or infinity", "Initialise the model anew"
            )
        if abs(float(values.mean())) * math.sqrt(values.numel()) > _APART * math.sqrt(square):
            got = f"a mean of {float(values.mean()):.3g} and a root mean square of {math.sqrt(square):.3g}"
            remedy = "A limit is that of random weights: pass their standard deviation in weights="
            raise input_error(self._where, f"numbers around 0 in `{name}`", got, remedy)
        return square

    def gains(self, tensor: Tensor | None) -> tuple[float, float]:
        """Mean square of a normalisation's gains, and 1 if they are trained."""
        if tensor is None:
            return 1.0, 0.0
        return float(tensor.detach().double().square().mean()), float(tensor.requires_grad)
