"""``AttentionSpec``: a random transformer in a few numbers, of attention alone or with what is put around it."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback._checks import check_count, check_option, check_positive, input_error
from pullback._results import Shown
from pullback._rng import make_generator

Norm = Literal["none", "pre", "post"]


@dataclass(frozen=True)
class AttentionSpec(Shown):
    """L layers of self-attention with random weights: of pure attention, or with skips, MLPs and layer norms.

    Weights are N(0, 1 / fan_in), those of an MLP's first matrix N(0, 2 / fan_in); no biases. With ``norm="post"`` each
    branch ends in a layer norm, behind the sum if there is a skip; with "pre" it begins with one.

    Args:
        depth: L.
        width: D of a token.
        heads: H; divides D.
        tokens: T, of the inputs that are drawn.
        skip: x + scale * branch in place of the branch.
        mlp: a second branch in each layer: D -> 4 D -> D with a ReLU.
        norm: "none", "pre" or "post".
        scale: of the branches, with a skip: 1 / sqrt(L) keeps tokens apart at any depth.
        causal: a token attends to itself and those before.
        projections: k of Linformer's projections of keys and values; None for full attention.

    Raises:
        InputError: counts below 1, heads that do not divide the width, an unknown norm, more projections than tokens,
            projections of causal attention.

    Example:
        >>> spec = AttentionSpec(3, width=8, heads=2, tokens=5, skip=True)
        >>> len(spec.build()), spec.build()(torch.zeros(1, 5, 8).double()).shape
        (3, torch.Size([1, 5, 8]))
    """

    depth: int
    _: KW_ONLY
    width: int = 64
    heads: int = 4
    tokens: int = 16
    skip: bool = False
    mlp: bool = False
    norm: Norm = "none"
    scale: float = 1.0
    causal: bool = False
    projections: int | None = None

    def __post_init__(self) -> None:
        where = "AttentionSpec"
        for name in ("depth", "width", "heads"):
            check_count(where, name, getattr(self, name), 1)
        check_count(where, "tokens", self.tokens, 2)
        check_option(where, "norm", self.norm, get_args(Norm))
        check_positive(where, "scale", self.scale)
        if not math.isfinite(self.scale):
            raise input_error(where, "a finite `scale`", repr(self.scale), "Pass 1 / sqrt(depth), or 1")
        if self.width % self.heads:
            got = f"{self.heads} heads for {self.width}"
            raise input_error(where, "a number of heads that divides `width`", got, "Choose a divisor")
        if self.projections is not None:
            check_count(where, "projections", self.projections, 1)
            if self.projections > self.tokens:
                got = f"{self.projections} for {self.tokens}"
                raise input_error(where, "no more projections than tokens", got, "Pass fewer projections")
            if self.causal:
                remedy = "Leave one of them out"
                raise input_error(where, "projections of attention that is not causal", "causal=True", remedy)

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
        """The network as L layers in a row, drawn from ``seed``; the global random state is not touched."""
        generator = make_generator(seed)
        return nn.Sequential(*(_Layer(self, generator) for _ in range(self.depth))).to(dtype)

    def inputs(self, seed: int = 0, count: int = 1) -> Tensor:
        """Tokens of independent entries N(0, 1), (count, T, D), float64."""
        generator = make_generator(seed)
        return torch.randn(
            count, self.tokens, self.width, generator=generator, dtype=torch.float64, device=generator.device
        )


class _Layer(nn.Module):
    """One layer: a branch of attention, and one of an MLP."""

    def __init__(self, spec: AttentionSpec, generator: torch.Generator) -> None:
        super().__init__()
        d, self.heads, self.causal = spec.width, spec.heads, spec.causal
        self.skip, self.norm, self.scale = spec.skip, spec.norm, spec.scale

        def drawn(*shape: int, gain: float = 1.0) -> nn.Parameter:
            W = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
            return nn.Parameter(W * math.sqrt(gain / shape[-1]))

        self.query, self.key, self.value, self.out = (drawn(d, d) for _ in range(4))
        k = spec.projections
        self.projected = nn.ParameterList([] if k is None else [drawn(spec.heads, k, spec.tokens) for _ in "EF"])
        self.mlp = nn.ParameterList([drawn(4 * d, d, gain=2.0), drawn(d, 4 * d)] if spec.mlp else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self._around(x, self._attention)
        return self._around(x, self._mlp) if len(self.mlp) else x

    def _around(self, x: Tensor, branch: object) -> Tensor:
        assert callable(branch)
        normal = (x.shape[-1],)
        y: Tensor = branch(F.layer_norm(x, normal) if self.norm == "pre" else x)
        y = x + self.scale * y if self.skip else y
        return F.layer_norm(y, normal) if self.norm == "post" else y

    def _attention(self, x: Tensor) -> Tensor:
        Q, K, V = (F.linear(x, W).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
                   for W in (self.query, self.key, self.value))  # fmt: skip
        if len(self.projected):
            K, V = (E @ A for E, A in zip(self.projected, (K, V), strict=True))
        y = F.scaled_dot_product_attention(Q, K, V, is_causal=self.causal)
        return F.linear(y.transpose(-3, -2).flatten(-2), self.out)

    def _mlp(self, x: Tensor) -> Tensor:
        first, second = self.mlp
        return F.linear(F.relu(F.linear(x, first)), second)
