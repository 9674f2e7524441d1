"""Attention through projections of the sequence (S1-73): against full attention, by hand, and as a module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.modules import LinformerAttention

F64 = torch.float64
SHARES = ["none", "heads", "key_value", "layers"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=F64)


def made(length: int = 7, k: int = 3, share: Any = "none", **options: Any) -> LinformerAttention:
    torch.manual_seed(0)
    return LinformerAttention(8, 2, length, k, share, **options).double()


def with_identity(attention: LinformerAttention) -> LinformerAttention:
    with torch.no_grad():
        for projection in {attention.projection_keys, attention.projection_values}:
            projection.copy_(torch.eye(attention.length, dtype=F64).expand_as(projection))
    return attention


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_all_mixtures_are_full_attention(share: Any, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(1)
    full = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).double().eval()
    found = with_identity(LinformerAttention.from_attention(full, 7, 7, share))
    assert not found.training
    query, keys = drawn(3, 5, 8), drawn(3, 7, 8)
    if not batch_first:
        query, keys = query.transpose(0, 1), keys.transpose(0, 1)
    for average in (True, False):
        y, P = found(query, keys, keys, average_attn_weights=average)
        expected, weights = full(query, keys, keys, average_attn_weights=average)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(P, weights, rtol=1e-10, atol=1e-12)
    assert found(query, keys, keys, need_weights=False)[1] is None


@pytest.mark.parametrize("share", SHARES)
def test_by_hand(share: Any) -> None:
    """Head by head: softmax(Q (E K)^T / sqrt(d_k)) (F V)."""
    attention = made(share=share)
    x = drawn(2, 6, 8)  # shorter than the length
    y, P = attention(x, x, x, average_attn_weights=False)
    assert P.shape == (2, 2, 6, 3)
    torch.testing.assert_close(P.sum(-1), torch.ones(2, 2, 6, dtype=F64))
    for i in range(2):
        heads = []
        for h in range(2):
            rows = slice(4 * h, 4 * h + 4)
            Q, K, V = (
                x[i] @ W[rows].T + b[rows]
                for W, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)  # type: ignore[union-attr]
            )
            E, G = (
                p[h if share == "none" else 0][:, :6] for p in (attention.projection_keys, attention.projection_values)
            )
            scores = torch.softmax(Q @ (E @ K).T / math.sqrt(4), -1)
            torch.testing.assert_close(P[i, h], scores)
            heads.append(scores @ (G @ V))
        torch.testing.assert_close(y[i], torch.cat(heads, 1) @ attention.out_proj.weight.T + attention.out_proj.bias)


def test_what_is_shared() -> None:
    counts = {share: sum(p.numel() for p in made(share=share).parameters()) for share in SHARES}
    rest = 4 * 8 * 8 + 4 * 8
    assert {share: count - rest for share, count in counts.items()} == {
        "none": 84,
        "heads": 42,
        "key_value": 21,
        "layers": 21,
    }
    first = made(share="layers")
    second = LinformerAttention(8, 2, 7, 3, "layers", projection=first.projection_keys)
    assert second.projection_keys is second.projection_values is first.projection_keys
    before = first.projection_keys.detach().clone()
    LinformerAttention(8, 2, 7, 3, "layers", projection=first.projection_keys)
    assert torch.equal(first.projection_keys, before)  # made again, it is not drawn again


def test_padding_enters_no_mixture() -> None:
    attention = made()
    x = drawn(2, 7, 8)
    padded = torch.zeros(2, 7, dtype=torch.bool)
    padded[1, 4:] = True
    other = x.clone()
    other[1, 4:] = 100 * drawn(3, 8)
    one, two = (attention(x, values, values, padded)[0] for values in (x, other))
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one[1], attention(x, x, x)[0][1])
    torch.testing.assert_close(one[0], attention(x, x, x)[0][0])
    additive = torch.zeros(2, 7, dtype=F64).masked_fill(padded, -math.inf)
    torch.testing.assert_close(attention(x, x, x, additive)[0], one)
    single = attention(x[1], x[1], x[1], padded[1])
    torch.testing.assert_close(single[0], one[1])
    assert single[1].shape == (7, 3)


@pytest.mark.parametrize("share", SHARES)
def test_gradients(share: Any) -> None:
    attention = made(length=4, k=2, share=share)
    x = drawn(1, 4, 8).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in attention.parameters()]
    names = [name for name, _ in attention.named_parameters()]

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x, x, x))[0]

    assert torch.autograd.gradcheck(call, (x, *parameters))


@torch.no_grad()
def test_singular_values_of_attention_and_errors_of_means() -> None:
    """S1-72: 0.968 of the squares are in the 64 largest of 256, all in all; S1-73: errors of means fall to 0 at k = n.

    Held to one draw of NumPy; draws of both differ by about 0.002 and 0.015.
    """
    n, d = 256, 32
    X = drawn(n, d)
    attention = LinformerAttention(d, 1, n, n, "layers", bias=False).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(drawn(3 * d, d) / math.sqrt(d))
        attention.out_proj.weight.copy_(torch.eye(d, dtype=F64))
    full, P = with_identity(attention)(X, X, X)
    squares = torch.linalg.svdvals(P).square()
    energy = squares.cumsum(0) / squares.sum()
    assert float(energy[63]) == pytest.approx(0.968, abs=0.01)
    assert float(energy[-1]) == pytest.approx(1)
    for k, known in ((16, 0.896), (64, 0.751), (256, 0.0)):
        cut = LinformerAttention(d, 1, n, k, "layers", bias=False).double()
        cut.load_state_dict(
            attention.state_dict() | {"projection_keys": means(k, n)[None], "projection_values": means(k, n)[None]}
        )
        error = (cut(X, X, X)[0] - full).norm() / full.norm()
        assert float(error) == pytest.approx(known, abs=0.06 if known else 1e-12)


def means(k: int, n: int) -> Tensor:
    """Of k stretches of n tokens."""
    return torch.kron(torch.eye(k, dtype=F64), torch.full((1, n // k), k / n, dtype=F64))


def test_means_collapse_faster_than_full_attention() -> None:
    """S1-74: layer by layer, without skips; random mixtures do not see tokens' mean as one, and end later."""
    found = {}
    for kind, k in (("full", None), ("means", 4), ("random", 4)):
        logs = []
        for seed in range(4):
            spec = pb.measure.AttentionSpec(3, projections=k)
            model = spec.build(seed)
            for name, each in model.named_parameters():
                if kind == "means" and "projected" in name:
                    each.data.copy_(means(4, 16).expand_as(each))
            measured = pb.measure.rank_collapse(model, spec.inputs(seed + 100), spectrum=False)
            logs.append(measured.log_relative_residual.value)
        found[kind] = torch.stack(logs).mean(0)
    assert (found["means"] < found["full"] - 0.5).all()
    assert found["means"][2] < found["full"][2] < found["random"][2]


