"""``NetworkSpec``: a random network in a few numbers, which theory reads and which ``build`` makes a module of."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pullback._checks import check_count, check_option, input_error
from pullback._results import Shown
from pullback.modules import activation_module, initialise_weights
from pullback.theory import MeanField
from pullback.theory.checks import check_depth

WEIGHTS = ("gaussian", "orthogonal")


@dataclass(frozen=True)
class NetworkSpec(Shown):
    """A fully connected network with random weights: h^l = W^l x^{l-1} + b^l, x^l = phi(h^l) for l = 1 .. L.

    Weights are N(0, sigma_w^2 / fan_in), or sigma_w times orthonormal rows or columns; biases N(0, sigma_b^2). There is
    no read-out: the outputs are x^L.

    Args:
        activation: phi, a name of ``theory.MeanField`` or an elementwise torch function.
        sigma_w: standard deviation of the weights times sqrt(fan_in).
        sigma_b: of the biases.
        depth: L, the number of weight matrices.
        width: of every layer.
        weights: "gaussian" or "orthogonal".
        keep_prob: share of the units entering a layer (inputs too) that dropout keeps, scaled by 1 / keep_prob; its
            masks are drawn anew for every input.
        batch_norm: normalise h^l over the batch before the activation.
        residual: a of x^l = x^{l-1} + a phi(h^l); None for layers without a skip.
        inputs: width of the inputs; None for that of the layers.

    Raises:
        InputError: a depth or width below 1, an unknown option, a skip between unequal widths; see ``theory.MeanField``
            for sigmas, ``keep_prob`` and activations.

    Example:
        >>> spec = NetworkSpec("tanh", 1.3, 0.3, depth=3, width=50)
        >>> spec.theory().phase, len(spec.build()), tuple(spec.build()(torch.zeros(2, 50).double()).shape)
        ('ordered', 3, (2, 50))
    """

    activation: str | Callable[[Tensor], Tensor]
    sigma_w: float
    sigma_b: float = 0.0
    _: KW_ONLY
    depth: int
    width: int
    weights: str = "gaussian"
    keep_prob: float = 1.0
    batch_norm: bool = False
    residual: float | None = None
    inputs: int | None = None

    def __post_init__(self) -> None:
        where = "NetworkSpec"
        check_depth(where, self.depth)
        check_count(where, "width", self.width, 1)
        check_count(where, "inputs", self.input_width, 1)
        check_option(where, "weights", self.weights, WEIGHTS)
        if self.residual is not None and self.input_width != self.width:
            got = f"{self.input_width} inputs and width {self.width}"
            raise input_error(where, "inputs as wide as the layers for a skip", got, "Leave `inputs` out")
        self._mean_field()

    @property
    def input_width(self) -> int:
        """Number of inputs."""
        return self.width if self.inputs is None else self.inputs

    @property
    def needs_training_mode(self) -> bool:
        """Whether the network is itself in train mode alone: masks are drawn, batches give their own statistics."""
        return self.batch_norm or self.keep_prob < 1

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
        """The network as L modules in a row, drawn from ``seed``; the global random state is not touched.

        A layer is an ``nn.Sequential`` of those of ``dropout``, ``linear``, ``norm``, ``activation`` it has, with a
        ``Skip`` around it for residual networks. Dropout draws from torch's global generator, in train mode.
        """
        sizes = [self.input_width, *[self.width] * self.depth]
        layers = [self._layer(d, p, dtype) for d, p in pairwise(sizes)]
        model = nn.Sequential(*layers)
        initialise_weights(model, self.weights, sigma_w=self.sigma_w, sigma_b=self.sigma_b, seed=seed)
        return model

    def theory(self) -> MeanField:
        """The infinitely wide network of the same numbers.

        Raises:
            InputError: a specification with batch norm or a skip, whose lengths follow other maps.
        """
        if self.batch_norm or self.residual is not None:
            got = "batch norm" if self.batch_norm else "a skip"
            remedy = "Use theory.batch_norm_gradient_factor or theory.residual_profile"
            raise input_error("NetworkSpec.theory", "layers without batch norm or skip", got, remedy)
        return self._mean_field()

    def _mean_field(self) -> MeanField:
        return MeanField(self.activation, self.sigma_w, self.sigma_b, self.keep_prob)

    def _layer(self, inputs: int, outputs: int, dtype: torch.dtype) -> nn.Module:
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)  # torch's own draw moves the global state
        parts: list[tuple[str, nn.Module]] = [("linear", linear)]
        if self.keep_prob < 1:
            parts.insert(0, ("dropout", nn.Dropout(1 - self.keep_prob)))
        if self.batch_norm:
            parts.append(("norm", nn.BatchNorm1d(outputs, dtype=dtype)))
        parts.append(("activation", activation_module(self.activation)))
        layer = nn.Sequential(OrderedDict(parts))
        return layer if self.residual is None else Skip(layer, self.residual)


class Skip(nn.Module):
    """x + scale * branch(x)."""

    def __init__(self, branch: nn.Module, scale: float) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to (N, width)."""
        return x + self.scale * self.branch(x)
