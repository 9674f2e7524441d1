"""The modules of a network as layers: what each is, from what its weights are drawn, and which has no limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pullback._checks import UnsupportedError, unsupported
from pullback.theory.expectations.calls import CALLS
from pullback.theory.wide import convolution_settings as settings
from pullback.theory.wide.call_values import function_name
from pullback.theory.wide.drawn_weights import Drawn, Reader
from pullback.theory.wide.nonlinear import Normalised
from pullback.theory.wide.tracing import Step

DROPOUT = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
POOLS = nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d
GLOBAL = nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d
NORMS = nn.LayerNorm | nn.GroupNorm | nn.RMSNorm
REMEDY = "See limit_of for the layers that have one"


class Modules:
    """Reads layers, each once.

    Args:
        reader: of the weights.
        where: the caller, for error messages.
    """

    def __init__(self, reader: Reader, where: str) -> None:
        self.where, self._reader = where, reader
        self._kept: dict[str, Drawn] = {}
        self._gains: dict[str, Normalised] = {}

    def described(self, steps: Sequence[Step]) -> list[tuple[str, str]]:
        """(name, what it is) of every layer; refuses those that are known to have no limit, and reads all weights."""
        found = []
        for step in steps:
            if isinstance(step.tensor, nn.Parameter):
                drawn = self.drawn(step.tensor, None)
                words = f"weights {drawn.shape}, standard deviation {math.sqrt(drawn.variance):.4g}"
                found.append((step.name, words))
            elif step.module is not None:
                found.append((step.name, self._module_words(step)))
            elif step.node.op.startswith("call") and function_name(step.node) in CALLS:
                found.append((step.name, function_name(step.node)))
        return found

    def _module_words(self, step: Step) -> str:
        module, kind = step.module, type(step.module).__name__
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not isinstance(
            module, nn.modules.conv._ConvTransposeNd
        ):
            if getattr(module, "parametrizations", None):
                raise self.refused(step, f"{kind} whose weights are made of other parameters")
            weight, bias = self.of_layer(module)
            if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and weight.shape[1] == 1:
                raise self.refused(step, f"{kind} with a single channel in a group")
            fan_in = math.prod(weight.shape[1:])
            own = "" if bias is None else f", sigma_b = {math.sqrt(bias.variance):.4g}"
            return f"{kind}, {len(module.weight)} units, sigma_w = {math.sqrt(weight.variance * fan_in):.4g}{own}"
        if isinstance(module, NORMS):
            self.normalisation(step)
            return kind
        if isinstance(module, DROPOUT):
            if module.training and module.p > 0:
                raise unsupported(
                    self.where, "a model in eval mode", f"{kind} `{step.name}` in train mode", "Call model.eval()"
                )
            return kind
        if isinstance(module, POOLS | GLOBAL | nn.Flatten | nn.Identity) or settings.is_padding(module):
            return kind
        raise self.refused(step, kind)

    def refused(self, step: Step, what: str) -> UnsupportedError:
        """The error for a layer or call that has no limit, by its name."""
        name = f" `{step.name}`" if step.name else ""
        return unsupported(self.where, "layers with a limit of infinite width", f"{what}{name}", REMEDY)

    def drawn(self, tensor: Tensor, fan_in: int | None) -> Drawn:
        """A parameter or buffer as weights."""
        if not isinstance(tensor, nn.Parameter):
            return self._reader.drawn(tensor)
        key = f"{id(tensor)}"
        if key not in self._kept:
            self._kept[key] = self._reader.drawn(tensor, fan_in)
        return self._kept[key]

    def of_layer(self, module: Any) -> tuple[Drawn, Drawn | None]:
        """Weights and biases of a linear layer or convolution."""
        fan_in = math.prod(module.weight.shape[1:])
        return self.drawn(module.weight, fan_in), None if module.bias is None else self.drawn(module.bias, fan_in)

    def normalisation(self, step: Step) -> Normalised:
        """Numbers of a norm, as if it were over units at each position."""
        if step.name not in self._gains:
            module: Any = step.module
            gain, own = self._reader.gains(module.weight)
            bias = getattr(module, "bias", None)
            shift = None if bias is None else self.drawn(bias, None)
            eps = module.eps if module.eps is not None else torch.finfo(self._reader.dtype).eps
            self._gains[step.name] = Normalised(
                isinstance(module, nn.GroupNorm), not isinstance(module, nn.RMSNorm), eps, gain,
                0.0 if shift is None else shift.variance, own, 0.0 if shift is None else float(shift.trained),
            )  # fmt: skip
        return self._gains[step.name]
