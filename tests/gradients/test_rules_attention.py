"""Attention as it is reissued: same outputs and gradients as torch, and kernels that match the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import pullback as pb
from pullback.gradients.rules.attention import attention
from tests.compare import assert_same
from tests.gradients.test_rules import assert_rows_agree

few = st.integers(1, 3)


class Replacing(TorchFunctionMode):
    """Runs ``replacement`` for ``function``, and counts the linear layers that are called under it."""

    def __init__(self, function: Callable[..., Any], replacement: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.replacement = function, replacement
        self.replaced = self.linear = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear:
            self.linear += 1
        if func != self.function:
            return func(*args, **(kwargs or {}))
        self.replaced += 1
        with self:
            return self.replacement(*args, **(kwargs or {}))


def tensors(results: Any) -> list[Tensor]:
    """Tensors in nested tuples, in order."""
    if isinstance(results, Tensor):
        return [results]
    return [t for part in results or () for t in tensors(part)]


def assert_replaced(mode: Replacing, run: Callable[[], Any], wanted: list[Tensor]) -> None:
    """Outputs and gradients with and without the replacement, which has run."""
    expected = tensors(run())
    with mode:
        found = tensors(run())
    assert mode.replaced > 0
    weights = [torch.randn_like(t) for t in expected]
    sides = []
    for outputs in (found, expected):
        total = sum((t * w).sum() for t, w in zip(outputs, weights, strict=True))
        sides.append([*(t.detach() for t in outputs), *torch.autograd.grad(total, wanted, materialize_grads=True)])
    assert len(found) == len(expected)
    for one, other in zip(*sides, strict=True):
        assert_same(one, other, scale=max(1.0, float(other.abs().max())))


@st.composite
def masks(draw: st.DrawFn, n: int, heads: int, length: int, sources: int, batched: bool) -> dict[str, Any]:
    """Masks that leave every query its first key; both of them are boolean or both are added."""
    boolean = draw(st.booleans())

    def mask(*shape: int) -> Tensor:
        if not boolean:
            return torch.randn(*shape, dtype=torch.float64)
        forbidden = torch.rand(*shape) < 0.4
        forbidden[..., 0] = False
        return forbidden

    options: dict[str, Any] = {}
    kind = draw(st.sampled_from(["none", "2-D", "3-D", "causal"]))
    if kind == "causal" and length == sources:
        causal = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
        options |= {"attn_mask": causal.isinf() if boolean else causal, "is_causal": True}
    elif kind == "2-D":
        options["attn_mask"] = mask(length, sources)
    elif kind == "3-D":
        options["attn_mask"] = mask((n if batched else 1) * heads, length, sources)
    if draw(st.booleans()):
        options["key_padding_mask"] = mask(*([n] if batched else []), sources)
    return options


@st.composite
def attentions(draw: st.DrawFn) -> tuple[nn.MultiheadAttention, list[Tensor], dict[str, Any]]:
    """A module, its query, key and value (the same object where they are shared), and the options of the call."""
    heads, n, length, sources = draw(few), draw(few), draw(few), draw(st.integers(1, 4))
    shared = draw(st.sampled_from(["self", "memory", "query and key", "no"]))
    dims = [None, None] if shared != "no" else [draw(st.sampled_from([None, 2, 5])) for _ in range(2)]
    sources = length if shared in ("self", "query and key") or draw(st.booleans()) else sources
    module = nn.MultiheadAttention(
        heads * draw(few),
        heads,
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=dims[0],
        vdim=dims[1],
        dtype=torch.float64,
    )
    for p in module.parameters():
        nn.init.normal_(p)
    batched = draw(st.booleans())

    def data(steps: int, width: int | None) -> Tensor:
        return torch.randn(
            steps, *([n] if batched else []), width or module.embed_dim, dtype=torch.float64, requires_grad=True
        )

    query, key, value = data(length, None), data(sources, dims[0]), data(sources, dims[1])
    inputs = {
        "self": [query] * 3,
        "memory": [query, key, key],
        "query and key": [query, query, value],
        "no": [query, key, value],
    }[shared]
    options = draw(masks(n, heads, length, sources, batched))
    options |= {"need_weights": draw(st.booleans()), "average_attn_weights": draw(st.booleans())}
    return module, inputs, options


def call(module: nn.MultiheadAttention, inputs: list[Tensor], options: dict[str, Any]) -> Any:
    """The function with the module's parameters: the module itself would make all masks additive first."""
    return F.multi_head_attention_forward(
        *inputs,
        module.embed_dim,
        module.num_heads,
        module.in_proj_weight,
        module.in_proj_bias,
        module.bias_k,
        module.bias_v,
        module.add_zero_attn,
        0.5,
        module.out_proj.weight,
        module.out_proj.bias,
        training=False,
        use_separate_proj_weight=module.in_proj_weight is None,
        q_proj_weight=module.q_proj_weight,
        k_proj_weight=module.k_proj_weight,
        v_proj_weight=module.v_proj_weight,
        **options,
    )


