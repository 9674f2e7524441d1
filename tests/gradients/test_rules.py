"""Every rule against the loop over drawn shapes, in float64 to 1e-10, in every form it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.kernels.plan import make as plan
from tests.compare import assert_same

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

small = st.integers(1, 4)


def assert_rows_agree(model: nn.Module, x: Tensor, *, expect: str) -> None:
    """Kernel and loop on a quadratic loss of all outputs, in every form, through the rule named ``expect``."""
    model = model.double().eval()
    x = x.double() if x.is_floating_point() else x
    y = torch.randn_like(model(x)).detach()
    total = reference.total_kernel(model, nn.MSELoss(reduction="sum"), x, y)
    assert any(expect in layer.rule for layer in pb.plan_kernel(model, nn.MSELoss(), x, y).layers)
    size = max(float(total.abs().max()), 1e-9)
    original = plan.cheapest_form
    for form in ("ghost", "materialise", "shift"):
        plan.cheapest_form = lambda f, *_, form=form: form if form in f.forms else f.forms[0]
        try:
            kernel = pb.backward_kernel(model, nn.MSELoss(reduction="sum"), x, y)
        finally:
            plan.cheapest_form = original
        assert_same(kernel.total, total, scale=size)
    G = pb.GradientMatrix(model, nn.MSELoss(reduction="sum"), x, y)
    dense = reference.gradient_matrix(model, nn.MSELoss(reduction="sum"), x, y)
    assert_same(G.to_dense(), dense, scale=size**0.5)
    v, u = torch.randn(dense.shape[1], dtype=torch.float64), torch.randn(len(dense), dtype=torch.float64)
    assert_same(G @ v, dense @ v, scale=size**0.5 * max(1.0, float(v.norm())))
    assert_same(G.T @ u, dense.T @ u, scale=size**0.5 * max(1.0, float(u.norm())))
    assert_same(G.squared_norms(), total.diagonal(), scale=size)


@given(st.integers(1, 6), st.lists(small, max_size=2), small, small, st.booleans())
def test_linear(n: int, positions: list[int], d: int, p: int, bias: bool) -> None:
    assert_rows_agree(nn.Linear(d, p, bias=bias), torch.randn(n, *positions, d), expect="linear")


@st.composite
def convolutions(draw: st.DrawFn, space: int) -> tuple[nn.Module, Tensor]:
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    groups = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(space)]
    dilation = [draw(st.integers(1, 2)) for _ in range(space)]
    same = draw(st.booleans())
    stride: Any = 1 if same else [draw(st.integers(1, 3)) for _ in range(space)]
    padding: Any = "same" if same else [draw(st.integers(0, 2)) for _ in range(space)]
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])) if space < 3 else "zeros"
    module = kinds[space](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    least = [(k - 1) * e + 1 for k, e in zip(kernel, dilation, strict=True)]
    size = [max(3, m) + draw(st.integers(0, 3)) for m in least]
    return module, torch.randn(draw(st.integers(1, 4)), module.in_channels, *size)


@given(convolutions(1))
def test_conv1d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv1d")


@given(convolutions(2))
def test_conv2d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv2d")


@given(convolutions(3))
def test_conv3d(drawn: tuple[nn.Module, Tensor]) -> None:
    assert_rows_agree(*drawn, expect="conv3d")


@given(st.integers(1, 6), st.lists(st.integers(1, 4), min_size=1, max_size=2), small, small, st.booleans())
def test_embedding(n: int, positions: list[int], vocabulary: int, p: int, padded: bool) -> None:
    table = nn.Embedding(vocabulary, p, padding_idx=-1 if padded else None)
    model = nn.Sequential(table, nn.Tanh(), nn.Linear(p, 2))
    assert_rows_agree(model, torch.randint(vocabulary, (n, *positions)), expect="embedding")


def test_embedding_where_one_token_is_in_every_sample() -> None:
    """Tokens of very different frequency end up in different groups of the join."""
    x = torch.randint(40, (30, 6))
    x[:, 0] = 3
    x[5:, 1] = 3
    assert_rows_agree(nn.Sequential(nn.Embedding(40, 5), nn.Tanh(), nn.Linear(5, 2)), x, expect="embedding")


@given(
    st.integers(1, 5),
    st.lists(small, max_size=2),
    st.lists(st.integers(2, 4), min_size=1, max_size=2),
    st.booleans(),
)
def test_layer_norm(n: int, positions: list[int], shape: list[int], bias: bool) -> None:
    assert_rows_agree(nn.LayerNorm(shape, bias=bias), torch.randn(n, *positions, *shape), expect="layer_norm")


@given(st.integers(1, 5), st.lists(small, max_size=2), st.integers(2, 5), st.sampled_from([None, 1e-3]))
def test_rms_norm(n: int, positions: list[int], d: int, eps: float | None) -> None:
    assert_rows_agree(nn.RMSNorm(d, eps=eps), torch.randn(n, *positions, d), expect="rms_norm")


@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 2),
    st.lists(st.integers(2, 3), min_size=1, max_size=3),
)
def test_group_norm(n: int, groups: int, per_group: int, space: list[int]) -> None:
    norm = nn.GroupNorm(groups, groups * per_group)
    assert_rows_agree(norm, torch.randn(n, groups * per_group, *space), expect="group_norm")


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_batch_norm_in_eval_mode(n: int, channels: int, rank: int) -> None:
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1](channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    assert_rows_agree(norm, torch.randn(n, channels, *[3] * rank), expect="batch_norm")


@given(st.integers(1, 4), st.integers(1, 3))
def test_instance_norm(n: int, channels: int) -> None:
    assert_rows_agree(nn.InstanceNorm2d(channels, affine=True), torch.randn(n, channels, 3, 4), expect="instance_norm")


class Scaled(nn.Module):
    """A parameter no rule knows."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(d, 3), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(torch.einsum("nk,k->nk", self.linear(x), self.scale))


@given(st.integers(2, 5), small)
def test_fallback(n: int, d: int) -> None:
    assert_rows_agree(Scaled(d), torch.randn(n, d), expect="vmap fallback")


def test_frames_of_a_video_share_a_convolution() -> None:
    """Images and samples in one axis: every frame is a position of its sample."""

    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    assert_rows_agree(Video(), torch.randn(3, 4, 2, 4, 4), expect="conv2d")


def test_rescaled_embeddings_are_not_ruled() -> None:
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=1.0), nn.Flatten(), nn.Linear(6, 2)).eval()
    x, y = torch.tensor([[0, 1], [0, 0], [2, 3]]), torch.tensor([0, 1, 0])
    plan_ = pb.plan_kernel(model, nn.CrossEntropyLoss(), x, y)
    assert next(layer.rule for layer in plan_.layers if "0.weight" in layer.parameters) == "vmap fallback"


@pytest.mark.parametrize("kind", ["one weight", "a vector", "a stack", "weights on the left", "a stack on the left"])
def test_products_by_operator(kind: str) -> None:
    """Weights of one matrix have the rule of a linear layer, on either side; others are taken sample by sample."""
    shape = {"one weight": (3, 2), "a vector": (3,), "a stack": (4, 3, 2)}.get(kind)
    shape = shape or ((2, 4) if kind == "weights on the left" else (4, 2, 4))

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:  # (N, 4, 3)
            if "left" in kind:
                return self.weight @ (x if len(shape) == 2 else x.unsqueeze(1))
            return (x.unsqueeze(2) if len(shape) == 3 else x) @ self.weight

    assert_rows_agree(Product(), torch.randn(5, 4, 3), expect="linear" if len(shape) == 2 else "fallback")
