"""Which activation follows which layer: by the calls of a forward pass, with an example of the inputs and without."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pullback as pb
from pullback.modules.followers import followed
from pullback.theory.expectations.calls import name_of
from tests.cases import CASES, Case, build

X = torch.linspace(-2, 2, 24).reshape(4, 6)


def found(model: nn.Module, x: Any = None, activation: Any = None) -> dict[str, str | None]:
    """Layer -> activation, with nothing of the model changed."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    held = {name: set(vars(module)) for name, module in model.named_modules()}
    hooks = [[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in model.modules()]
    random = torch.get_rng_state()
    table, _ = followed(model, activation, x, "initialise")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert held == {name: set(vars(module)) for name, module in model.named_modules()}
    assert torch.equal(random, torch.get_rng_state())
    assert model.training
    now = [[*module._forward_hooks.values(), *module._forward_pre_hooks.values()] for module in model.modules()]
    assert now == hooks
    return {each.name: None if each.follows is None else name_of(each.follows) for each in table}


class Chain(nn.Module):
    """Three layers, held in the reverse order, with a function between them."""

    def __init__(self, phi: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.phi = phi
        self.out, self.second, self.first = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.phi(self.second(self.phi(self.first(x)))))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sin": lambda h: h.sin(),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu(tanh)": lambda h: F.gelu(h, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "leaky_relu(0.3)": lambda h: F.leaky_relu(h, 0.3),
    "leaky_relu(0.25)": lambda h: F.prelu(h, torch.full((6,), 0.25)),
    "hard_tanh": F.hardtanh,
    "elu(0.5)": lambda h: F.elu(h, alpha=0.5),
    "softplus(2.0)": lambda h: F.softplus(h, 2.0),
    "clamp(0)": lambda h: h.clamp(min=0),
    "relu of tanh": lambda h: F.relu(torch.tanh(h)),
    "pow(2) of relu": lambda h: F.relu(h) ** 2,
}
SPELLED: dict[str, Callable[[Tensor], Tensor]] = {  # ReLU, with other things about it
    "in place": lambda h: h.relu_(),
    "by an option": lambda h: F.relu(h, inplace=True),
    "behind layer norm": lambda h: F.relu(F.layer_norm(h, (6,))),
    "behind a norm written out": lambda h: F.relu(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "dropped": lambda h: F.dropout(F.relu(F.dropout(h, 0.5, training=True))),
    "turned": lambda h: F.relu(h.unsqueeze(1).flip(2)).squeeze(1),
    "scaled": lambda h: 0.5 * F.relu(2 * h + 1) - 1,
    "in two halves": lambda h: torch.cat([F.relu(h[:, :3]), F.relu(-h[:, 3:])], 1),
    "pooled": lambda h: F.relu(F.avg_pool1d(h, 3, 1, 1)),
}
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda h: h * torch.sigmoid(h),
    "gelu": lambda h: 0.5 * h * (1 + torch.erf(h / 2**0.5)),
    "gelu by tanh": lambda h: 0.5 * h * (1 + torch.tanh(0.8 * (h + 0.04 * h.pow(3)))),
    "mish": lambda h: h * torch.tanh(F.softplus(h)),
    "hard swish": lambda h: h * F.relu6(h + 3) / 6,
    "leaky by where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "relu by a mask": lambda h: h * (h > 0),
    "abs": lambda h: F.relu(h) + F.relu(-h),
    "a skip around it": lambda h: h + F.relu(h),
}
OPEN: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda h: h**2,
    "maximum": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "abs": torch.abs,
    "gate": lambda h: F.glu(torch.cat([h, h], 1), 1),
}


