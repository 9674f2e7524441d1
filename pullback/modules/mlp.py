"""``MLP``: the fully connected network of the training note, with the remedies it lists as options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from pullback._checks import check_option, input_error
from pullback.modules.activations import activation_module
from pullback.modules.weights import initialise_weights

NORMALISATIONS = ("none", "batch", "layer")


class MLP(nn.Module):
    """Fully connected network: flatten, then linear, normalisation, activation, dropout per hidden layer.

    Args:
        layer_sizes: widths from input to output, for example ``[3072, 128, 128, 10]``.
        activation: a name from ``modules.ACTIVATIONS`` or an elementwise function.
        normalisation: "none", "batch" or "layer", between the linear map and the activation.
        dropout: probability of dropping a hidden unit in train mode.
        residual: add each hidden layer's input to its output where the widths agree.
        init: a scheme of ``initialise_weights``; "default" is torch's own.
        sigma_w: weight scale of the schemes "gaussian" and "orthogonal".
        sigma_b: standard deviation of the biases (of every scheme but "default").
        seed: of the scheme's draw.

    Example:
        >>> import torch
        >>> model = MLP([3072, 128, 128, 128, 128, 128, 10])
        >>> sum(p.numel() for p in model.parameters())
        460682
        >>> [tuple(h.shape) for h in model.activations(torch.zeros(2, 3, 32, 32))][:2]
        [(2, 3072), (2, 128)]
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str | Callable[[Tensor], Tensor] = "relu",
        *,
        normalisation: str = "none",
        dropout: float = 0.0,
        residual: bool = False,
        init: str = "default",
        sigma_w: float = 1.0,
        sigma_b: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = list(layer_sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise input_error("MLP", "two or more positive `layer_sizes`", f"{sizes}", "Pass [inputs, …, outputs]")
        if not 0 <= dropout < 1:
            raise input_error("MLP", "`dropout` from 0 to below 1", f"{dropout}", "Pass a probability")
        check_option("MLP", "normalisation", normalisation, NORMALISATIONS)
        hidden = [
            HiddenLayer(d, p, activation, normalisation, dropout, residual=residual and d == p)
            for d, p in pairwise(sizes[:-1])
        ]
        self.layers = nn.ModuleList([*hidden, nn.Linear(sizes[-2], sizes[-1])])
        initialise_weights(self, init, sigma_w=sigma_w, sigma_b=sigma_b, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, outputs)."""
        h = x.flatten(1)
        for layer in self.layers:
            h = layer(h)
        return h

    def activations(self, x: Tensor) -> list[Tensor]:
        """h^0 (the flattened input) to h^L (the outputs), (B, width) each."""
        hidden = [x.flatten(1)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return hidden

    def layer_maps(self) -> list[nn.Module]:
        """The maps between consecutive activations, for ``pb.layer_jacobians``."""
        return [nn.Sequential(nn.Flatten(), self.layers[0]), *self.layers[1:]]


class HiddenLayer(nn.Module):
    """Linear, normalisation, activation and dropout, with a skip around them if ``residual``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: str | Callable[[Tensor], Tensor],
        normalisation: str,
        dropout: float,
        *,
        residual: bool,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        norms = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        self.norm = norms[normalisation](outputs)
        self.activation = activation_module(activation)
        self.dropout = nn.Dropout(dropout)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        h = self.dropout(self.activation(self.norm(self.linear(x))))
        return x + h if self.residual else h
