"""Rank collapse: what is named or refused, what stays as it was, and how much memory it takes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

import pullback as pb
from pullback.measure import rank_collapse
from pullback.measure.rank_collapse.recognised_products import THREE
from tests.measure.test_rank_collapse_models import Mixing, Row, encoder
from tests.measure.tokens import PADDED, D, H, N, T, drawn

pytestmark = pytest.mark.usefixtures("seeded")


class LinearAttention(Mixing):
    """No softmax of scores."""

    def mixed(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        return (Q.relu() @ (K.relu().mT @ V)).transpose(1, 2)


class NoAttention(nn.Linear):
    """Says of itself that it attends."""

    def __init__(self) -> None:
        super().__init__(D, D)


class Sinks(Mixing):
    """A softmax with one entry more than there are values."""

    def mixed(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        P = F.pad(Q @ K.mT, (0, 1)).softmax(-1)
        return (P[..., :-1] @ V).transpose(1, 2)


class Pooling(nn.Module):
    """One learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x.new_ones(len(x), 1, D), x, x)[0].squeeze(1)
        return found


KERNELS = torch.library.Library("pullback_tests", "FRAGMENT")
KERNELS.define("own_attention(Tensor Q, Tensor K, Tensor V) -> Tensor")
KERNELS.impl("own_attention", lambda Q, K, V: F.scaled_dot_product_attention(Q, K, V), "CompositeExplicitAutograd")


