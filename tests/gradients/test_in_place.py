"""Models that write over what they computed: activations, residual sums, slices, masks, views, buffers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback import reference
from tests.compare import assert_same
from tests.every_call import check_kernels, check_store, check_tangent
from tests.thinned import thinned

CE = nn.CrossEntropyLoss()
N, T, D = 5, 3, 4
Forward = Callable[["Block", Tensor], Tensor]


class Block(nn.Module):
    """Layers and parameters of every kind; what is done with them is the case's."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.body = forward
        self.a, self.b, self.c = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.qkv, self.head = nn.Linear(D, 3 * D), nn.Linear(D, 3)
        self.norm, self.instance = nn.LayerNorm(D), nn.InstanceNorm1d(D, affine=True)
        self.conv, self.up = nn.Conv1d(D, D, 1), nn.ConvTranspose1d(D, D, 1)
        self.token, self.gain = nn.Parameter(torch.randn(D)), nn.Parameter(torch.rand(D) + 0.5)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.recurrent, self.cell = nn.GRU(D, D, batch_first=True), nn.LSTMCell(D, D)
        self.table, self.slope = nn.Embedding(6, D), nn.PReLU(D)
        self.weight = nn.utils.parametrizations.weight_norm(nn.Linear(D, D))
        self.register_buffer("places", torch.zeros(N, T, dtype=torch.long))
        self.register_buffer("cache", torch.zeros(8, T, D))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x).mean(1))


CASES: dict[str, Forward] = {}


def case(forward: Forward) -> Forward:
    CASES[forward.__name__] = forward
    return forward


def mask(x: Tensor) -> Tensor:
    return x[..., 0] > 0  # (N, T), another one for every sample


@case
def relu_after_linear(m: Block, x: Tensor) -> Tensor:
    return F.relu_(m.b(F.relu(m.a(x), inplace=True)))


@case
def many_activations(m: Block, x: Tensor) -> Tensor:
    h = F.leaky_relu_(m.a(x), 0.2)
    h = F.hardtanh_(m.b(h), -2.0, 2.0)
    h = F.elu(m.c(h), inplace=True)
    h = F.silu(m.weight(h), inplace=True)
    return torch.sigmoid_(m.a(h).mul_(2))


@case
def instance_norm(m: Block, x: Tensor) -> Tensor:
    return F.relu_(m.instance(m.conv(x.mT))).mT


@case
def sum_of_two_layers(m: Block, x: Tensor) -> Tensor:
    y = m.a(x)
    y += m.b(x)
    return y


@case
def sum_of_the_same_layer(m: Block, x: Tensor) -> Tensor:
    y = m.a(x).mul_(0.5)
    y += m.a(y.clone())
    return y.add_(m.b(x), alpha=0.5)


@case
def residuals(m: Block, x: Tensor) -> Tensor:
    h = m.conv(x.mT)
    h += x.mT
    h = m.up(h.clone())
    h += x.mT
    h = m.instance(h)
    h += x.mT
    h = h.mT + 0
    n = m.norm(h)
    n += h
    a = m.attention(n, n, n, need_weights=False)[0]
    a += n
    r, last = m.recurrent(a)
    r += a
    last *= 0.5
    return r + last.transpose(0, 1)


@case
def token_at_masked_places(m: Block, x: Tensor) -> Tensor:
    h = m.a(x)
    h[mask(x)] = m.token
    return m.b(h)


@case
def token_in_a_slice(m: Block, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, 0] = m.token
    h[:, 1:, :2] = 0.0
    return m.b(h)


@case
def tokens_by_copy(m: Block, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, -1].copy_(m.token)
    h.masked_fill_(mask(x).unsqueeze(2), 0.5)
    return m.b(h)


