"""The networks faults are planted in, by architecture: a shallow one that trains well, and a deep chain."""

from __future__ import annotations

import string
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from pullback.modules import MLP, initialise_weights
from pullback.modules.activations import activation_module

CONTEXT = 32  # characters the transformer sees
ROWS, CLASSES = 8, 10  # of a picture of a digit
WIDTH = 32


class Transformer(nn.Module):
    """Two blocks over characters (N, T), with an output for every position, or over rows of pictures, with one in all.

    Args:
        rows: of pictures (N, 64) in place of characters.
        activation: of the feed-forward parts.
        depth: their hidden layers.
        skip: around the feed-forward parts; attention keeps its own.
        normalised: a layer norm before every part.
        batch_norm: a hidden layer with batch norm before the outputs, of rows only.
    """

    def __init__(
        self,
        *,
        rows: bool = False,
        activation: str = "gelu",
        depth: int = 1,
        skip: bool = True,
        normalised: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.rows, self.skip = rows, skip
        vocabulary, length = len(string.printable), ROWS if rows else CONTEXT
        self.tokens = nn.Linear(ROWS, WIDTH) if rows else nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Parameter(0.1 * torch.randn(length, WIDTH))
        norm: Callable[[], nn.Module] = (lambda: nn.LayerNorm(WIDTH)) if normalised else nn.Identity
        self.norms = nn.ModuleList(norm() for _ in range(4))
        self.attention = nn.ModuleList(nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.feed = nn.ModuleList(
            nn.Sequential(*chain([WIDTH, *[64] * depth], activation), nn.Linear(64, WIDTH)) for _ in range(2)
        )
        self.head = head(WIDTH, CLASSES) if batch_norm else nn.Linear(WIDTH, CLASSES if rows else vocabulary)
        self.register_buffer("mask", None if rows else torch.full((length, length), -torch.inf).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """To (N, T, vocabulary), or (N, classes)."""
        h = self.tokens(x.unflatten(1, (ROWS, ROWS)) if self.rows else x) + self.positions
        for place, (attention, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            z = self.norms[2 * place](h)
            h = h + attention(z, z, z, attn_mask=self.mask, need_weights=False)[0]
            change = feed(self.norms[2 * place + 1](h))
            h = h + change if self.skip else change
        return self.head(h.mean(1) if self.rows else h)


def chain(widths: list[int], activation: str) -> list[nn.Module]:
    """Linear layers, each with its activation."""
    layers = [[nn.Linear(a, b), activation_module(activation)] for a, b in pairwise(widths)]
    return [module for pair in layers for module in pair]


def head(inputs: int, outputs: int) -> nn.Sequential:
    """Batch norm where each sample counts once."""
    return nn.Sequential(
        nn.Linear(inputs, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, outputs)
    )  # fmt: skip


def conv_net(*, batch_norm: bool = False) -> nn.Sequential:
    """Two convolutions over (N, 1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), head(256, CLASSES) if batch_norm else nn.Linear(256, CLASSES),
    )  # fmt: skip


def deep(kind: str, activation: str, sigma_w: float, depth: int, seed: int) -> nn.Module:
    """As many layers one behind the other, without normalisation, drawn with variance sigma_w^2 / fan-in."""
    torch.manual_seed(seed)
    if kind == "mlp":
        return MLP([64, *[64] * depth, CLASSES], activation, init="gaussian", sigma_w=sigma_w, seed=seed)
    if kind == "conv":
        layers = [nn.Conv2d(1 if place == 0 else 16, 16, 3, padding=1) for place in range(depth)]
        parts = [each for layer in layers for each in (layer, activation_module(activation))]
        model: nn.Module = nn.Sequential(nn.AvgPool2d(2), *parts, nn.Flatten(), nn.Linear(256, CLASSES))
    else:
        halves = -(-depth // 2)
        model = Transformer(rows=kind == "rows", activation=activation, depth=halves, skip=False, normalised=False)
    return initialise_weights(model, "gaussian", sigma_w=sigma_w, seed=seed)


def with_batch_norm(kind: str, seed: int) -> nn.Module:
    """The shallow network with batch norm in a hidden layer, where a channel has one value a sample."""
    torch.manual_seed(seed)
    if kind == "mlp":
        return MLP([64, 64, 64, CLASSES], init="gaussian", sigma_w=1.4, seed=seed, normalisation="batch")
    return conv_net(batch_norm=True) if kind == "conv" else Transformer(rows=True, batch_norm=True)