class Own(Mixing):
    """A kernel of the user's own."""

    def mixed(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        found: Tensor = torch.ops.pullback_tests.own_attention(Q, K, V)
        return found.transpose(1, 2)


class Unused(Row):
    """Has an attention that it does not call."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.a(x)
        return found


UNREAD: list[tuple[Callable[[], nn.Module], str, str]] = [
    (lambda: nn.Sequential(Mixing(), LinearAttention()), "1", f"computed by {THREE}"),
    (lambda: nn.Sequential(Mixing(), Sinks()), "1", f"computed by {THREE}"),
    (lambda: nn.Sequential(Mixing(), Pooling()), "1.attention", "a single query, whose output is one token"),
    (lambda: nn.Sequential(Mixing(), Own()), "1", "computed by `own_attention`"),
    (lambda: Unused(Mixing(), nn.MultiheadAttention(D, H)), "b", "not called with these inputs"),
    (lambda: nn.Sequential(Mixing(), NoAttention()), "1", "no rows of weights that sum to one times values in it"),
]


@pytest.mark.parametrize(("make", "name", "why"), UNREAD, ids=range(len(UNREAD)))
def test_what_cannot_be_read_is_named(x: Tensor, make: Callable[[], nn.Module], name: str, why: str) -> None:
    found = rank_collapse(make(), x, spectrum=False)
    assert len(found.layers) == 1
    assert found.layers[0] in ("0", "(model)")
    assert found.unread == {name: why}
    assert str(found).endswith(f"\n{name}: not read, {why}")


def state(model: nn.Module) -> tuple[Any, ...]:
    """What a call may leave behind, in a model's parts and in torch."""
    parts = [
        (part.training, len(part._forward_hooks), len(part._forward_pre_hooks), sorted(vars(part)))
        for part in model.modules()
    ]
    shared = vars(torch.nn.modules.module)
    hooks = {name: len(kept) for name, kept in shared.items() if name.startswith("_global_") and isinstance(kept, dict)}
    assert {"_global_forward_hooks", "_global_forward_hooks_with_kwargs"} <= set(hooks)
    return parts, hooks, torch.is_grad_enabled(), len(_get_current_dispatch_mode_stack())


class Failing(nn.Module):
    """Raises at one of its calls."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls, self.norm = at, 0, nn.BatchNorm1d(T)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("on purpose")
        found: Tensor = self.norm(x)
        return found


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_nothing_of_the_user_changes(x: Tensor, fails_at: int) -> None:
    """Modes, weights, gradients, statistics, hooks and random numbers; also where a layer raises in either pass."""
    model = nn.Sequential(encoder(batch_first=True), Failing(fails_at), encoder(batch_first=True)).train()
    model[2].eval()
    weight = model[0].layers[0].self_attn.in_proj_weight
    weight.grad = torch.ones(3 * D, D)
    model[2].layers[1].register_forward_hook(lambda *_: None)
    before, random = state(model), torch.get_rng_state()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fails_at:
        with pytest.raises(RuntimeError, match="on purpose"):
            rank_collapse(model, x)
    else:
        rank_collapse(model, x)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(weight.grad, torch.ones(3 * D, D))
    assert all(p.grad is None for p in model[2].parameters())
    assert torch.equal(x, drawn(N, T, D))


class Live(TorchDispatchMode):
    """Bytes of memory that operations made and that is still held: now, and at its most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self._known:
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def most_bytes(call: Callable[[], object]) -> int:
    with Live() as live:
        call()
    return live.most


@pytest.mark.parametrize("how", [pytest.param("fused", marks=pytest.mark.slow), "einsum"])
def test_memory_is_that_of_one_layers_matrices(how: str) -> None:
    """Below a forward pass that keeps the matrices of one layer, and the same however many layers there are."""
    x = drawn(4, 48, 8)
    shallow, deep = (nn.Sequential(*(Mixing(how, 8) for _ in range(count))) for count in (2, 4))
    matrices = 4 * 2 * 48 * 48 * 4  # N H T T numbers of four bytes
    with torch.no_grad():
        ordinary = most_bytes(lambda: shallow(x))
    assert (ordinary > matrices) is (how != "fused")
    assert most_bytes(lambda: rank_collapse(shallow, x)) < ordinary + matrices
    peaks = [most_bytes(lambda model=model: rank_collapse(model, x, spectrum=False)) for model in (shallow, deep)]
    assert peaks[1] < peaks[0] + matrices / 16  # numbers of each layer are kept


def test_refusals(x: Tensor) -> None:
    empty = torch.zeros(T, T, dtype=torch.bool)
    empty[2] = True
    nothing = torch.zeros(N, T, dtype=torch.bool)
    nothing[1] = True
    single = nothing.clone()
    single[1, 0] = False
    model = encoder(batch_first=True, dropout=0.0)
    broken = nn.Sequential(Mixing(), Mixing())
    with torch.no_grad():
        broken[1].project.weight.fill_(math.nan)
    few = "two or more tokens a sample that are no padding, got {} in sample 1. Leave that sample out"
    row = "something to attend to for every token, got a mask that leaves row 2 of sample 0 nothing in `layers.0"
    text: Any = "encoder"
    refused: list[tuple[nn.Module, Any, dict[str, Any], str]] = [
        (nn.Linear(D, 2), x, {}, "a model with attention, got none. Pass one whose tokens are mixed by"),
        (LinearAttention(), x, {}, r"got none that can be read \(`\(model\)`: computed by products of queries, keys"),
        (model, x[:, :1], {}, "inputs of two or more tokens, got 1. Pass longer sequences"),
        (Pooling(), x, {}, "inputs of two or more tokens, got 1"),
        (model, (x, empty), {}, row + ".self_attn`. Let each token attend to itself"),
        (encoder(batch_first=True).eval(), (x, empty), {}, row + "`"),
        (model, (x, None, nothing), {}, few.format(0)),
        (model, (x, None, single), {}, few.format(1)),
        (model, x, {"mask": ~single}, few.format(1)),
        (model, x, {"mask": ~empty[:2, :2]}, r"a `mask` \(3, 6\), got \(2, 2\). Pass one entry a token"),
        (model, x, {"mask": [[True] * T] * N}, r"`mask` as a tensor, got list. Pass torch.as_tensor\(mask\)"),
        (broken, x, {}, "finite tokens, got NaN or infinity in sample 0 in `1`. Check weights"),
        (model, x / 0, {}, "finite numbers in `inputs`, got NaN or infinity. Remove or repair"),
        (model, None, {}, "`inputs` for a module, got None. Pass what the model is called with"),
        (model, x, {"seeds": 2}, "`seeds` for a specification alone, got 2 and a module. Leave it out"),
        (text, x, {}, "an nn.Module or an AttentionSpec, got str. Pass the model itself"),
    ]
    for given, inputs, more, said in refused:
        with pytest.raises(pb.InputError, match=f"^rank_collapse: expected .*{said}"):
            rank_collapse(given, inputs, **more)


class Chosen(nn.Module):
    """Blocks of which each pass takes others: by chance, or the more the oftener it is called."""

    def __init__(self, by_chance: bool) -> None:
        super().__init__()
        self.blocks, self.calls, self.by_chance = nn.ModuleList(Mixing() for _ in range(8)), 0, by_chance

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for number, block in enumerate(self.blocks):
            if bool(torch.rand(()) < 0.5) if self.by_chance else number <= self.calls:
                x = block(x)
        return x


def test_layers_that_change_from_pass_to_pass(x: Tensor) -> None:
    """Both passes have the same random numbers; where layers change without them, the call is refused."""
    for seed in range(3):
        torch.manual_seed(seed)
        assert 0 < len(rank_collapse(Chosen(True), x, spectrum=False).layers) < 8
    with pytest.raises(
        pb.InputError, match="the same layers in two passes, got others at `blocks.2`. Put the model in"
    ):
        rank_collapse(Chosen(False), x)


def test_a_mask_says_what_is_padding(x: Tensor) -> None:
    """Where the model has none of its own; rows and keys that it hides count for nothing."""
    model = nn.Sequential(Mixing())
    found = rank_collapse(model, x, mask=~PADDED)
    tokens = model(x).detach().double()
    cosines = []
    for n in range(N):
        X = F.normalize(tokens[n][~PADDED[n]], dim=-1)
        pairs = X @ X.T
        cosines.append((pairs.sum() - pairs.trace()) / (len(X) * (len(X) - 1)))
    assert float(found.cosine.value) == pytest.approx(float(torch.stack(cosines).mean()), rel=1e-5)
    assert float(found.cosine.value) != pytest.approx(float(rank_collapse(model, x).cosine.value), rel=1e-3)


def test_scores_that_are_merely_small_hide_nothing(x: Tensor) -> None:
    """Weights a thousandfold make rows one-hot, by scores of a million; every token still counts."""
    model = nn.Sequential(Mixing("einsum"))
    with torch.no_grad():
        model[0].project.weight[: 2 * D] *= 1000
    found = rank_collapse(model, x)
    assert float(found.attention[0].entropy.value.max()) < 0.1
    X = model(x).detach().double()
    R = (X - X.mean(1, keepdim=True)).flatten(1).norm(dim=1).mean()
    assert float(found.frobenius_residual.value[0]) == pytest.approx(float(R), rel=1e-5)
