"""Models, losses and data that every kernel test runs over; a new row widens all of them.

A case is a name, a maker of (model, loss, x, y) in float64 for a number of samples, and the rules it is there for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from pullback.functional.batch import mapped
from pullback.modules import WideNetwork

Made = tuple[nn.Module, Callable[..., Tensor], object, object]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[int], Made]
    rules: frozenset[str]


def _classes(n: int, count: int) -> Tensor:
    return torch.randint(count, (n,))


def mlp(n: int) -> Made:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 5, bias=False), nn.Tanh(), nn.Linear(5, 4)
    )
    return model, nn.CrossEntropyLoss(), torch.randn(n, 3, 4), _classes(n, 4)


def one_activation(n: int) -> Made:
    """One activation module for all layers, and one layer called twice."""
    act, again = nn.SiLU(), nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(5, 6), act, again, act, again, act, nn.Linear(6, 3))
    return model, nn.CrossEntropyLoss(), torch.randn(n, 5), _classes(n, 3)


def wide_data_few_params(n: int) -> Made:
    return nn.Linear(2, 1), nn.MSELoss(), torch.randn(n, 2), torch.randn(n, 1)


def positions(n: int) -> Made:
    model = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 3))
    return model, nn.MSELoss(reduction="sum"), torch.randn(n, 2, 4, 5), torch.randn(n, 2, 4, 3)


def conv2d(n: int) -> Made:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (2, 3), padding="same", dilation=(2, 1), padding_mode="reflect"),
        nn.GroupNorm(2, 4),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.InstanceNorm2d(4, affine=True),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, nn.CrossEntropyLoss(), torch.randn(n, 4, 8, 8), _classes(n, 3)


def conv1d(n: int) -> Made:
    model = nn.Sequential(nn.Conv1d(3, 6, 3, padding=2, dilation=2, groups=3), nn.Tanh(), nn.Conv1d(6, 2, 2, stride=3))
    return model, nn.MSELoss(), torch.randn(n, 3, 11), torch.randn(n, 2, 4)


def conv3d(n: int) -> Made:
    model = nn.Sequential(nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), nn.Flatten(), nn.Linear(54, 2))
    return model, nn.CrossEntropyLoss(label_smoothing=0.1), torch.randn(n, 2, 4, 4, 4), _classes(n, 2)


class Tokens(nn.Module):
    """Embedding with padding, positions shared by all samples, norms, a head over the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.place = nn.Embedding(5, 6)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 7)
        self.rms = nn.RMSNorm(7)
        self.gain = nn.Parameter(torch.randn(7))
        self.head = nn.Linear(7, 11)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.embed(x) + self.place(torch.arange(x.shape[1])))
        return self.head(self.rms(torch.tanh(self.fc(h)) * self.gain)).transpose(1, 2)


def tokens(n: int) -> Made:
    y = torch.randint(11, (n, 5))
    y[:, 3] = -100
    return Tokens(), nn.CrossEntropyLoss(), torch.randint(11, (n, 5)), y


class Flattened(nn.Module):
    """Positions merged with samples before the layers, as Hugging Face's Conv1D does it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.addmm(self.bias, x.reshape(-1, 6), self.weight)
        return self.out(torch.tanh(h)).view(*x.shape[:2], 3)


def flattened(n: int) -> Made:
    return Flattened(), nn.MSELoss(), torch.randn(n, 5, 6), torch.randn(n, 5, 3)


class Tied(nn.Module):
    """A sparse embedding that is also the head, and a linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(5, 5)
        self.embed = nn.Embedding(7, 5, sparse=True)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.again(self.embed(x)))))).transpose(1, 2)


def tied(n: int) -> Made:
    return Tied(), nn.CrossEntropyLoss(), torch.randint(7, (n, 4)), torch.randint(7, (n, 4))


def frozen(n: int) -> Made:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 2))
    model[2].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model, nn.BCEWithLogitsLoss(), torch.randn(n, 4), torch.rand(n, 2)


class SequenceFirst(nn.Module):
    """A transformer layer with time as the first axis inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.transpose(0, 1)).mean(0))


def sequence_first(n: int) -> Made:
    return SequenceFirst(), nn.CrossEntropyLoss(), torch.randn(n, 5, 8), _classes(n, 3)


class Recurrent(nn.Module):
    """An LSTM, which torch runs in one call that takes all parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def recurrent(n: int) -> Made:
    return Recurrent(), nn.CrossEntropyLoss(), torch.randn(n, 4, 3), _classes(n, 2)