@pytest.mark.parametrize("x", [None, X], ids=["code", "example"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, x: Tensor | None) -> None:
    """Whatever the order in which the layers are held."""
    assert found(Chain(FUNCTIONS[name]), x) == {"first": name, "second": name, "out": None}


@pytest.mark.parametrize("x", [None, X], ids=["code", "example"])
@pytest.mark.parametrize("name", SPELLED)
def test_relu_in_company(name: str, x: Tensor | None) -> None:
    assert found(Chain(SPELLED[name]), x) == {"first": "relu", "second": "relu", "out": None}


@pytest.mark.parametrize("x", [None, X], ids=["code", "example"])
@pytest.mark.parametrize(
    ("phi", "why"),
    [
        *((phi, "its own activation combined with it or with another, as in") for phi in COMBINED.values()),
        *((phi, "a function of its outputs that may be the activation or not") for phi in OPEN.values()),
        (lambda h: torch.cat([torch.tanh(h[:, :3]), F.relu(h[:, 3:])], 1), "both tanh and relu"),
        (lambda h: F.prelu(h, torch.linspace(0, 1, 6)), "prelu with settings that are tensors"),
    ],
)
def test_what_is_not_one_function_is_refused(phi: Callable[[Tensor], Tensor], why: str, x: Tensor | None) -> None:
    model = Chain(phi)
    with pytest.raises(pb.InputError, match=f"one activation behind layer `first`, got {why}.*Pass activation= with"):
        found(model, x)
    assert found(model, x, "gelu") == {"first": "gelu", "second": "gelu", "out": None}


class Held(nn.Module):
    """Modules held in another order than they are called in."""

    def __init__(self, names: str, *modules: nn.Module) -> None:
        super().__init__()
        self.order = names.split()
        self.parts = nn.ModuleDict(dict(zip(self.order, modules, strict=True)) if modules else {})

    def forward(self, x: Tensor) -> Tensor:
        for name in sorted(self.order):
            x = self.parts[name](x)
        return x


def linear() -> nn.Linear:
    return nn.Linear(6, 6)


@pytest.mark.parametrize("x", [None, X], ids=["code", "example"])
def test_modules(x: Tensor | None) -> None:
    shared = nn.ReLU()
    layers = [module for _ in range(3) for module in (linear(), shared)]
    assert set(found(nn.Sequential(*layers), x).values()) == {"relu"}
    first = Held("b d a c e", nn.Tanh(), nn.ReLU(), linear(), linear(), linear())
    assert found(first, x) == {"parts.a": "tanh", "parts.c": "relu", "parts.e": None}
    last = Held("e c a d b", linear(), linear(), linear(), nn.ReLU(), nn.Tanh())
    assert found(last, x) == {"parts.a": "tanh", "parts.c": "relu", "parts.e": None}
    repeated = linear()
    assert found(nn.Sequential(repeated, shared, repeated, shared, repeated), x) == {"0": "relu"}
    with pytest.raises(pb.InputError, match="one activation behind layer `0`, got both relu and tanh"):
        found(nn.Sequential(repeated, shared, repeated, nn.Tanh()), x)
    assert found(nn.Sequential(linear(), nn.Identity(), nn.Dropout(), nn.PReLU(), nn.Softmax(1), linear()), x) == {
        "0": "leaky_relu(0.25)",
        "5": None,
    }


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean()


@pytest.mark.parametrize("x", [None, X], ids=["code", "example"])
def test_a_module_made_of_several_calls_is_one_activation(x: Tensor | None) -> None:
    """If it does to every number what it does to that number alone."""
    model = nn.Sequential(linear(), Swish(), linear(), Centred(), nn.Tanh(), linear())
    assert found(model, x) == {"0": "Swish", "2": "tanh", "5": None}
    pb.initialise(model, x=x)
    assert float(model[0].bias.detach().std()) > 0.3  # SiLU needs biases
    assert found(pb.modules.MLP([6, 6, 6, 2], Swish().forward), x)["layers.0.linear"] == "forward"


class Branches(nn.Module):
    """Two layers that meet before one activation, and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = linear(), linear(), linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x) + self.b(x))
        return h + F.silu(self.c(h)) * self.d(h)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.act = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.ReLU(inplace=True)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.stem(x))
        for k in (0, 2):
            branch = self.norms[k + 1](self.convs[k + 1](self.act(self.norms[k](self.convs[k](h)))))
            branch += h
            h = self.act(branch)
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Decoder(nn.Module):
    """A block of a language model, which looks at a size: code alone does not show its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8)
        self.qkv, self.mix, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        N, T, D = h.shape
        if T > 9:
            raise ValueError(T)
        q, k, v = self.qkv(self.norm(h)).view(N, T, 3, D).unbind(2)
        h = h + self.mix(torch.softmax(q @ k.transpose(1, 2) / D**0.5, -1) @ v)
        return self.head(h + self.down(F.gelu(self.up(self.norm(h)))))


def test_branches_skips_and_attention() -> None:
    for x in (None, X):
        assert found(Branches(), x) == {"a": "tanh", "b": "tanh", "c": "silu", "d": None}
    names = ["stem", *(f"convs.{k}" for k in range(4))]
    for x in (None, torch.randn(2, 3, 6, 6)):
        assert found(Residual(), x) == dict.fromkeys(names, "relu") | {"head": None}
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = {"qkv": None, "mix": None, "up": "gelu", "down": None, "head": None}
    assert found(Decoder(), tokens) == expected
    assert found(Decoder(), {"tokens": tokens}) == expected
    with pytest.raises(
        pb.InputError, match=r"code alone shows, got TraceError \(symbolically .* Pass an example of it"
    ):
        found(Decoder())
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    expected = {"self_attn.out_proj": None, "linear1": "gelu", "linear2": None}
    assert found(encoder, torch.randn(2, 5, 8)) == expected


