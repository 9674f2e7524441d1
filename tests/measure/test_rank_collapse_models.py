"""Rank collapse of the transformers people have: what is read, what stays as it was, what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.measure import RankCollapse, rank_collapse

N, T, D, H = 3, 5, 16, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def x() -> Tensor:
    return drawn(N, T, D)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()


def encoder(**given: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(D, H, 32, dropout=0.1, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.TransformerEncoder(layer, 3)


def tokens_of(found: RankCollapse, layer: int) -> list[float]:
    names = ("residual", "relative_residual", "cosine", "stable_rank", "effective_rank")
    return [float(getattr(found, name).value[layer]) for name in names]


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoders_with_and_without_the_fast_path(x: Tensor, batch_first: bool, norm_first: bool) -> None:
    """In eval mode torch runs a layer as one call; the same numbers come from its parts, and the same outputs."""
    model = encoder(batch_first=batch_first, norm_first=norm_first).eval()
    inputs = x if batch_first else x.transpose(0, 1)
    with torch.no_grad():
        own = model(inputs)
    found = rank_collapse(model, inputs)
    assert found.layers == ("layers.0", "layers.1", "layers.2")
    assert found.unread == {}
    assert [len(layer.heads) for layer in found.attention] == [H] * 3
    tokens: list[Tensor] = []
    handles = [layer.register_forward_hook(lambda *call: tokens.append(call[2])) for layer in model.layers]
    by_parts = rank_collapse(model, inputs)  # hooks on its modules
    for handle in handles:
        handle.remove()
    for place in range(3):
        X = tokens[place] if batch_first else tokens[place].transpose(0, 1)
        R = (X - X.mean(1, keepdim=True)).double().flatten(1).norm(dim=1)
        torch.testing.assert_close(float(found.frobenius_residual.value[place]), float(R.mean()), rtol=1e-5, atol=0)
        assert tokens_of(found, place) == pytest.approx(tokens_of(by_parts, place), rel=1e-4)
        first, second = found.attention[place], by_parts.attention[place]
        for name in ("entropy", "first_token", "effective_rank", "stable_rank", "score_gradient", "cosine"):
            torch.testing.assert_close(getattr(first, name).value, getattr(second, name).value, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(inputs), own)


def packed_rows(layer: nn.MultiheadAttention, x: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention matrices as the module itself returns them, (N, H, T, S)."""
    _, weights = layer(x, x, x, key_padding_mask=hidden, need_weights=True, average_attn_weights=False)
    assert isinstance(weights, Tensor)
    return weights.detach().double()


@pytest.mark.parametrize("hidden", [None, PADDED])
@pytest.mark.parametrize("how", ["weights", "fused", "fast"])
def test_attention_alone(x: Tensor, how: str, hidden: Tensor | None) -> None:
    """Against the weights the module returns, over tokens that are no padding."""
    model = nn.MultiheadAttention(D, H, batch_first=True).train(how != "fast")
    given = {"query": x, "key": x, "value": x, "key_padding_mask": hidden, "need_weights": how != "fused"}
    found = rank_collapse(model, given)
    assert found.layers == ("(model)",)
    P = packed_rows(model, x, hidden)
    entropies, sinks = [], []
    for n in range(N):
        kept = slice(None) if hidden is None else ~hidden[n]
        rows = P[n][:, kept][..., kept]
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]), rtol=1e-5, atol=0)
        entropies.append(torch.special.entr(rows).sum(-1).mean(-1))
        sinks.append(rows[..., 0].mean(-1))
    torch.testing.assert_close(found.attention[0].entropy.value, torch.stack(entropies).mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.attention[0].first_token.value, torch.stack(sinks).mean(0), rtol=1e-5, atol=0)