class TwoInputs(nn.Module):
    """Keyword inputs, and a parameter of the outermost module."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.shift = nn.Parameter(torch.randn(4))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) * self.right(b) + self.shift


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1)


def two_inputs(n: int) -> Made:
    return TwoInputs(), _squared, {"a": torch.randn(n, 3), "b": torch.randn(n, 2)}, torch.randn(n, 4)


def zero_gradient(n: int) -> Made:
    """One sample's loss does not depend on the parameters at all."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    x = torch.randn(n, 3)
    x[0] = 0
    return model, lambda z, y: F.mse_loss(z, y, reduction="none").sum(1), x, torch.zeros(n, 1)


class CrossAttention(nn.Module):
    """A decoder layer: queries from one input, keys and values from another; one more learned key."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.pool = nn.MultiheadAttention(4, 1, kdim=3, vdim=3, add_bias_kv=True, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        h = self.body(target, memory)
        return self.head(self.pool(h[:, :1], memory[..., :3], memory[..., 1:])[0][:, 0])


def cross_attention(n: int) -> Made:
    x = {"target": torch.randn(n, 2, 4), "memory": torch.randn(n, 3, 4)}
    return CrossAttention(), nn.CrossEntropyLoss(), x, _classes(n, 2)


class Gated(nn.Module):
    """Recurrent layers of the other kinds: bidirectional, stacked, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 2, bidirectional=True)
        self.second = nn.LSTM(4, 2, num_layers=2, bias=False)
        self.third = nn.RNN(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x.transpose(0, 1))[0])[0])[1][0]


def gated(n: int) -> Made:
    return Gated(), nn.MSELoss(reduction="sum"), torch.randn(n, 4, 3), torch.randn(n, 2)


def generator(n: int) -> Made:
    model = nn.Sequential(
        nn.ConvTranspose1d(4, 4, 3, stride=2, output_padding=1, groups=2),
        nn.PReLU(4),
        nn.Unflatten(1, (4, 1)),
        nn.ConvTranspose2d(4, 2, (1, 2), bias=False),
        nn.PReLU(),
        nn.Unflatten(2, (1, 1)),
        nn.ConvTranspose3d(2, 1, (2, 1, 2), padding=(0, 0, 1)),
        nn.Flatten(),
    )
    return model, nn.MSELoss(), torch.randn(n, 4, 2), torch.randn(n, 12)


class Bags(nn.Module):
    """Bags of tokens in all modes, one of them weighted by the data; sparse where torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.mean, self.max = (
            nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding, sparse=mode != "max")
            for mode, padding in (("sum", None), ("mean", 0), ("max", 1))
        )
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        bags = self.sum(tokens, per_sample_weights=weights), self.mean(tokens), self.max(tokens)
        return self.head(torch.tanh(bags[0] * bags[1] + bags[2]))


def bags(n: int) -> Made:
    x = {"tokens": torch.randint(7, (n, 4)), "weights": torch.rand(n, 4)}
    return Bags(), nn.CrossEntropyLoss(), x, _classes(n, 2)


class Aliased(nn.Module):
    """Modules registered under several names, one activation for all layers, and a layer that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Tanh()
        self.first = nn.Linear(4, 3)
        self.body = nn.Sequential(self.first, act, nn.Linear(3, 3), act)
        self.again = nn.ModuleList([self.body[2], act])
        self.head = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(self.again[1](self.again[0](h)), h)


def aliased(n: int) -> Made:
    return Aliased(), nn.CrossEntropyLoss(), torch.randn(n, 4), _classes(n, 2)


class Overwriting(nn.Module):
    """Writes to its input before anything else; one in-place activation for all layers."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.1, inplace=True)
        self.body = nn.Sequential(act, nn.Linear(4, 5, bias=False), act, nn.Linear(5, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.1).div_(0.5)
        return self.body(x)


def overwriting(n: int) -> Made:
    return Overwriting(), nn.CrossEntropyLoss(), torch.randn(n, 4), _classes(n, 3)


class OneDict(nn.Module):
    """One mapping as the only input, with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.left = nn.Embedding(5, 3), nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        tokens, scale = batch["tokens"]
        return self.head(torch.tanh(self.embed(tokens).sum(1) * scale + self.left(batch["numbers"])))


def one_dict(n: int) -> Made:
    x = {"tokens": (torch.randint(5, (n, 3)), torch.rand(n, 1)), "numbers": torch.randn(n, 2)}
    return OneDict(), nn.MSELoss(), x, torch.randn(n, 2)


