"""The networks of the cases, plain ``torch.nn``; each is built right after ``torch.manual_seed``."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Products = tuple[tuple[int, int, int], ...]  # (T, d, p) per layer, for ``kernels.gemm``

MLP_WIDTHS = (3072, 128, 128, 128, 128, 128, 10)
CONV_CHANNELS = (3, 32, 32, 32)


def mlp(activation: type[nn.Module] = nn.ReLU) -> tuple[nn.Sequential, Products]:
    """Fully connected, with biases, on flat images of 32x32x3."""
    layers: list[nn.Module] = []
    for d, p in itertools.pairwise(MLP_WIDTHS):
        layers += [nn.Linear(d, p), activation()]
    return nn.Sequential(*layers[:-1]), tuple((1, d, p) for d, p in itertools.pairwise(MLP_WIDTHS))


def conv_net() -> tuple[nn.Sequential, Products]:
    """3x3 convolutions without padding, ReLU, then one linear layer, on 32x32x3."""
    layers: list[nn.Module] = []
    products = []
    side = 32
    for c, p in itertools.pairwise(CONV_CHANNELS):
        layers += [nn.Conv2d(c, p, 3), nn.ReLU()]
        side -= 2
        products.append((side * side, 9 * c, p))
    features = side * side * CONV_CHANNELS[-1]
    products.append((1, features, 10))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10)), tuple(products)


def pooled_net() -> nn.Sequential:
    """Three 3x3 convolutions with padding, ReLU and pooling, then one linear layer on the mean; 14,666 parameters."""
    layers: list[nn.Module] = []
    for c, p in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(c, p, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Attention(nn.Module):
    """Causal self-attention. ``explicit`` writes the softmax out, for transforms that have no fused form of it."""

    def __init__(self, width: int, heads: int, *, explicit: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.explicit = heads, explicit

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in self.qkv(x).chunk(3, dim=-1))
        if self.explicit:
            hidden = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, *, explicit: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, explicit=explicit)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Of the shape of GPT-2: learned positions, norms first, the head tied to the token embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int, *, explicit: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, explicit=explicit) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ClassesSecond(nn.Module):
    """A language model whose outputs are (N, classes, positions), as ``nn.CrossEntropyLoss`` takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).transpose(1, 2)


class Residual(nn.Module):
    def __init__(self, c: int, p: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, p, 3, stride, padding=1, bias=False), nn.BatchNorm2d(p)
        self.conv2, self.norm2 = nn.Conv2d(p, p, 3, padding=1, bias=False), nn.BatchNorm2d(p)
        self.shortcut = nn.Sequential()
        if stride != 1 or c != p:
            self.shortcut = nn.Sequential(nn.Conv2d(c, p, 1, stride, bias=False), nn.BatchNorm2d(p))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class ResNet18(nn.Module):
    """For 32x32x3: a 3x3 stem and no pooling before the mean over positions."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        self.blocks = nn.Sequential(
            *(
                Residual(c if first else p, p, stride if first else 1)
                for stride, (c, p) in zip((1, 2, 2, 2), itertools.pairwise(widths), strict=True)
                for first in (True, False)
            )
        )
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


@torch.no_grad()
def settle_batch_norm(model: nn.Module, x: Tensor) -> None:
    """Set the running statistics to those of ``x``, layer by layer, and leave the model in eval mode."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
