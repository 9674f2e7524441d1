"""Rank collapse of attention that is written out: whatever makes rows sum to one, and multiplies them with values.

Against the matrices that the model computed; and what is no attention, or none that can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback.measure import rank_collapse
from pullback.measure.rank_collapse.find import IN_PARTS, OTHERS, SQUARE
from pullback.measure.rank_collapse.recognised_products import OTHER_AXIS, OWN_KEYS, THREE
from tests.measure.test_rank_collapse_models import Mixing
from tests.measure.tokens import PADDED, D, N, T
from tests.thinned import thinned

pytestmark = pytest.mark.usefixtures("seeded")
Weigh = Callable[[Tensor], Tensor]
Multiply = Callable[[Tensor, Tensor], Tensor]
CAUSAL, KEPT = torch.ones(T, T).tril().bool(), ~PADDED[:, None, None]
MASKS = {"none": None, "causal": CAUSAL, "padded": KEPT, "both": CAUSAL & KEPT}


def over_sum(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


def in_place(s: Tensor) -> Tensor:
    s = s.sub_(s.amax(-1, keepdim=True)).exp_()
    return s.div_(s.sum(-1, keepdim=True))


def sparsemax(s: Tensor) -> Tensor:
    z = s.sort(-1, descending=True).values
    k = torch.arange(1, s.shape[-1] + 1)
    support = (1 + k * z > z.cumsum(-1)).sum(-1, keepdim=True)
    tau = (z.masked_fill(z < -1e8, 0).cumsum(-1).gather(-1, support - 1) - 1) / support
    return (s - tau).clamp(min=0)


class Sum(torch.autograd.Function):
    """A function of one's own."""

    @staticmethod
    def forward(ctx: object, s: Tensor) -> Tensor:
        return over_sum(s.exp())


WEIGHTS: dict[str, Weigh] = {
    "exp over sum": lambda s: over_sum(s.exp()),
    "maximum": lambda s: over_sum((s - s.max(-1, keepdim=True).values).exp()),
    "in place": in_place,
    "reciprocal": lambda s: s.exp() * s.exp().sum(-1, keepdim=True).reciprocal(),
    "logsumexp": lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(),
    "log softmax": lambda s: F.log_softmax(s, -1).exp(),
    "double": lambda s: s.double().softmax(-1).to(s.dtype),
    "sigmoid": lambda s: over_sum(s.sigmoid()),
    "squares": lambda s: over_sum(F.relu(s + 3).square()),
    "normalize": lambda s: F.normalize(s.exp(), p=1, dim=-1),
    "sparsemax": sparsemax,
    "function": Sum.apply,
    "softmax": lambda s: s.softmax(-1),
}
# of exponentials, a mask that is multiplied with, or fills them
MASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "times": lambda e, m: e * m,
    "times numbers": lambda e, m: e * m.to(e),
    "filled": lambda e, m: e.masked_fill(~m, 0),
    "where": lambda e, m: torch.where(m, e, torch.zeros_like(e)),
    "after the softmax": lambda e, m: over_sum(e) * m,
}
PRODUCTS: dict[str, Multiply] = {
    "at": lambda P, V: P @ V,
    "einsum": lambda P, V: torch.einsum("bhkd,bhqk->bqhd", V, P).transpose(1, 2),
    "heads first": lambda P, V: torch.einsum("hbqk,bhkd->bhqd", P.transpose(0, 1), V),
    "bmm": lambda P, V: torch.bmm(P.flatten(0, 1), V.flatten(0, 1)).unflatten(0, (N, 2)),
    "baddbmm": lambda P, V: torch.baddbmm(P.new_zeros(()), P.flatten(0, 1), V.flatten(0, 1)).unflatten(0, (N, 2)),
    "values first": lambda P, V: (V.mT @ P.mT).mT,
    "values first, copied": lambda P, V: (V.mT @ P.mT.contiguous()).mT,
    "entry by entry": lambda P, V: (P.unsqueeze(-1) * V.unsqueeze(2)).sum(3),
    "entry by entry, last": lambda P, V: (P[..., None, :] * V.mT[:, :, None]).sum(-1),
    "a head at a time": lambda P, V: torch.stack([P[:, h] @ V[:, h] for h in range(2)], 1),
    "copied": lambda P, V: P.clone().contiguous() @ V,
}