def test_kernels_of_a_network_with_it() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = made(), nn.Linear(8, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head((x + self.attention(x, x, x)[0]).mean(1))

    model, x, y = Network(), drawn(4, 7, 8), torch.tensor([0, 2, 1, 0])
    K = pb.backward_kernel(model, nn.CrossEntropyLoss(), x, y)
    gradients = pb.reference.gradient_matrix(model, nn.CrossEntropyLoss(), x, y)
    torch.testing.assert_close(K.total, gradients @ gradients.T)


def test_starting_projections_keep_the_variance() -> None:
    """Within five standard errors of the mean square of k n = 32,768 entries, sqrt(2 / (k n)) of it."""
    torch.manual_seed(0)
    E = LinformerAttention(4, 1, 512, 64, "heads").projection_keys.detach()
    assert float(E.square().mean() * 512) == pytest.approx(1, abs=5 * math.sqrt(2 / E.numel()))


def test_dropout_in_train_mode_only() -> None:
    attention, x = made(dropout=0.5), drawn(2, 7, 8)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    attention.eval()
    assert torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    assert "heads=2, length=7, k=3, share='none'" in repr(attention)


X = torch.zeros(1, 8, 8, dtype=F64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LinformerAttention(8, 3, 7, 3), pb.InputError, r"divides `embed_dim`, got 3 heads for 8"),
        (lambda: LinformerAttention(8, 2, 7, 8), pb.InputError, r"`k` from 1 to the length 7, got 8"),
        (lambda: LinformerAttention(8, 2, 7, 0), pb.InputError, r"`k` from 1 to the length 7, got 0"),
        (lambda: made(share="all"), pb.InputError, r"`share` to be one of 'none', 'heads'"),
        (
            lambda: made(projection=nn.Parameter(torch.zeros(1, 3, 7))),
            pb.InputError,
            r'a `projection` with share="layers" only, got share="none"',
        ),
        (
            lambda: made(share="layers", projection=nn.Parameter(torch.zeros(1, 2, 7))),
            pb.InputError,
            r"a projection \(1, 3, 7\), got \(1, 2, 7\)",
        ),
        (lambda: made()(X, X, X), pb.InputError, r"sequences of at most 7 tokens, got 8"),
        (lambda: made()(X, X[:, :5], X[:, :4]), pb.InputError, r"as many values as keys, got \(1, 5\) and \(1, 4\)"),
        (lambda: made()(X, X, X, attn_mask=torch.zeros(8, 8)), pb.UnsupportedError, r"no mask of single queries"),
        (lambda: made()(X, X, X, is_causal=True), pb.UnsupportedError, r"Mask padding by `key_padding_mask`"),
        (
            lambda: LinformerAttention.from_attention(nn.MultiheadAttention(8, 2, kdim=4), 7, 3),
            pb.UnsupportedError,
            r"self-attention without additions",
        ),
        (
            lambda: LinformerAttention.from_attention(nn.MultiheadAttention(8, 2, add_zero_attn=True), 7, 3),
            pb.UnsupportedError,
            r"self-attention without additions",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