class Optional(Chain):
    """Decides by arguments that are left out."""

    def forward(self, x: Tensor, mask: Tensor | None = None, twice: bool = False, scale: float = 1.0) -> Tensor:
        h = super().forward(x if mask is None else x * mask)
        return super().forward(h) if twice or scale > 2 else h


def test_arguments_that_are_left_out_have_their_defaults() -> None:
    for x in (None, X, {"x": X, "twice": False}):
        assert found(Optional(F.relu), x) == {"first": "relu", "second": "relu", "out": None}
    assert found(Optional(F.relu), {"x": X, "mask": X, "twice": True})["first"] == "relu"


class Outside(nn.Module):
    """An activation computed where torch sees nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).numpy()
        return self.out(torch.from_numpy(h * (h > 0)))


def test_an_activation_that_shows_in_no_call() -> None:
    with pytest.raises(pb.InputError, match="activations that are calls of torch, got tensors made by code that shows"):
        found(Outside(), X)
    assert found(Outside(), X, "relu") == {"first": "relu", "out": None}


def test_computed_weights_belong_to_their_layer() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(linear()), nn.Tanh(), nn.utils.parametrizations.spectral_norm(linear()),
        nn.ReLU(), linear(),
    )  # fmt: skip
    for x in (None, X):
        assert found(model, x) == {"0": "tanh", "2": "relu", "4": None}


class Noting(Chain):
    """Keeps things of its own, and has a hook."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        self.last = super().forward(x.sub_(1))
        return self.last


def test_symbols_meet_a_copy() -> None:
    """Nothing of what the code keeps is left in the model, and no hook of the user's sees a symbol."""
    model, hooked = Noting(F.relu), list[Any]()
    model.seen = []
    model.first.register_forward_hook(lambda *_: hooked.append(1))
    pb.initialise(model)
    assert (model.seen, hooked, hasattr(model, "last")) == ([], [], False)
    x = X.clone()
    pb.initialise(model, x=x)
    assert torch.equal(x, X)
    assert len(model.first._forward_hooks) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_model_of_the_suite_has_an_order_or_an_error(case: Case) -> None:
    """With an example and without one: the same activations, or a refusal that says what to do, and no trace."""
    model, _, x, _ = build(case, 2)
    model.train()
    answers = []
    for given in (x, None):
        with contextlib.suppress(pb.InputError):
            answers.append(found(model, given))
    assert all(answer == answers[0] for answer in answers)


def test_layers_that_cannot_be_drawn() -> None:
    aux = Chain(F.relu)
    aux.extra = linear()
    tied = nn.Sequential(linear(), nn.ReLU(), linear(), nn.Tanh())
    tied[2].weight = tied[0].weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old = nn.utils.weight_norm(linear())
    gelu = nn.Sequential(nn.Linear(6, 6, bias=False), nn.GELU(), linear())
    for model, message in (
        (aux, "a forward pass through every layer, got `extra` without a call. Pass an x="),
        (tied, "one scale for each weight, got `0` and `2`, which share it"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(linear()), nn.ReLU()), "got a weight that is computed fr"),
        (nn.Sequential(old, nn.ReLU()), "a weight in layer `0` that can be drawn, got a weight that is computed from"),
        (nn.Sequential(nn.LazyLinear(3), nn.ReLU()), "that can be drawn, got one without a shape. Run one batch"),
        (nn.Sequential(nn.Linear(3, 3, device="meta"), nn.ReLU()), "can be drawn, got one on the meta device. Move"),
        (nn.Sequential(nn.LSTM(6, 6), linear()), "layers for which a critical point is known, got LSTM `0`"),
        (nn.Sequential(nn.Bilinear(6, 6, 6), linear()), "is known, got Bilinear `0`. Initialise the parts beside"),
        (gelu, "biases in layer `0`, since gelu is critical with sigma_b = 0.572, got bias=False. Give the"),
    ):
        before = {name: p.clone() for name, p in model.named_parameters() if not nn.parameter.is_lazy(p)}
        with pytest.raises(pb.PullbackError, match=f"initialise: expected .*{message}"):
            pb.initialise(model)
        after = dict(model.named_parameters())
        assert all(p.is_meta or torch.equal(p, after[name]) for name, p in before.items())
    pb.initialise(nn.Sequential(gelu[0], nn.LayerNorm(6), gelu[1], gelu[2]))  # the normalisation keeps the lengths
    linked = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU())
    linked[2].weight = linked[0].weight
    pb.initialise(linked)
    assert float(linked[0].weight.detach().square().mean()) == pytest.approx(2 / 6, rel=0.7)
