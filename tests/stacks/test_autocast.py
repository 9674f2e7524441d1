"""Half precision: captured as the model computes, multiplied in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from pullback.functional.unwrap import without_autocast
from tests.compare import assert_different, assert_same
from tests.stacks.plain import LAYERS, LOSS, data, plain, unchanged

# Loop and kernel differ where each rounds. An entry of a gradient is a product of a layer input and an output
# gradient: the loop rounds the input to half precision, then the result, u each (u = eps / 2). The output gradients
# come from matrix products over one sample or over all, which may round to neighbours, 2 u, in each of the 3 linear
# layers. An entry of K is a product of two gradients: 2 (2 + 2 * 3) u.
LINEAR_LAYERS = 3


def half_tolerance(dtype: torch.dtype) -> float:
    return 2 * (2 + 2 * LINEAR_LAYERS) * torch.finfo(dtype).eps / 2


def cast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype: torch.dtype) -> None:
    model, (x, y) = plain(dtype=torch.float32), data(dtype=torch.float32)
    with unchanged(model), cast(dtype):
        kernel = pb.backward_kernel(model, LOSS, x, y)
    with cast(dtype):
        gradients = reference.gradient_matrix(model, LOSS, x, y)
    loop = gradients @ gradients.T
    assert kernel.total.dtype == torch.float32
    assert list(kernel.layers) == LAYERS
    assert_same(kernel.total, loop, half_tolerance(dtype))
    full = pb.backward_kernel(model, LOSS, x, y).total
    assert_different(kernel.total, full, torch.finfo(dtype).eps / 16)  # it is the half precision model's kernel


def test_products_are_made_in_float32() -> None:
    """The kernel of the recorded gradients to float32 rounding, whether or not autocast is on when it is made."""
    model, (x, y) = plain(dtype=torch.float32), data(dtype=torch.float32)
    with cast():
        kernel = pb.backward_kernel(model, LOSS, x, y)
        G = pb.GradientMatrix(model, LOSS, x, y)
        dense, by_product, rows = G.to_dense(), G.T @ torch.ones(6), kernel @ torch.ones(6)
        block = kernel.parameters["middle.weight"]
    exact = dense.double() @ dense.double().T
    assert_same(kernel.total, exact.float(), 1e-6)
    assert_same(by_product, dense.sum(0), 1e-6)
    assert_same(rows, kernel.total.sum(1), 1e-6)
    place = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("middle", "batch", "head")))
    part = dense[:, place : place + 64]
    assert_same(block, part @ part.T, 1e-6)
    with cast():
        assert_different((dense @ dense.T).float(), exact.float(), 1e-4)  # what the caller's autocast would make of it


def test_checks_still_see_coupled_samples() -> None:
    """Half precision's tolerance does not hide samples that act on each other."""

    class Coupled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain(dtype=torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x - x.mean(0))

    with cast(), pytest.raises(pb.UnsupportedError, match="samples whose gradients do not depend on the rest"):
        pb.backward_kernel(Coupled(), LOSS, *data(dtype=torch.float32))


def test_a_parameter_of_no_rule_under_autocast() -> None:
    """Gradients of batches of one are made under the same autocast."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.centres = plain(dtype=torch.float32), nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(self.inner(x).float(), self.centres)

    model, (x, y) = Odd(), data(dtype=torch.float32)
    with unchanged(model), cast():
        kernel = pb.backward_kernel(model, LOSS, x, y)
    with cast():
        gradients = reference.per_sample_gradients(model, LOSS, x, y)
    assert kernel.total.dtype == torch.float32
    assert "centres" in next(layer.parameters for layer in kernel.plan.layers if "fallback" in layer.rule)
    g = torch.cat([each.flatten(1) for each in gradients.values()], 1)
    assert_same(kernel.total, g @ g.T, half_tolerance(torch.bfloat16))
    centres = gradients["centres"].flatten(1)
    assert_same(
        kernel.parameters["centres"], centres @ centres.T, 4 * LINEAR_LAYERS * torch.finfo(torch.bfloat16).eps / 2
    )
    full = reference.per_sample_gradients(model, LOSS, x, y)["centres"].flatten(1)
    assert_different(kernel.parameters["centres"], full @ full.T, 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    """Weights and data in half precision; the kernel in float32."""
    model, (x, y) = plain(dtype=dtype), data(dtype=dtype)
    with unchanged(model):
        kernel = pb.backward_kernel(model, LOSS, x, y)
    gradients = reference.gradient_matrix(model, LOSS, x, y).float()
    assert kernel.total.dtype == torch.float32
    assert_same(kernel.total, gradients @ gradients.T, half_tolerance(dtype))


class Mixed(nn.Module):
    """A weight computed from parameters, one in a function no rule knows, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.inner, self.centres = nn.Linear(2, 2), plain(), nn.Parameter(torch.randn(3, 3))
        nn.utils.parametrizations.weight_norm(self.inner.middle)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.inner(x).float(), self.centres.float()).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_kind_of_parameter_in_half_precision(dtype: torch.dtype) -> None:
    model, (x, y) = Mixed().to(dtype).eval(), data(dtype=dtype)
    kernel = pb.backward_kernel(model, LOSS, x, y)
    gradients = reference.gradient_matrix(model, LOSS, x, y).float()
    assert {kernel.total.dtype, *(block.dtype for block in kernel.layers.values())} == {torch.float32}
    assert_same(kernel.total, gradients @ gradients.T, half_tolerance(dtype))
    rules = {name: layer.rule for layer in kernel.plan.layers for name in layer.parameters}
    assert rules["unused.weight"] == "unused"
    assert "fallback" in rules["centres"]
    assert "derived" in rules["inner.middle.parametrizations.weight.original1"]


def test_a_language_model_under_autocast() -> None:
    """Norms in float32 between products in bfloat16; two blocks of 7 products and a head above the first layer."""
    pytest.importorskip("transformers")
    from tests.stacks.models import stack

    model, loss_fn, x, y = stack("llama-sdpa").build(4)
    model = model.float()
    with cast():
        kernel = pb.backward_kernel(model, loss_fn, x, y)
        gradients = reference.gradient_matrix(model, loss_fn, x, y)
    assert kernel.total.dtype == torch.float32
    assert_same(kernel.total, gradients @ gradients.T, 2 * (2 + 2 * 15) * torch.finfo(torch.bfloat16).eps / 2)


def test_without_autocast() -> None:
    a = torch.randn(4, 4)
    with cast():
        assert (a @ a).dtype == torch.bfloat16
        with without_autocast():
            assert (a @ a).dtype == torch.float32
        assert without_autocast()(torch.matmul)(a, a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
