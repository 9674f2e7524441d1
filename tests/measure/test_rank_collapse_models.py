"""Rank collapse of the transformers people write: what is read, where its layers are, what stays as it was."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.measure import AttentionSpec, RankCollapse, rank_collapse
from pullback.modules import LinformerAttention
from tests.measure.tokens import PADDED, D, H, N, T, drawn
from tests.thinned import thinned

pytestmark = pytest.mark.usefixtures("seeded")


def encoder(layers: int = 2, **given: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(D, H, 32, **{"dropout": 0.1} | given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.TransformerEncoder(layer, layers)


def assert_alike(one: RankCollapse, other: RankCollapse) -> None:
    for name in ("residual", "relative_residual", "cosine", "stable_rank", "effective_rank"):
        torch.testing.assert_close(getattr(one, name).value, getattr(other, name).value, rtol=1e-4, atol=1e-6)
    for first, second in zip(one.attention, other.attention, strict=True):
        for name in ("entropy", "first_token", "effective_rank", "stable_rank", "score_gradient", "cosine", "skew"):
            torch.testing.assert_close(getattr(first, name).value, getattr(second, name).value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("batch_first", "norm_first"), thinned([True, False], [True, False]))
def test_encoders_with_and_without_the_fast_path(x: Tensor, batch_first: bool, norm_first: bool) -> None:
    """In eval mode torch runs a layer as one call; the same numbers come from its parts, which hooks bring back."""
    model = encoder(batch_first=batch_first, norm_first=norm_first).eval()
    inputs = x if batch_first else x.transpose(0, 1)
    found = rank_collapse(model, inputs)
    assert found.layers == ("layers.0", "layers.1")
    assert found.unread == {}
    assert [len(layer.heads) for layer in found.attention] == [H] * 2
    assert (found.attention[0].heads[0] == "layers.0.0") is batch_first  # of the layer itself, in one call
    tokens: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda *call: tokens.append(call[2])) for layer in model.layers]
    by_parts = rank_collapse(model, inputs)
    for handle in handles:
        handle.remove()
    assert by_parts.attention[0].heads[0] == "layers.0.self_attn.0"
    assert_alike(found, by_parts)
    for place in range(2):
        X = tokens[place] if batch_first else tokens[place].transpose(0, 1)
        R = (X - X.mean(1, keepdim=True)).double().flatten(1).norm(dim=1)
        torch.testing.assert_close(found.frobenius_residual.value[place], R.mean(), rtol=1e-5, atol=0)


class Around(nn.Module):
    """Keeps what the model inside returns: no hook, which would turn the fast path off."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()

    def forward(self, src: Tensor, hidden: Tensor | None = None) -> Tensor:
        self.seen.append(self.inner(src, src_key_padding_mask=hidden))
        return self.seen[-1]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("hidden", [None, PADDED], ids=["whole", "padded"])
def test_outputs_of_the_fast_path_are_the_same_to_the_bit(x: Tensor, hidden: Tensor | None) -> None:
    """With padding torch makes nested tensors of it; what is measured is what the slow path shows."""
    model = Around(encoder(batch_first=True, dropout=0.0).eval())
    with torch.no_grad():
        own = model.inner(x, src_key_padding_mask=hidden)
    inputs = x if hidden is None else {"src": x, "hidden": hidden}
    found = rank_collapse(model, inputs)
    assert [torch.equal(each, own) for each in model.seen] == [True, True]
    assert found.attention[0].heads[0] == "inner.layers.0.0"
    assert_alike(found, rank_collapse(model.train(), inputs))


@pytest.mark.parametrize(("how", "padded"), thinned(["weights", "fused", "fast"], [False, True]))
def test_attention_alone(x: Tensor, how: str, padded: bool) -> None:
    """Against the weights the module returns, over tokens that are no padding."""
    hidden = PADDED if padded else None
    model = nn.MultiheadAttention(D, H, batch_first=True).train(how != "fast")
    given = {"query": x, "key": x, "value": x, "key_padding_mask": hidden, "need_weights": how != "fused"}
    found = rank_collapse(model, given)
    assert found.layers == ("(model)",)
    _, weights = model(x, x, x, key_padding_mask=hidden, average_attn_weights=False)
    entropies, sinks = [], []
    for n in range(N):
        kept = slice(None) if hidden is None else ~hidden[n]
        rows = weights[n].detach().double()[:, kept][..., kept]
        entropies.append(torch.special.entr(rows).sum(-1).mean(-1))
        sinks.append(rows[..., 0].mean(-1))
    torch.testing.assert_close(found.attention[0].entropy.value, torch.stack(entropies).mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.attention[0].first_token.value, torch.stack(sinks).mean(0), rtol=1e-5, atol=0)


