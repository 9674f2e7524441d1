"""What plans count, against what is counted: operations by torch's own counter, bytes by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pullback as pb
from pullback.functional import ModelView
from pullback.functional.readout import output_readout
from pullback.gradients.capture.captured_rows import capture_factors
from pullback.gradients.rows.contract import Contract, Form, Products
from pullback.gradients.rows.convolution import ConvFactor
from pullback.gradients.rows.factor import DenseFactor, Factor
from pullback.gradients.rows.outer import OuterFactor
from pullback.gradients.rows.pieces import DensePiece
from pullback.gradients.rows.tied import TiedFactor
from pullback.gradients.rows.tokens import TokenFactor
from pullback.gradients.rows.unused import UnusedFactor
from pullback.kernels.plan.kernel_plan import ALLOCATED, BASE_BYTES, CAPTURE_BYTES, CHECKED, KernelPlan, LayerPlan
from tests.compare import assert_same

WHOLE = 10**9  # numbers a piece may form: all
CONTRACTS: tuple[Contract, ...] = ("full", "trace", "diagonal")


class Two(nn.Module):
    """Of positions in the middle, so that no layer's outputs are those asked for."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 2, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)).flatten(1))


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5, bias=False), (7,)),
    "positions": (nn.Linear(7, 5, bias=False), (3, 7)),
    "conv1d": (nn.Conv1d(3, 4, 2, bias=False), (3, 6)),
    "conv2d": (nn.Conv2d(2, 3, (2, 3), padding=(1, 2), bias=False), (2, 5, 4)),
    "groups": (nn.Conv1d(6, 4, 3, groups=2, bias=False), (6, 5)),
    "strides": (nn.Conv1d(3, 4, 2, stride=2, bias=False), (3, 8)),
}


def factor_of(name: str, n: int) -> Factor:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(n, *shape)
    model = Two(layer, layer(x)[0].numel())
    return capture_factors(ModelView.of(model), output_readout(), x, None, "test").factors[0]


def flops(factor: Factor, form: Form, n1: int, n2: int | None, contract: Contract = "full") -> float:
    return factor.work(form, Products.of(n1, n2, factor.num_outputs, contract)).flops


def products(factor: Factor, form: Form, n1: int, contract: Contract) -> int:
    """Operations of matrix products in the tile of the first ``n1`` samples against the others."""
    C, n2 = factor.num_outputs, factor.num_samples - n1
    shape = {"full": (n1 * C, n2 * C), "trace": (n1, n2), "diagonal": (C, n1, n2)}[contract]
    out = torch.zeros(shape)
    adding = {torch.ops.aten.addmm_: _of_addmm, torch.ops.aten.baddbmm_: _of_baddbmm}
    with FlopCounterMode(display=False, custom_mapping=adding) as counter:
        for piece in factor.pieces(form, WHOLE):
            piece.tile(out, slice(0, n1), piece, slice(n1, n1 + n2), contract, add=True)
    return counter.get_total_flops()


