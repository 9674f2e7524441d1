"""The network of a set-up, in plain torch, as a user would write it."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

import pullback as pb
from benchmarks.studies.remedies.data import LENGTH, Data
from benchmarks.studies.remedies.setups import RECURRENT, TEXTS, TRANSFORMERS, Setup
from pullback.modules import initialise_weights
from pullback.modules.activations import activation_module

SIDE = 8  # of a picture
BOTTLENECK = 8
SMALL, LARGE, OFF = 0.1, 6.0, -10.0  # planted factors of the starting weights, and the planted bias of hidden units


class Layer(nn.Module):
    """A linear map or a convolution, normalised, through an activation; with a skip where the shapes agree."""

    def __init__(self, linear: nn.Module, channels: int, setup: Setup) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation_module(setup.activation)
        self.norm = _norm(setup.normalisation, channels, isinstance(linear, nn.Conv2d))
        self.residual = setup.residual

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm(self.linear(x)))
        return x + h if self.residual and x.shape == h.shape else h


class Tokens(nn.Module):
    """Characters, or the rows of a picture, to vectors with a place."""

    def __init__(self, setup: Setup, vocabulary: int, *, places: bool) -> None:
        super().__init__()
        self.text = setup.data in TEXTS
        self.embed = nn.Embedding(vocabulary, setup.width) if self.text else nn.Linear(SIDE, setup.width)
        length = LENGTH if self.text else SIDE
        self.places = nn.Parameter(0.1 * torch.randn(length, setup.width)) if places else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x if self.text else x.unflatten(1, (SIDE, SIDE)))
        return h if self.places is None else h + self.places


class TransformerBlock(nn.Module):
    """Attention and a feed-forward part; the norm before each part, or behind its sum with the skip."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        width = setup.width
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), activation_module(setup.activation), nn.Linear(2 * width, width)
        )
        self.norms = nn.ModuleList(_norm(setup.normalisation, width, pictures=False) for _ in range(2))
        self.before, self.residual = setup.kind == "pre-norm transformer", setup.residual

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self._around(x, partial(self._attend, mask=mask), self.norms[0])
        return self._around(x, self.feed, self.norms[1])

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]

    def _around(self, x: Tensor, part: nn.Module | partial[Tensor], norm: nn.Module) -> Tensor:
        h = part(norm(x) if self.before else x)
        h = x + h if self.residual else h
        return h if self.before else norm(h)


class Transformer(nn.Module):
    """Logits (N, C) of pictures by rows, or (N, C, T) of text, as cross-entropy wants them."""

    def __init__(self, setup: Setup, outputs: int) -> None:
        super().__init__()
        self.tokens = Tokens(setup, outputs, places=True)
        self.blocks = nn.ModuleList(TransformerBlock(setup) for _ in range(setup.depth))
        self.head = nn.Linear(setup.width, outputs)
        mask = torch.full((LENGTH, LENGTH), -torch.inf).triu(1) if self.tokens.text else None
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        for block in self.blocks:
            h = block(h, self.mask)
        return self.head(h).transpose(1, 2) if self.tokens.text else self.head(h.mean(1))


class Recurrent(nn.Module):
    """As ``Transformer``, by a recurrent layer."""

    def __init__(self, setup: Setup, outputs: int) -> None:
        super().__init__()
        self.tokens = Tokens(setup, outputs, places=False)
        cell = nn.GRU if setup.kind == "GRU" else partial(nn.RNN, nonlinearity=setup.activation)
        self.recurrent = cell(setup.width, setup.width, num_layers=setup.depth, batch_first=True)
        self.head = nn.Linear(setup.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.recurrent(self.tokens(x))[0]
        return self.head(h).transpose(1, 2) if self.tokens.text else self.head(h[:, -1])


def build(setup: Setup, data: Data, seed: int) -> nn.Module:
    """The network with its starting weights; the global random state is left as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = _network(setup, data)
    start(model, setup.initialisation, seed)
    return nn.Sequential(model, nn.Softmax(1)) if setup.probabilities else model


def start(model: nn.Module, initialisation: str, seed: int) -> None:
    """Draw or change the starting weights, in place."""
    if initialisation in ("he", "xavier"):
        initialise_weights(model, initialisation, seed=seed)
    elif initialisation == "critical":
        pb.initialise(model, phase="critical", seed=seed)
    elif initialisation in ("small", "large"):
        factor = SMALL if initialisation == "small" else LARGE
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() > 1:
                    p.mul_(factor)
    elif initialisation == "dead":
        with torch.no_grad():
            for layer in (m.linear for m in model.modules() if isinstance(m, Layer)):
                layer.bias.fill_(OFF)


def _network(setup: Setup, data: Data) -> nn.Module:
    if setup.kind in TRANSFORMERS:
        return Transformer(setup, data.outputs)
    if setup.kind in RECURRENT:
        return Recurrent(setup, data.outputs)
    if "conv" in setup.kind:
        return _conv_net(setup, data.outputs)
    hidden = [setup.width] * setup.depth
    if setup.kind == "autoencoder":
        hidden = [*hidden, BOTTLENECK, *hidden]
    widths = [data.x.shape[1], *hidden]
    layers = [Layer(nn.Linear(a, b), b, setup) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], data.outputs))


def _conv_net(setup: Setup, outputs: int) -> nn.Module:
    width = setup.width
    layers: list[nn.Module] = [nn.Unflatten(1, (1, SIDE, SIDE))]
    for place in range(setup.depth):
        layers.append(Layer(nn.Conv2d(1 if place == 0 else width, width, 3, padding=1), width, setup))
        if place == 0:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * SIDE * SIDE // 4, outputs))


def _norm(name: str, channels: int, pictures: bool) -> nn.Module:
    if name == "layer":
        return nn.GroupNorm(1, channels) if pictures else nn.LayerNorm(channels)
    if name == "batch":
        return nn.BatchNorm2d(channels) if pictures else nn.BatchNorm1d(channels)
    return nn.Identity()