class Written(Mixing):
    """Attention of two heads that keeps its matrices."""

    def __init__(
        self, weigh: Weigh, multiply: Multiply, mask: Tensor | None, hidden: float = -math.inf, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.weigh, self.multiply, self.mask, self.hidden, self.dropout = weigh, multiply, mask, hidden, dropout
        self.seen: list[Tensor] = []

    def mixed(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        scores = Q @ K.mT
        scores = scores if self.mask is None else scores.masked_fill(~self.mask, self.hidden)
        P = self.weigh(scores)
        self.seen.append(P.clone())
        return self.multiply(F.dropout(P, self.dropout), V).transpose(1, 2)


def assert_read(x: Tensor, block: Callable[[], Written], mask: Tensor | None) -> None:
    """Entropy of rows, and over its largest, of the first of two blocks, over tokens that are no padding."""
    model = nn.Sequential(block(), block())
    found = rank_collapse(model, x, spectrum=False)
    assert found.layers == ("0", "1")
    assert found.unread == {}
    P = model[0].seen[0].detach().double()
    shown = torch.ones(N, T, T).bool() if mask is None else mask.expand(N, 2, T, T)[:, 0]
    entropies, relative = [], []
    for n in range(N):
        keys = shown[n].any(0)
        rows = torch.special.entr(P[n][:, keys][..., keys]).sum(-1)
        count = shown[n][keys].sum(-1)
        entropies.append(rows.mean(-1))
        relative.append((rows[:, count > 1] / count[count > 1].log()).mean(-1))
    heads = found.attention[0]
    torch.testing.assert_close(heads.entropy.value, torch.stack(entropies).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads.relative_entropy.value, torch.stack(relative).mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("how", "mask"), thinned(list(WEIGHTS), list(MASKS)))
def test_rows_that_sum_to_one(x: Tensor, how: str, mask: str) -> None:
    hidden = -1e9 if how == "sparsemax" else -math.inf
    assert_read(x, lambda: Written(WEIGHTS[how], PRODUCTS["at"], MASKS[mask], hidden), MASKS[mask])


@pytest.mark.parametrize(("how", "mask"), thinned(list(MASKED), ["causal", "padded", "both"]))
def test_masks_behind_the_exponential(x: Tensor, how: str, mask: str) -> None:
    shown = MASKS[mask]
    assert shown is not None

    def block() -> Written:
        return Written(lambda s: over_sum(MASKED[how](s.exp(), shown)), PRODUCTS["at"], None)

    assert_read(x, block, shown)


@pytest.mark.parametrize(("how", "weigh", "dropout"), thinned(list(PRODUCTS), ["softmax", "exp over sum"], [0.0, 0.5]))
def test_products(x: Tensor, how: str, weigh: str, dropout: float) -> None:
    """Of the rows before dropout."""
    assert_read(x, lambda: Written(WEIGHTS[weigh], PRODUCTS[how], KEPT, dropout=dropout), KEPT)


@pytest.mark.parametrize("inplace", [False, True])
def test_rows_are_those_before_dropout(x: Tensor, inplace: bool) -> None:
    """The same numbers with and without it, in the first layer; half of them would be zero."""
    blocks = [Written(lambda s, p=p: F.dropout(over_sum(s.exp()), p, inplace=inplace), PRODUCTS["values first"], CAUSAL)
              for p in (0.0, 0.5)]  # fmt: skip
    blocks[1].load_state_dict(blocks[0].state_dict())
    plain, found = (rank_collapse(block, x).attention[0] for block in blocks)
    assert torch.equal(plain.entropy.value, found.entropy.value)
    assert torch.equal(plain.relative_entropy.value, found.relative_entropy.value)
    assert plain.singular_values is not None
    assert found.singular_values is not None
    assert torch.equal(plain.singular_values.value, found.singular_values.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rounding_of_the_dtype_is_no_matter(x: Tensor, dtype: torch.dtype) -> None:
    model = nn.Sequential(Written(WEIGHTS["maximum"], PRODUCTS["at"], CAUSAL)).to(dtype)
    found = rank_collapse(model, x.to(dtype), spectrum=False)
    P = model[0].seen[0].detach().double()
    entropy = torch.special.entr(P).sum(-1).mean((0, 2))
    torch.testing.assert_close(found.attention[0].entropy.value, entropy, rtol=1e-10, atol=0)


class Part(nn.Module):
    """What else a block may do, with linear layers to do it."""

    def __init__(self, does: Callable[[Part, Tensor], Tensor]) -> None:
        super().__init__()
        self.does = does
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in "qkv")
        self.gates, self.experts, self.scores = nn.Linear(D, 4), nn.Linear(D, 4 * D), nn.Linear(D, T)
        self.table, self.mix = nn.Parameter(torch.randn(4, D)), nn.Parameter(torch.rand(T, T))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.does(self, x)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)

    def mixture(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gates(x).softmax(-1), self.experts(x).unflatten(-1, (4, D))


def averages(m: Part, x: Tensor) -> Tensor:
    """Of the tokens that a mask made of the data shows."""
    shown = ((x @ x.mT) > 0).float()
    return m.v(over_sum(shown) @ x)


def near(z: Tensor) -> Tensor:
    """Three neighbours of each token, (N, T, 3, D)."""
    return F.pad(z, (0, 0, 1, 1)).unfold(1, 3, 1).mT


NONE: dict[str, Callable[[Part, Tensor], Tensor]] = {
    "softmax as activation": lambda m, x: m.v(m.q(x).softmax(-1)),
    "experts": lambda m, x: torch.einsum("nte,nted->ntd", *m.mixture(x)),
    "experts of tokens in a row": lambda m, x: torch.bmm(
        m.gates(x.flatten(0, 1)).softmax(-1).unsqueeze(1), m.experts(x).view(-1, 4, D)
    ).view(x.shape),
    "experts, entry by entry": lambda m, x: (m.mixture(x)[0].unsqueeze(-1) * m.mixture(x)[1]).sum(-2),
    "codebook": lambda m, x: m.gates(x).softmax(-1) @ F.normalize(m.table, dim=-1),
    "average": lambda m, x: x.new_full((T, T), 1 / T) @ x,
    "average of those before": lambda m, x: over_sum(torch.ones_like(x[..., :T]).tril()) @ m.v(x),
    "average by a mask": averages,
    "one-hot": lambda m, x: F.one_hot(x.argmax(-1), D).float() @ m.q.weight,
    "positions": lambda m, x: F.one_hot(torch.arange(T), D).float() @ m.q.weight,
    "mixer": lambda m, x: m.v((x.mT @ m.mix).mT),
    "mixer of averages": lambda m, x: torch.einsum("st,ntd->nsd", over_sum(m.mix), x),
    "dynamic weights": lambda m, x: x @ torch.einsum("nd,de->nde", x.mean(1), m.q.weight),
    "computed weights": lambda m, x: F.linear(F.linear(x, F.normalize(m.q.weight)), m.k.weight @ m.v.weight),
    "second moments": lambda m, x: m.v((x.mT @ x).mean(1, keepdim=True)),
}


@pytest.mark.parametrize("how", thinned(list(NONE)))
def test_what_is_no_attention_is_neither_read_nor_named(x: Tensor, how: str) -> None:
    found = rank_collapse(nn.Sequential(Mixing(), Part(NONE[how])), x, spectrum=False)
    assert found.layers == ("0",)
    assert found.unread == {}
    with pytest.raises(pb.InputError, match="^rank_collapse: expected a model with attention, got none. Pass one"):
        rank_collapse(Part(NONE[how]), x)


def linear(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return (F.elu(Q) + 1) @ ((F.elu(K) + 1).mT @ V)


def recurrent(m: Part, x: Tensor) -> Tensor:
    """The same of tokens before, by a running sum of outer products."""
    Q, K, V = m.qkv(x)
    return torch.einsum("ntd,ntde->nte", Q, torch.einsum("ntd,nte->ntde", K, V).cumsum(1))


def efficient(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return Q.softmax(-1) @ (K.softmax(1).mT @ V)


def unnormalised(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return (Q @ K.mT).tanh() @ V


def one_more(m: Part, x: Tensor) -> Tensor:
    """Softmax with one in the denominator."""
    Q, K, V = m.qkv(x)
    e = (Q @ K.mT).exp()
    return ((e / (1 + e.sum(-1, keepdim=True))).unsqueeze(-1) * V.unsqueeze(1)).sum(2)


def difference(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return ((Q @ K.mT).softmax(-1) - 0.5 * (K @ Q.mT).softmax(-1)) @ V


def of_neighbours(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    P = torch.einsum("ntd,ntwd->ntw", Q, near(K)).softmax(-1)
    return torch.einsum("ntw,ntwd->ntd", P, near(V))


def in_chunks(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return torch.cat([(each @ K.mT).softmax(-1) @ V for each in Q.split(2, 1)], 1)


def a_sample_at_a_time(m: Part, x: Tensor) -> Tensor:
    return torch.stack([(q @ k.T).softmax(-1) @ v for q, k, v in zip(*m.qkv(x), strict=True)])


NAMED: dict[str, tuple[Callable[[Part, Tensor], Tensor], str]] = {
    "linear": (linear, f"computed by {THREE}"),
    "recurrent": (recurrent, f"computed by {THREE}"),
    "efficient": (efficient, f"computed by {THREE}"),
    "unnormalised": (unnormalised, f"computed by {THREE}"),
    "one more": (one_more, f"computed by {THREE}"),
    "difference": (difference, f"computed by {THREE}"),
    "columns": (lambda m, x: m.scores(x).softmax(1).mT @ m.v(x), f"computed by {OTHER_AXIS}"),
    "tokens by tokens": (lambda m, x: m.scores(x) @ m.v(x), SQUARE),
    "neighbours": (of_neighbours, f"computed by {OWN_KEYS}"),
    "chunks": (in_chunks, IN_PARTS),
    "a sample at a time": (a_sample_at_a_time, IN_PARTS),
}


@pytest.mark.parametrize("how", thinned(list(NAMED)))
def test_what_mixes_tokens_in_another_way_is_named(x: Tensor, how: str) -> None:
    does, why = NAMED[how]
    found = rank_collapse(nn.Sequential(Mixing(), Part(does)), x, spectrum=False)
    assert found.layers == ("0",)
    assert found.unread == {"1": why}
    with pytest.raises(pb.InputError, match=r"got none that can be read \(`\(model\)`: comp"):
        rank_collapse(Part(does), x)


def synthesized(m: Part, x: Tensor) -> Tensor:
    return over_sum(m.scores(x).exp()) @ m.v(x)


def additive(m: Part, x: Tensor) -> Tensor:
    Q, K, V = m.qkv(x)
    return ((Q.unsqueeze(2) + K.unsqueeze(1)).tanh() @ m.table[0]).softmax(-1) @ V


def of_zero_queries(m: Part, x: Tensor) -> Tensor:
    """All weights are equal, as they are at the start of some networks."""
    Q, K, V = m.qkv(x)
    return over_sum(((0 * Q) @ K.mT).exp()) @ V


def one_key_for_all_heads(m: Part, x: Tensor) -> Tensor:
    Q, (K, V) = m.q(x).unflatten(-1, (2, 8)), (each(x)[..., :8] for each in (m.k, m.v))
    P = torch.einsum("bihd,bjd->bhij", Q, K).softmax(-1)
    return torch.einsum("bhij,bjd->bihd", P, V).flatten(2)


def groups_of_heads(m: Part, x: Tensor) -> Tensor:
    Q = m.q(x).unflatten(-1, (2, 2, 4))
    K, V = (each(x)[..., :8].unflatten(-1, (2, 4)) for each in (m.k, m.v))
    P = torch.einsum("bikgd,bjkd->bkgij", Q, K).softmax(-1)
    return torch.einsum("bkgij,bjkd->bikgd", P, V).flatten(2)


def heads_last(m: Part, x: Tensor) -> Tensor:
    Q, K, V = (each.unflatten(-1, (2, 8)) for each in m.qkv(x))
    P = torch.einsum("bqhd,bkhd->bqkh", Q, K).softmax(2)
    return torch.einsum("bqkh,bkhd->bqhd", P, V).flatten(2)


READ = {  # heads of it
    synthesized: 1, additive: 1, of_zero_queries: 1, one_key_for_all_heads: 2, groups_of_heads: 4, heads_last: 2,
}  # fmt: skip


@pytest.mark.parametrize("does", list(READ))
def test_scores_and_heads_of_all_kinds(x: Tensor, does: Callable[[Part, Tensor], Tensor]) -> None:
    found = rank_collapse(nn.Sequential(Mixing(), Part(does)), x, spectrum=False)
    assert found.layers == ("0", "1")
    assert found.unread == {}
    assert len(found.attention[1].heads) == READ[does]
    if does is of_zero_queries:
        torch.testing.assert_close(found.attention[1].relative_entropy.value, torch.ones(1).double())


def test_other_queries_beside_the_tokens_are_named(x: Tensor) -> None:
    """Landmarks, of which there are fewer."""

    def nystroem(m: Part, x: Tensor) -> Tensor:
        Q, K, V = m.qkv(x)
        few, keys = (each.unflatten(1, (3, 2)).mean(2) for each in (Q, K))
        inner = torch.linalg.pinv((few @ keys.mT).softmax(-1))
        return (Q @ keys.mT).softmax(-1) @ (inner @ ((few @ K.mT).softmax(-1) @ V))

    found = rank_collapse(nn.Sequential(Mixing(), Part(nystroem)), x, spectrum=False)
    assert found.layers == ("0", "1")
    assert found.unread == {"1": OTHERS}


@pytest.mark.parametrize("weigh", ["softmax", "exp over sum"])
def test_numbers_that_are_none_are_refused_however_it_is_written(x: Tensor, weigh: str) -> None:
    model = nn.Sequential(*(Written(WEIGHTS[weigh], PRODUCTS["at"], None) for _ in range(2)))
    with torch.no_grad():
        model[1].project.weight.fill_(math.nan)
    with pytest.raises(pb.InputError, match="finite tokens, got NaN or infinity in sample 0 in `1`"):
        rank_collapse(model, x)


@pytest.mark.parametrize("weigh", ["softmax", "exp over sum", "maximum"])
def test_rows_with_nothing_to_attend_to_are_refused_however_it_is_written(x: Tensor, weigh: str) -> None:
    mask = torch.ones(T, T).bool()
    mask[2] = False
    for hidden in (-math.inf, -1e9):
        model = Written(WEIGHTS[weigh], PRODUCTS["at"], mask, hidden)
        with pytest.raises(pb.InputError, match="a mask that leaves row 2 of sample 0 nothing"):
            rank_collapse(model, x)


def test_a_mask_counts_for_its_own_layer_alone(x: Tensor) -> None:
    """Rows of the second layer may attend to all; entropy over its largest is over the logarithm of T."""
    weigh, multiply = WEIGHTS["exp over sum"], PRODUCTS["at"]
    found = rank_collapse(nn.Sequential(Written(weigh, multiply, CAUSAL), Written(weigh, multiply, None)), x)
    heads = found.attention[1]
    torch.testing.assert_close(heads.relative_entropy.value, heads.entropy.value / math.log(T))
    assert float(found.attention[0].relative_entropy.value[0]) > float(found.attention[0].entropy.value[0]) / math.log(
        T
    )