def _of_addmm(_: Any, a: Any, b: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _of_baddbmm(_: Any, a: Any, b: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * a[2] * b[2]


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("name", LAYERS)
def test_operations_are_those_of_the_products(name: str, contract: Contract) -> None:
    """Beside the products, each pair of positions is added to (bias, taps) as often as its form says."""
    n1, n2 = 3, 4
    factor = factor_of(name, n1 + n2)
    assert isinstance(factor, OuterFactor)
    T, g, _, _ = factor.dims
    taps = factor.weight_shape[2:].numel()
    beside = {"ghost": 1, "shift": 1 + taps, "materialise": 0}
    assert ("shift" in factor.forms) == (name in ("conv1d", "conv2d", "groups"))
    for form in factor.forms:
        elementwise = 2 * n1 * n2 * g * T * T * beside[form]
        assert flops(factor, form, n1, n2, contract) == products(factor, form, n1, contract) + elementwise
        making = 2 * factor.num_params * factor.num_outputs * T if form == "materialise" else 0  # a sample's rows
        pairs = flops(factor, form, n1, n1, contract) - 2 * n1 * making
        assert flops(factor, form, n1, None, contract) == pairs / 2 + n1 * making


@pytest.mark.parametrize("contract", CONTRACTS)
def test_operations_of_rows_that_are_held(contract: Contract) -> None:
    factor = DenseFactor({"a": torch.randn(7, 2, 3), "b": torch.randn(7, 2, 4, 5)})
    assert flops(factor, "dense", 3, 4, contract) == products(factor, "dense", 3, contract)
    assert flops(factor, "dense", 3, None, contract) == flops(factor, "dense", 3, 3, contract) / 2
    assert flops(UnusedFactor({"a": torch.Size([3])}, torch.ones(7, 2)), "unused", 3, 4, contract) == 0


def test_operations_of_tokens() -> None:
    """Every entry meets all samples: 2 n1 n2 times entries a sample times numbers, and pairs of outputs."""
    p, C, entries, N = 5, 2, 12, 4
    places = torch.arange(entries)
    factor = TokenFactor("w", torch.Size([9, p]), places // 3, places % 3, torch.ones(entries, C, p), N)
    for contract, pairs in (("full", C * C), ("trace", C), ("diagonal", C)):
        assert flops(factor, "join", 3, 4, contract) == 2 * 3 * 4 * 3 * p * pairs  # type: ignore[arg-type]
        assert flops(factor, "join", 3, None, contract) == 3 * 3 * 3 * p * pairs  # type: ignore[arg-type]
    T, d = 6, 5
    head = OuterFactor(torch.ones(N, T, 1, d), torch.ones(N, C, T, 1, 9), "w", None, torch.Size([9, d]))
    tied = TiedFactor(factor, head)
    join = 2 * 3 * 4 * 3 * p * C * C
    assert flops(tied, "materialise", 3, 4) == flops(head, "materialise", 3, 4)
    assert flops(tied, "ghost", 3, 4) == flops(head, "ghost", 3, 4) + join + 2 * join * T * d / p


def test_bytes_beside_rows() -> None:
    """Of a linear layer its output gradients, rearranged; of a convolution twice its patches, or the library's own."""
    linear = factor_of("positions", 4)
    assert linear.temporary_bytes(4, 700) == 700 * 3 // 7
    patches = factor_of("conv1d", 4)
    assert isinstance(patches, ConvFactor)
    assert patches.by_patches
    assert patches.temporary_bytes(4, 700) == 2 * 4 * 5 * 6 * 4  # n T d' numbers of 4 bytes, twice
    assert patches.temporary_bytes(10**9, 700) == 2 * 2**22 * 4
    groups = factor_of("groups", 4)
    assert isinstance(groups, ConvFactor)
    assert not groups.by_patches
    assert groups.temporary_bytes(4, 700) == 700 + 4 * (6 * 5 + 2 * 4 * 3) * 4  # one image, maps of two outputs


def test_bytes_that_are_held_once() -> None:
    """Two uses of one tensor, and a view of a part; by samples, whatever number was captured."""
    a = torch.zeros(4, 1, 1, 6)
    first = OuterFactor(a, torch.zeros(4, 2, 1, 1, 5), "w", None, torch.Size([5, 6]))
    seen: dict[int, Tensor] = {}
    assert first.held_bytes(8, seen) == (8 * (6 + 10) * 4, 8 * 6 * 4)
    second = OuterFactor(a, torch.zeros(4, 2, 1, 1, 3), "v", None, torch.Size([3, 6]))
    assert second.held_bytes(8, seen) == (8 * 6 * 4, 0)
    part = OuterFactor(torch.zeros(9, 1, 1, 6)[:4], torch.zeros(4, 2, 1, 1, 5), "u", None, torch.Size([5, 6]))
    assert part.held_bytes(8, {}) == (8 * (6 + 10) * 4, 8 * 6 * 4)


@pytest.mark.parametrize("numbers", [4095, 4096, 4097, 3 * 4096 - 1])
@pytest.mark.parametrize("rows", [(3, 4), (129, 2), (2, 129), (128, 128)])
def test_long_products_go_in_short_ones(numbers: int, rows: tuple[int, int]) -> None:
    """In stretches of equal length and what is left over, added to what is there or not."""
    left, right = (torch.randn(n, 1, numbers).double() for n in rows)
    expected = left[:, 0] @ right[:, 0].T
    for add in (False, True):
        out = torch.full(rows, 7.0).double()
        DensePiece("w", 0, left).tile(out, slice(None), DensePiece("w", 0, right), slice(None), "full", add=add)
        assert_same(out, expected + 7.0 * add, 1e-12, scale=float(numbers))


def layer(name: str, **known: Any) -> LayerPlan:
    """Every number another power of ten, so that a sum tells its parts."""
    known = {"held_bytes": 0, "kept_bytes": 0, "rows_bytes": 0, "gradient_bytes": 0, "tile_bytes": 0} | known
    return LayerPlan(
        parameters=(name + ".weight", name + ".bias"), rule="", form="ghost", flops=3, seconds=0.5, **known
    )


def plan_of(*layers: LayerPlan, **known: Any) -> KernelPlan:
    whole = {
        "shape": (10, 10), "samples": (10, 10), "num_outputs": 1, "contract": "full", "frozen": (), "keep_layers": True,
        "passes": (tuple(name for each in layers for name in each.parameters),), "batch": 10, "block_bytes": 0,
        "piece_bytes": 0, "graph_bytes": 0, "gradient_bytes": 0, "output_bytes": 0,
    } | known  # fmt: skip
    return KernelPlan(layers=layers, **whole)


def moments(plan: KernelPlan, place: int = 0) -> tuple[float, ...]:
    return plan._moments(place, plan.passes[place])


def test_the_moments_of_a_pass() -> None:
    """The last batch runs, samples are compared, rows are formed, the kernel is made; all data at once."""
    one = layer("a", held_bytes=10, kept_bytes=3, gradient_bytes=1000, tile_bytes=10**5)
    two = layer("b", held_bytes=20, kept_bytes=4, gradient_bytes=2000, tile_bytes=2 * 10**5)
    plan = plan_of(
        one, two, graph_bytes=10**6, gradient_bytes=10**8, output_bytes=10**9, piece_bytes=10**10, block_bytes=10**11
    )
    running, comparing, forming, making = moments(plan)
    assert running == 10**9 + 10 * 10**6 + (10 + 20 - 3 - 4) + 10**8
    assert comparing == 10**9 + 30 + 3000 + (CHECKED - 1) * 2000
    assert forming == 0
    assert plan.kernel_bytes == 3 * 10**11
    assert making == 10**9 + 30 + 3 * 10**11 + 10**10 + 2 * 10**5 + CHECKED * 2000
    assert plan.peak_bytes == int(ALLOCATED * making) + BASE_BYTES
    assert (plan.flops, plan.seconds, plan.held_bytes) == (6, 1.0, 30)
    small = plan_of(layer("a", held_bytes=100))
    assert small.peak_bytes == int(ALLOCATED * 100) + 100  # no more beside the tensors than they are


def test_the_moments_of_batches() -> None:
    """A fifth of what is captured; what earlier batches left; rows instead of captured tensors where they are fewer."""
    rows = layer("a", held_bytes=1000, kept_bytes=500, rows_bytes=100, tile_bytes=60, gradient_bytes=7)
    held = layer("b", held_bytes=200, kept_bytes=0, rows_bytes=300, tile_bytes=40, gradient_bytes=5)
    plan = plan_of(rows, held, batch=2, graph_bytes=10**4, output_bytes=10**6, block_bytes=10**7)
    assert plan.condensed == {"a.weight", "a.bias"}
    assert plan.held_bytes == 100 + 200
    assert plan.tile_bytes == 40  # rows that are held need none
    running, comparing, forming, making = moments(plan)
    earlier = 300 * 0.8
    assert running == pytest.approx(10**6 + earlier + 2 * 10**4 + (1200 - 500) / 5, rel=1e-12)
    assert comparing == pytest.approx(10**6 / 5 + 1200 / 5 + 12 + (CHECKED - 1) * 7, rel=1e-12)
    assert forming == pytest.approx(10**6 + earlier + 1200 / 5 + (300 + 60 / 2) / 5, rel=1e-12)
    assert making == 10**6 + 300 + 3 * 10**7 + 40 + CHECKED * 7
    crossed = replace(plan, cross=True)  # a batch is a share of both sets together
    assert moments(crossed)[0] == pytest.approx(10**6 + 300 * 0.9 + 2 * 10**4 + (1200 - 500) / 10, rel=1e-12)
    whole = replace(plan, batch=10)
    assert (whole.condensed, whole.held_bytes, whole.tile_bytes) == (frozenset(), 1200, 60)
    assert not layer("c", held_bytes=5, rows_bytes=5).condensed
    assert not layer("c", held_bytes=5, rows_bytes=0).condensed


def test_the_moments_of_later_passes() -> None:
    """The kernel of earlier passes is there; without the blocks of layers, one block and what is added to it."""
    one, two = layer("a", held_bytes=10, gradient_bytes=3), layer("b", held_bytes=30, gradient_bytes=2)
    plan = plan_of(one, two, passes=(one.parameters, two.parameters), block_bytes=1000)
    assert plan.held_bytes == 30
    assert moments(plan, 0)[:2] == (10, 10 + 3 + (CHECKED - 1) * 3)
    assert moments(plan, 1)[:2] == (3000 + 30, 3000 + 30 + 2 + (CHECKED - 1) * 2)
    assert plan.peak_bytes == int(ALLOCATED * (30 + 3000 + 2 * CHECKED)) + 30 + 3000 + 2 * CHECKED
    assert replace(plan, keep_layers=False).kernel_bytes == 2000
    assert replace(plan, keep_layers=False, passes=((*one.parameters, *two.parameters),)).kernel_bytes == 1000


def test_batches_where_rows_are_much_less() -> None:
    """Captured beyond the limit, half of it saved: as many samples a batch as the limit holds."""
    much = layer("a", held_bytes=4 * CAPTURE_BYTES, rows_bytes=2 * CAPTURE_BYTES)
    assert plan_of(much, batch=100, samples=(100, 100)).condensing().batch == 25
    for other in (
        layer("a", held_bytes=4 * CAPTURE_BYTES, rows_bytes=2 * CAPTURE_BYTES + 1),
        layer("a", held_bytes=CAPTURE_BYTES, rows_bytes=1),
    ):
        assert plan_of(other, batch=100).condensing().batch == 100
    assert plan_of(layer("a", held_bytes=CAPTURE_BYTES + 1, rows_bytes=1), batch=100).condensing().batch == 99
    assert plan_of(layer("a", held_bytes=10**4 * CAPTURE_BYTES, rows_bytes=1), batch=100).condensing().batch == 1


def test_bytes_of_a_plan() -> None:
    """float32, two sets, three outputs: of each layer what it holds, its rows, a gradient; blocks and outputs."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    forms = {"0": "materialise", "2": "ghost"}
    x, x2 = torch.randn(5, 6), torch.randn(2, 6)
    plan = pb.tangent_kernel(model, x, x2=x2, contract="full", forms=forms).plan
    assert (plan.shape, plan.samples, plan.num_outputs, plan.cross) == ((15, 6), (5, 2), 3, True)
    first, last = plan.layers
    assert first.held_bytes == 7 * (6 + 3 * 4) * 4
    assert (first.rows_bytes, first.gradient_bytes) == (28 * 7 * 3 * 4, 28 * 4)
    assert (last.rows_bytes, last.gradient_bytes) == (0, 15 * 4)
    assert last.tile_bytes == 5 * 5 * (1 + 9) * 4
    assert plan.block_bytes == 15 * 6 * 4
    assert plan.piece_bytes == 28 * 7 * 3 * 4
    assert plan.output_bytes == 3 * 7 * 4
    assert plan.batch == 5