def test_linformer_is_read_as_the_rest(x: Tensor) -> None:
    model = LinformerAttention(D, H, length=T, k=3)
    found = rank_collapse(model, (x, x, x))
    _, P = model(x, x, x, average_attn_weights=False)
    entropy = torch.special.entr(P.detach().double()).sum(-1).mean(-1).mean(0)
    torch.testing.assert_close(found.attention[0].entropy.value, entropy, rtol=1e-5, atol=0)
    singular = found.attention[0].singular_values
    assert singular is not None
    assert singular.value.shape == (H, 3)


class Mixing(nn.Module):
    """Attention as it can be written; all of these are the same numbers."""

    def __init__(self, how: str = "fused", width: int = D) -> None:
        super().__init__()
        self.project, self.how = nn.Linear(width, 3 * width), how

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixed(*self.project(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)).flatten(2)

    def mixed(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        """(N, T, H, d)."""
        scale = Q.shape[-1] ** -0.5
        if self.how == "fused":
            return F.scaled_dot_product_attention(Q, K, V).transpose(1, 2)
        if self.how == "a head at a time":
            return torch.stack([F.scaled_dot_product_attention(Q[:, h], K[:, h], V[:, h]) for h in range(2)], 2)
        if self.how == "einsum":
            P = torch.einsum("bhqd,bhkd->bhqk", Q * scale, K).softmax(-1)
            return torch.einsum("bhqk,bhkd->bqhd", P, V)
        if self.how == "values first":
            P = (Q @ K.mT * scale).softmax(-1)
            return (V.mT @ P.mT).permute(0, 3, 1, 2)
        if self.how == "samples and heads in one axis":
            P = torch.bmm(Q.flatten(0, 1) * scale, K.flatten(0, 1).mT).softmax(-1)
            return torch.bmm(P, V.flatten(0, 1)).unflatten(0, (-1, 2)).transpose(1, 2)
        P = F.dropout((Q @ K.mT * scale).softmax(-1, dtype=torch.float64).to(V), 0.5, training=True)
        return (P @ V).transpose(1, 2)


WAYS = ["fused", "a head at a time", "einsum", "values first", "samples and heads in one axis", "cast and dropped out"]


@pytest.mark.parametrize("how", WAYS)
def test_attention_is_read_however_it_is_written(x: Tensor, how: str) -> None:
    """Against the matrices of its own weights."""
    model = nn.Sequential(Mixing(how), Mixing(how))
    found = rank_collapse(model, x)
    assert found.layers == ("0", "1")
    assert found.unread == {}
    Q, K, V = model[0].project(x).detach().double().unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    P = torch.softmax(Q @ K.mT / math.sqrt(D / 2), -1)
    entropy = torch.special.entr(P).sum(-1).mean(-1).mean(0)
    torch.testing.assert_close(found.attention[0].entropy.value, entropy, rtol=1e-5, atol=0)
    outputs = P @ V
    left = (outputs - outputs.mean(-2, keepdim=True)).abs()
    sizes = [A.sum(-1).amax(-1) * A.sum(-2).amax(-1) for A in (left, outputs.abs())]
    relative = (sizes[0] / sizes[1]).sqrt().mean(0)
    torch.testing.assert_close(found.attention[0].relative_residual.value, relative, rtol=1e-5, atol=0)


class Row(nn.Module):
    """Calls its parts one after the other."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for name, part in zip("abc", parts, strict=False):
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x


class Heads(nn.Module):
    """A list of heads in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Row(Head()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([head(x) for head in self.heads], -1)


class Head(nn.Linear):
    def __init__(self) -> None:
        super().__init__(D, 3 * D // 2)

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = super().forward(x).chunk(3, -1)
        return (Q @ K.mT / math.sqrt(D / 2)).softmax(-1) @ V


class Repeated(nn.Module):
    """One layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = encoder(1).layers[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.layer(x)))


class Whole(nn.Module):
    """All in one forward method, and classes at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Mixing(), nn.Linear(D, 3)
        self.project = nn.Linear(D, 3 * D)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.first.mixed(*self.project(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)).flatten(2)
        return self.last(x.mean(1)).softmax(-1)


class Windows(Mixing):
    """Attention within windows of three tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(1, (2, T // 2)).flatten(0, 1)).view(x.shape)


class Pictures(nn.Conv2d):
    """Attention of pixels, channels first."""

    def __init__(self) -> None:
        super().__init__(4, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = super().forward(x).flatten(2).mT.chunk(3, -1)
        return x + F.scaled_dot_product_attention(Q, K, V).mT.reshape(x.shape)


class InPlace(Mixing):
    def forward(self, x: Tensor) -> Tensor:
        x += super().forward(x)
        return x


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mixing() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x=x)
        return x


def tokens() -> Tensor:
    return drawn(N, T, D)


def tokens_first() -> Tensor:
    return drawn(T, N, D)


def pair() -> nn.Module:
    return nn.Sequential(Mixing(), Mixing())


def compiled() -> nn.Module:
    found: Any = torch.compile(pair(), backend="eager")
    return found


def around(inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(D, D), inner, nn.Linear(D, 5))


def decoder() -> nn.Module:
    return nn.Transformer(D, H, 2, 1, 32, batch_first=True)


DECODED = ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0")
STACKED, TWO = ("layers.0", "layers.1"), ("0", "1")
# name: model, inputs, layers, samples
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], tuple[str, ...], int]] = {
    "stack": (lambda: around(encoder(3)), tokens_first, tuple(f"1.layers.{k}" for k in range(3)), N),
    "one layer": (lambda: around(encoder(1)), tokens_first, ("1.layers.0",), N),
    "attributes": (lambda: Row(Mixing(), nn.Linear(D, D), Mixing()), tokens, ("a", "c"), N),
    "heads": (lambda: nn.Sequential(nn.Linear(D, D), Heads(), Heads()), tokens, ("1", "2"), N),
    "repeated": (Repeated, tokens_first, ("layer", "layer#2", "layer#3"), N),
    "whole": (Whole, tokens, ("(model)", "(model)#2"), N),
    "windows": (lambda: nn.Sequential(Windows(), Windows()), tokens, TWO, N),
    "pictures": (lambda: nn.Sequential(Pictures(), Pictures()), lambda: drawn(2, 4, 3, 2), TWO, 2),
    "no batch": (lambda: encoder(batch_first=True), lambda: drawn(T, D), STACKED, 1),
    "no batch, fast": (lambda: encoder(batch_first=True).eval(), lambda: drawn(T, D), STACKED, 1),
    "as many samples as tokens": (encoder, lambda: drawn(4, 4, D), STACKED, 4),
    "by keyword": (ByKeyword, tokens, ("blocks.0", "blocks.1"), N),
    "in place": (lambda: nn.Sequential(InPlace(), Mixing()), tokens, TWO, N),
    "decoder": (decoder, lambda: (tokens(), drawn(N, 4, D)), DECODED, N),
    "parallel": (lambda: nn.DataParallel(pair()), tokens, TWO, N),
    "compiled": (compiled, tokens, TWO, N),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in MODELS]
)
def test_layers_are_the_blocks(name: str) -> None:
    make, inputs, layers, samples = MODELS[name]
    model = make()
    found = rank_collapse(model, inputs(), spectrum=False)
    assert found.layers == layers
    assert found.unread == {}
    assert found.num_inputs == samples
    assert len(found.attention) == len(found.residual) == len(layers)
    assert (found.start is None) is (name == "whole")
    if found.start is not None and name in ("attributes", "in place", "by keyword", "windows"):
        X = drawn(N, T, D).double()  # before anything was written to it
        known = (X - X.mean(1, keepdim=True)).flatten(1).norm(dim=1).mean()
        torch.testing.assert_close(found.start.frobenius_residual.value, known.reshape(1), rtol=1e-5, atol=0)


def test_heads_of_all_calls_of_a_layer_stand_side_by_side() -> None:
    make, inputs, *_ = MODELS["decoder"]
    found = rank_collapse(make(), inputs(), spectrum=False)
    names = [f"decoder.layers.0.{kind}.{head}" for kind in ("self_attn", "multihead_attn") for head in range(H)]
    assert found.attention[2].heads == tuple(names)
    single = rank_collapse(nn.Sequential(Heads(), Heads()), drawn(N, T, D), spectrum=False)
    assert single.attention[1].heads == ("1.heads.0.a.0", "1.heads.1.a.0")


def test_specifications_as_models_give_the_same(x: Tensor) -> None:
    spec = AttentionSpec(2, width=D, heads=H, tokens=T, skip=True, norm="pre", mlp=True)
    assert_alike(rank_collapse(spec, x, seeds=1), rank_collapse(spec.build(0), x.double()))


def test_a_line_a_layer() -> None:
    """What is measured with its error, layers whose tokens are one, and what was not read."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = rank_collapse(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(3, 5, 8))
    first, second = str(found).split("\n")
    cosine = found.cosine
    assert first.startswith("layers.0: relative residual ")
    assert f"cosine of tokens {float(cosine.value[0]):.3g} +- {float(cosine.stderr[0]):.1g}, effective rank" in first
    assert "entropy of 2 heads over its largest" in second
    one = replace(found, relative_residual=replace(found.relative_residual, value=torch.tensor([0.5, 0.0])))
    lines = str(replace(one, unread={"block": "its scores are its own code"})).split("\n")
    assert [line.endswith("; its tokens are one") for line in lines] == [False, True, False]
    assert lines[2] == "block: not read, its scores are its own code"
    assert "+-" not in str(rank_collapse(nn.TransformerEncoder(layer, 2), torch.randn(1, 5, 8)))