class InPlace(nn.Module):
    """Writes over what its layers return: activations, sums, slices, masks, a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.Linear(3, 2)
        self.norm = nn.InstanceNorm1d(3, affine=True)
        self.token, self.gain = nn.Parameter(torch.randn(3)), nn.Parameter(torch.rand(3) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x), inplace=True)
        h[:, 0] = self.token
        h[:, 1:].mul_(self.gain)
        z = self.norm(self.second(h.mT))
        z += x.mT
        z.masked_fill_(x.mT.abs() > 2, 0.0)
        return self.head(torch.tanh_(z).mean(2)).mul_(0.5)


def in_place(n: int) -> Made:
    return InPlace(), nn.MSELoss(), torch.randn(n, 3, 3), torch.randn(n, 2)


def only_biases(n: int) -> Made:
    """Of convolutions, a norm and a linear layer only the biases are trained."""
    model = nn.Sequential(
        nn.Conv1d(2, 4, 2, groups=2),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.ConvTranspose1d(4, 2, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    return model, nn.MSELoss(), torch.randn(n, 2, 4), torch.randn(n, 2)


class Branches(nn.Module):
    """Two layers side by side, both run before the activations of either."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 5), nn.Linear(3, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.left(x), self.right(x)
        return self.head(torch.cat([F.softplus(u), torch.tanh(v)], 1))


def _density(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negative log-density of a normal distribution of scale 1/8, about -1.2 an output at its mean: of either sign."""
    return (32 * (targets - outputs).square() - 1.16).sum(1)


def branches(n: int) -> Made:
    return Branches(), _density, torch.randn(n, 3), torch.randn(n, 2)


def weight_normed(n: int) -> Made:
    """Weight norm of both kinds, a part of one frozen, and an activation torch differentiates only once."""
    first, last = nn.Conv1d(2, 3, 2), nn.Linear(9, 3)
    with warnings.catch_warnings():  # the older kind, kept by torch for models that have it
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(parametrizations.weight_norm(first), nn.Hardsigmoid(), nn.Flatten(), weight_norm(last))
    last.weight_g.requires_grad_(False)
    return model, nn.CrossEntropyLoss(), torch.randn(n, 2, 4), _classes(n, 3)


class Prototypes(nn.Module):
    """Distances to learned centres."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.centres = nn.Linear(4, 2), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.body(x).unsqueeze(1), self.centres.expand(len(x), -1, -1)).squeeze(1)


def prototypes(n: int) -> Made:
    return Prototypes(), nn.CrossEntropyLoss(), torch.randn(n, 4), _classes(n, 3)


def wide_network(n: int) -> Made:
    """Scaled maps before each weight, a read-out that is a buffer, a function behind it."""
    model = WideNetwork(4, [6, 5], "gelu", "softmax", bottleneck=(2, 3), outputs=3)
    return model, nn.MSELoss(), torch.randn(n, 4), torch.rand(n, 3)


CASES = tuple(
    Case(make.__name__, make, frozenset(rules.split()))
    for make, rules in (
        (mlp, "linear"),
        (one_activation, "linear"),
        (wide_data_few_params, "linear"),
        (positions, "linear layer_norm"),
        (conv2d, "conv2d batch_norm group_norm instance_norm linear"),
        (conv1d, "conv1d"),
        (conv3d, "conv3d linear"),
        (tokens, "embedding layer_norm rms_norm linear elementwise"),
        (flattened, "linear"),
        (tied, "linear embedding"),
        (frozen, "linear"),
        (sequence_first, "linear layer_norm"),
        (recurrent, "linear"),
        (cross_attention, "linear layer_norm"),
        (gated, "linear"),
        (generator, "conv_transpose1d conv_transpose2d conv_transpose3d prelu"),
        (bags, "embedding_bag linear"),
        (two_inputs, "linear"),
        (zero_gradient, "linear"),
        (aliased, "linear"),
        (weight_normed, ""),
        (prototypes, "linear"),
        (overwriting, "linear"),
        (one_dict, "linear embedding"),
        (in_place, "linear conv1d instance_norm"),
        (only_biases, "conv1d group_norm conv_transpose1d linear"),
        (branches, "linear"),
        (wide_network, "linear"),
    )
)


def build(case: Case, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Made:
    """The case's model (eval mode) and data, drawn from the seed, in one floating dtype."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, loss_fn, x, y = case.make(n)
    finally:
        torch.set_default_dtype(before)
    convert = lambda t: t.to(dtype) if t.is_floating_point() else t
    return model.to(dtype).eval(), loss_fn, mapped(convert, x), mapped(convert, y)
