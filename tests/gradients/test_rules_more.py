"""Transposed convolutions, bags of embeddings and PReLU against the loop, over drawn shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from tests.gradients.test_rules import assert_rows_agree

small = st.integers(1, 4)


@st.composite
def transposed(draw: st.DrawFn, space: int) -> tuple[nn.Module, Tensor]:
    kinds = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    groups = draw(st.integers(1, 3))
    kernel, stride, dilation = ([draw(st.integers(1, 3)) for _ in range(space)] for _ in range(3))
    reach = [(k - 1) * e for k, e in zip(kernel, dilation, strict=True)]
    module = kinds[space](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=[draw(st.integers(0, min(2, r // 2))) for r in reach],
        output_padding=[draw(st.integers(0, max(s, e) - 1)) for s, e in zip(stride, dilation, strict=True)],
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
    )
    size = [draw(st.integers(1, 3)) for _ in range(space)]
    return module, torch.randn(draw(st.integers(1, 4)), module.in_channels, *size)


@given(transposed(1))
def test_conv_transpose1d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv_transpose1d")


@given(transposed(2))
def test_conv_transpose2d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv_transpose2d")


@given(transposed(3))
def test_conv_transpose3d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv_transpose3d")


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_conv_transpose_with_one_parameter(frozen: str) -> None:
    module = nn.ConvTranspose2d(2, 3, 2)
    getattr(module, frozen).requires_grad_(False)
    assert_rows_agree(module, torch.randn(3, 2, 3, 2), expect="conv_transpose2d")


class Frames(nn.Module):
    """Images and samples in one axis: every frame is a position of its sample."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_frames_share_a_transposed_convolution() -> None:
    model = Frames(nn.Sequential(nn.ConvTranspose2d(2, 4, 2, stride=2, groups=2), nn.PReLU(4)))
    assert_rows_agree(model, torch.randn(3, 2, 2, 2, 3), expect="conv_transpose2d")


class Bags(nn.Module):
    """A bag of embeddings, with weights from the data if asked for, and a layer that makes samples differ."""

    def __init__(self, vocabulary: int, p: int, mode: str, padding: int | None, weighted: bool) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(vocabulary, p, mode=mode, padding_idx=padding)
        self.weighted = weighted

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sin(x.double() + 1) if self.weighted else None
        return torch.tanh(self.bag(x, per_sample_weights=weights))


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(2, 5),
    small,
    st.sampled_from(["sum", "weighted", "mean", "max"]),
    st.sampled_from([None, 0, -1]),
)
def test_embedding_bag(n: int, length: int, vocabulary: int, p: int, mode: str, padding: int | None) -> None:
    weighted = mode == "weighted"
    model = Bags(vocabulary, p, "sum" if weighted else mode, padding, weighted)
    assert_rows_agree(model, torch.randint(vocabulary, (n, length)), expect="embedding_bag")


def test_bags_of_padding_alone_have_no_gradient() -> None:
    for mode in ("sum", "mean", "max"):
        x = torch.tensor([[0, 0, 0], [1, 0, 2], [0, 3, 3]])
        assert_rows_agree(Bags(4, 2, mode, 0, False), x, expect="embedding_bag")


def test_the_first_of_equal_tokens_is_the_largest() -> None:
    model = Bags(5, 3, "max", None, False)
    nn.init.ones_(model.bag.weight)
    assert_rows_agree(model, torch.tensor([[3, 1, 2], [0, 4, 4], [2, 0, 1]]), expect="embedding_bag")


def test_several_bags_a_sample() -> None:
    assert_rows_agree(Frames(Bags(6, 3, "mean", 1, False)), torch.randint(6, (4, 2, 3)), expect="embedding_bag")


class Offsets(nn.Module):
    """All tokens in one row, bags from where they start."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))


class LearnedWeights(nn.Module):
    """Weights of the tokens that are learned, one a position."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.embedding_bag(x, self.table, mode="sum", per_sample_weights=self.place.expand(x.shape)))


@pytest.mark.parametrize(
    ("model", "table"),
    [
        (Offsets(), "bag.weight"),
        (LearnedWeights(), "table"),
    ],
    ids=["offsets", "learned weights"],
)
def test_other_bags_are_not_ruled(model: nn.Module, table: str) -> None:
    x = torch.randint(6, (3, 4))
    y = torch.randn(3, 3, dtype=torch.float64)
    layers = pb.plan_kernel(model.double().eval(), nn.MSELoss(), x, y).layers
    assert next(layer.rule for layer in layers if table in layer.parameters) == "vmap fallback"


@pytest.mark.parametrize("make", [Offsets, LearnedWeights])
def test_other_bags_are_exact(make: Any) -> None:
    assert_rows_agree(make(), torch.randint(6, (3, 4)), expect="vmap fallback")


@given(st.integers(1, 5), st.integers(1, 3), st.lists(small, max_size=3), st.booleans())
def test_prelu(n: int, channels: int, space: list[int], per_channel: bool) -> None:
    module = nn.PReLU(channels if per_channel else 1)
    nn.init.normal_(module.weight)
    assert_rows_agree(module, torch.randn(n, channels, *space), expect="prelu")


def test_prelu_of_a_sequence_before_its_samples() -> None:
    """Channels stay in axis 1 wherever the samples are."""

    class StepsFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.PReLU(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.slope(x.movedim(0, -1)).movedim(-1, 0)

    assert_rows_agree(StepsFirst(), torch.randn(4, 5, 3), expect="prelu")