@settings(max_examples=250)  # many options, and small tensors
@given(attentions())
def test_attention_is_that_of_torch(drawn: tuple[nn.MultiheadAttention, list[Tensor], dict[str, Any]]) -> None:
    module, inputs, options = drawn
    mode = Replacing(F.multi_head_attention_forward, attention)
    assert_replaced(mode, lambda: call(module, inputs, options), [*dict.fromkeys(inputs), *module.parameters()])


@pytest.mark.parametrize(("inputs", "calls"), [("xxx", 2), ("xmm", 3), ("xxm", 4), ("xmy", 4)])
def test_equal_inputs_share_a_projection(inputs: str, calls: int) -> None:
    """One call of the packed projection where it can be, and one of the output projection."""
    module = nn.MultiheadAttention(4, 2)
    data = {name: torch.randn(3, 2, 4) for name in "xmy"}
    mode = Replacing(F.multi_head_attention_forward, attention)
    with mode:
        module(*(data[name] for name in inputs))
    assert (mode.replaced, mode.linear) == (1, calls)


def test_static_keys_are_refused() -> None:
    module = nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 2, 4)
    options = {"static_k": torch.randn(4, 3, 2), "static_v": torch.randn(4, 3, 2)}
    packed = (module.in_proj_weight, module.in_proj_bias, None, None, False, 0.0)
    with pytest.raises(pb.UnsupportedError, match=r"expected keys and values that are projected, got `static_k`"):
        attention(x, x, x, 4, 2, *packed, module.out_proj.weight, module.out_proj.bias, **options)


class Attending(nn.Module):
    """Queries from the first half of the steps, keys and values from the second, or all from all."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.kind = kind
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        query, memory = x[:, :2], x[:, 2:]
        inputs = {
            "self": (x, x, x),
            "memory": (query, memory, memory),
            "no": (query, memory[..., : self.attention.kdim], torch.sin(memory)),
        }[self.kind]
        return self.attention(*inputs, need_weights=self.kind == "no")[0]


def assert_no_fallback(model: nn.Module, x: Tensor) -> None:
    """All parameters reach a rule."""
    y = torch.randn_like(model(x)).detach()
    layers = pb.plan_kernel(model, nn.MSELoss(), x, y).layers
    assert [layer.parameters for layer in layers if layer.form == "fallback"] == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("self", {}),
        ("self", {"bias": False}),
        ("self", {"add_zero_attn": True}),
        ("memory", {}),
        ("memory", {"bias": False}),
        ("no", {}),
        ("no", {"kdim": 3}),
        ("self", {"add_bias_kv": True}),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_attention(kind: str, options: dict[str, Any], n: int) -> None:
    model, x = Attending(kind, **options).double().eval(), torch.randn(n, 4, 4, dtype=torch.float64)
    assert_rows_agree(model, x, expect="linear")
    assert_no_fallback(model, x)


class Decoding(nn.Module):
    """A decoder layer or a whole encoder and decoder, from targets and sources in one tensor."""

    def __init__(self, whole: bool, batch_first: bool) -> None:
        super().__init__()
        options = {"dropout": 0.0, "batch_first": batch_first}
        self.batch_first = batch_first
        self.body = (
            nn.Transformer(4, 2, 1, 1, 6, **options) if whole else nn.TransformerDecoderLayer(4, 2, 6, **options)
        )

    def forward(self, x: Tensor) -> Tensor:
        target, source = x[:, :2], x[:, 2:]
        if not self.batch_first:
            target, source = target.transpose(0, 1), source.transpose(0, 1)
        inputs = (source, target) if isinstance(self.body, nn.Transformer) else (target, source)
        mask = nn.Transformer.generate_square_subsequent_mask(2, dtype=x.dtype)
        out = self.body(*inputs, tgt_mask=mask, tgt_is_causal=True)
        return out if self.batch_first else out.transpose(0, 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_decoder(whole: bool, batch_first: bool) -> None:
    model, x = Decoding(whole, batch_first).double().eval(), torch.randn(3, 5, 4, dtype=torch.float64)
    assert_rows_agree(model, x, expect="linear")
    assert_no_fallback(model, x)