@case
def scaled_queries(m: Block, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(*x.shape[:2], 3, -1).permute(2, 0, 1, 3)[0:1][0], m.b(x), m.c(x)
    q *= D**-0.5
    q = torch.softmax(q @ k.mT, -1) @ v
    q *= m.gain
    return q


@case
def gains_on_views(m: Block, x: Tensor) -> Tensor:
    qkv = m.qkv(x)
    q, v = qkv[..., :D], qkv[..., 2 * D :]
    q *= m.gain
    v += m.token
    v.sub_(m.gain).div_(m.gain)
    return q * v + qkv[..., D : 2 * D]


@case
def gain_in_place(m: Block, x: Tensor) -> Tensor:
    h = m.conv(x.mT).mT.contiguous()
    h *= m.gain
    h += m.token
    h /= m.gain + 2
    return h


@case
def views_of_an_output(m: Block, x: Tensor) -> Tensor:
    h = m.a(x)
    first, rest = h[:, :1], h[:, 1:]
    rest.mul_(0.5).add_(first.detach())
    flat = h.view(-1, D)
    flat[:, 0] = flat[:, 1] * 2
    return m.b(h)


@case
def into_a_buffer(m: Block, x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t in range(x.shape[1]):
        out[:, t] = m.a(x[:, t])
        out[:, t] += m.b(out[:, t - 1].clone())
    return out


@case
def into_a_view_of_a_buffer(m: Block, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, 0].copy_(x[:, 0])
    out.detach()[:, 1:] = x[:, 1:]
    return m.b(m.a(out).tanh_())


@case
def into_the_models_own(m: Block, x: Tensor) -> Tensor:
    m.cache[: len(x)] = x
    m.places[: len(x)] = (x[..., 0].abs() * 2).long().clamp_(max=5)
    return m.a(m.cache[: len(x)]) + m.table(m.places[: len(x)])


@case
def out_arguments(m: Block, x: Tensor) -> Tensor:
    held = torch.empty_like(x)
    torch.mul(x, 2, out=held)
    places = torch.empty(x.shape[:2], dtype=torch.long)
    torch.cumsum(mask(x).long(), 1, out=places)
    return m.a(held) + m.table(places)


@case
def tokens_filled_in(m: Block, x: Tensor) -> Tensor:
    places = torch.zeros(len(x), x.shape[1], dtype=torch.long)
    places[:] = mask(x).long() + 1
    h = m.table(places)
    h += m.a(x)
    return F.dropout(h, 0.5, training=False, inplace=True)


@case
def written_constants(m: Block, x: Tensor) -> Tensor:
    base = m.token.expand(len(x), 1, -1).clone()
    base += x[:, :1]
    late = m.gain.repeat(len(x), 1, 1)
    late.add_(x[:, :1])
    return m.a(torch.cat([base, late], 1))


@case
def shared_tensors_overwritten(m: Block, x: Tensor) -> Tensor:
    w = m.c.weight * 2
    first = x @ w.T
    w += m.b.weight
    return first + x @ w.T


@case
def spread_and_overwritten(m: Block, x: Tensor) -> Tensor:
    place = (m.token * 2).expand(x.shape[1], -1).clone().unsqueeze(0)
    h = place.expand_as(x).clone().mul_(x)
    return m.a(place.add_(1) + h).tanh_()


@case
def cells(m: Block, x: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), D)
    outputs = []
    for t in range(x.shape[1]):
        h, c = m.cell(x[:, t], (h, c))
        h = h.clone()
        h *= 0.9
        outputs.append(h)
    return torch.stack(outputs, 1)


@case
def slopes_and_norms(m: Block, x: Tensor) -> Tensor:
    h = m.slope(m.a(x).transpose(1, 2))
    h.add_(1)
    h = m.norm(h.mT)
    h.clamp_(-1, 1)
    return m.weight(h).neg_()


@case
def input_overwritten_where_only_shapes_matter(m: Block, x: Tensor) -> Tensor:
    h = m.a(x)
    y = h + m.token
    h.add_(1)
    z = h - m.gain
    h.mul_(2)
    return y + z + h


@case
def after_a_checkpoint(m: Block, x: Tensor) -> Tensor:
    h = torch.utils.checkpoint.checkpoint(lambda x: F.relu_(m.a(x)), x, use_reentrant=False)
    h += m.b(x)
    return h


def made(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    return Block(CASES[name]).double().eval(), torch.randn(N, T, D, dtype=torch.float64), torch.arange(N) % 3


FALLBACK = {
    "token_at_masked_places": {"token"},  # other places for every sample
    "written_constants": {"token", "gain"},  # what samples are written to was made of parameters
    "spread_and_overwritten": {"token"},
    "shared_tensors_overwritten": {"c.weight"},  # used twice, and another tensor the second time
    "input_overwritten_where_only_shapes_matter": {"token", "gain"},  # the recorded input is no longer there
}


@pytest.mark.parametrize("name", thinned(tuple(CASES)))
def test_equals_loops(name: str) -> None:
    """Every row, and which parameters only the fallback reaches."""
    model, x, y = made(name)
    state, data = {k: v.clone() for k, v in model.state_dict().items()}, x.clone()
    expected = reference.total_kernel(model, CE, x, y)
    found = pb.backward_kernel(model, CE, x, y)
    assert_same(found.total, expected)
    assert_same(pb.tangent_kernel(model, x).total, torch.einsum("ijcc->ij", reference.tangent_kernel(model, x)))
    by_fallback = {p for layer in found.plan.layers for p in layer.parameters if "fallback" in layer.rule}
    assert by_fallback == FALLBACK.get(name, set())
    assert torch.equal(x, data)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_masks_of_unequal_samples() -> None:
    """The first and the last sample have as many places as samples have on average: no axis holds the samples."""
    model, x, y = made("token_at_masked_places")
    for sample, count in enumerate((2, 1, 3, 2, 2)):
        x[sample, :, 0] = torch.where(torch.arange(T) < count, 1.0, -1.0) * x[sample, :, 0].abs()
    assert_same(pb.backward_kernel(model, CE, x, y).total, reference.total_kernel(model, CE, x, y))


class Residual(nn.Module):
    """A block of torchvision's kind, with instance norm."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.InstanceNorm2d(4, affine=True) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(channels, 4, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += self.norm3(self.down(x))
        return self.relu(out)


class Inverted(nn.Module):
    """A block of MobileNetV2's kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(inplace=True),
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU6(inplace=True),
            nn.Conv2d(4, 2, 1, bias=False),
            nn.BatchNorm2d(2),
        )
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.Hardsigmoid(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        h *= self.gate(h.clone())
        h += x
        return h


def resnet() -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(4, 3))
    return nn.Sequential(Residual(2, 2), Residual(4, 1), *head)


def mobile_net() -> nn.Module:
    stem = (nn.Conv2d(2, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU6(inplace=True))
    classify = (nn.Dropout(0.2, inplace=True), nn.Linear(2, 6), nn.Hardswish(inplace=True), nn.Linear(6, 3))
    return nn.Sequential(*stem, Inverted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *classify)


@pytest.mark.parametrize("make", [resnet, mobile_net])
def test_convolutional_networks(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x, y = make().double().eval(), torch.randn(N, 2, 5, 5, dtype=torch.float64), torch.arange(N) % 3
    check_kernels(model, CE, x, y)
    check_tangent(model, x)
    check_store(model, CE, (x, y), tmp_path / "store")
    plan = pb.backward_kernel(model, CE, x, y).plan
    assert not any("fallback" in layer.rule for layer in plan.layers)


def test_a_layer_of_ones_own() -> None:
    """The output of a registered layer is a view, and is written to."""

    class Own(nn.Linear):
        pass

    def rule(layer: Own, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        return {"weight": torch.einsum("ncto,nti->ncoi", gradient, x), "bias": gradient.sum(2)}

    pb.register_rule(Own, rule)
    model = nn.Sequential(Own(D, D), nn.ReLU(inplace=True), Own(D, 2)).double()
    x, y = torch.randn(N, T, D, dtype=torch.float64), torch.randn(N, T, 2, dtype=torch.float64)
    found = pb.backward_kernel(model, nn.MSELoss(), x, y)
    assert_same(found.total, reference.total_kernel(model, nn.MSELoss(), x, y))
    assert all("registered" in layer.rule for layer in found.plan.layers)


class Shared(nn.Module):
    """A constant of one row beside the samples, which a batch of one cannot tell from a row a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(D, D), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x + self.fc(torch.ones(1, D, dtype=x.dtype))))


def test_a_constant_of_one_row_is_no_sample() -> None:
    model, x, y = Shared().double(), torch.randn(N, D, dtype=torch.float64), torch.arange(N) % 2
    found = pb.backward_kernel(model, CE, x, y)
    assert_same(found.total, reference.total_kernel(model, CE, x, y))
    assert not any("fallback" in layer.rule for layer in found.plan.layers)


def test_a_model_that_torch_cannot_differentiate_is_named() -> None:
    """A layer's input is overwritten after it, so that loss.backward() fails as well."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(D, D), nn.Linear(D, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            z = self.second(h)
            h.mul_(2)
            return z + h[:, :3]

    model, x, y = Broken().double(), torch.randn(N, D, dtype=torch.float64), torch.arange(N) % 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        CE(model(x), y).backward()
    for call in (pb.backward_kernel, pb.GradientMatrix, pb.check_gradients):
        with pytest.raises(pb.UnsupportedError, match="overwrite what its backward pass needs, got .* output 0"):
            call(model, CE, x, y)
    with pytest.raises(pb.UnsupportedError, match="does not overwrite what its backward pass needs"):
        pb.tangent_kernel(model, x)
