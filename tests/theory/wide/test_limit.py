"""Limits of users' networks: against neural-tangents' numbers, against real wide networks, and refusals by name."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback as pb
from pullback._statistics import mean_and_stderr
from pullback.theory import convolutional_kernels, infinite_width_kernels, limit_of

F64 = torch.float64
KNOWN = json.loads((Path(__file__).parents[2] / "data" / "neural_tangents.json").read_text())
INPUTS = {kind: [torch.tensor(x, dtype=F64) for x in pair] for kind, pair in KNOWN["inputs"].items()}


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=F64)


class Dense(nn.Module):
    """A linear layer in the NTK parametrisation: numbers N(0, 1), scaled in the forward pass."""

    def __init__(self, inputs: int, outputs: int = 64, w: float = 1.4, b: float | None = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, dtype=F64))
        self.bias = None if b is None else nn.Parameter(torch.randn(outputs, dtype=F64))
        self.gain, self.b = w / math.sqrt(inputs), b

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None or self.b is None else self.b * self.bias
        return F.linear(x, self.gain * self.weight, bias)


class Conv(nn.Module):
    """A convolution in the NTK parametrisation."""

    def __init__(self, inputs: int, outputs: int = 64, w: float = 1.4, b: float = 0.1, **options: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3, dtype=F64))
        self.bias = nn.Parameter(torch.randn(outputs, dtype=F64))
        self.gain, self.b, self.mode = w / math.sqrt(9 * inputs), b, options.pop("mode", "same")
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "circular":
            x = F.pad(x, (1, 1, 1, 1), "circular")
        padding = "same" if self.mode == "same" else "valid"
        return F.conv2d(x, self.weight * self.gain, self.bias * self.b, padding=padding, **self.options)


class Residual(nn.Module):
    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Total(nn.Module):
    """Sum over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=(-2, -1))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mean(x, (2, 3))


class Leaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.01)


def network(name: str, m: int = 64) -> nn.Sequential:
    """The network of a name, with ``m`` units or channels."""

    def head(inputs: int = m) -> Dense:
        return Dense(inputs, 1, 1.2, 0.2)

    def norm(*shape: int) -> nn.LayerNorm:
        return nn.LayerNorm(shape, eps=1e-12, elementwise_affine=False)

    five = [each for k in range(5) for each in (Dense(m if k else 5, m, 2**0.5, 0.05), nn.ReLU())]
    first, image = Dense(5, m), Conv(3, m)
    pairs: dict[str, Callable[[], list[nn.Module]]] = {
        "relu_5": lambda: [*five, head()],
        "no_bias": lambda: [Dense(5, m, 1.1, None), pb.modules.activation_module("erf"), Dense(m, 1, 1.3, None)],
        **{
            f"{phi}_2": lambda phi=phi: [
                first, pb.modules.activation_module(phi), Dense(m, m), pb.modules.activation_module(phi), head()
            ]
            for phi in ("erf", "gelu", "sin")
        },
        "leaky_relu_2": lambda: [first, nn.LeakyReLU(), Dense(m, m), Leaky(), head()],
        "residual": lambda: [first, Residual(nn.ReLU(), Dense(m, m, 0.9, 0.3)), nn.ReLU(), head()],
        "layer_norm": lambda: [
            first, norm(m), nn.ReLU(), Dense(m, m), norm(m), pb.modules.activation_module("erf"), head()
        ],
        "conv_flatten": lambda: [
            image, nn.ReLU(), Conv(m, m, mode="circular"), pb.modules.activation_module("erf"), nn.Flatten(),
            head(24 * m),
        ],
        "conv_strided": lambda: [
            Conv(3, m, mode="valid", stride=(2, 1)), nn.ReLU(), Conv(m, m), nn.ReLU(), nn.Flatten(), head(4 * m)
        ],
        "conv_global": lambda: [image, nn.ReLU(), Conv(m, m), nn.ReLU(), Mean(), head()],
        "average_pool": lambda: [
            image, nn.ReLU(), nn.AvgPool2d(2), Conv(m, m), nn.ReLU(), nn.Flatten(), head(6 * m)
        ],
        "average_pool_overlap": lambda: [image, nn.ReLU(), nn.AvgPool2d((3, 2), (1, 2)), nn.Flatten(), head(6 * m)],
        "sum_pool": lambda: [
            image, nn.ReLU(), nn.AvgPool2d(2, divisor_override=1), Conv(m, m), nn.ReLU(), Total(), head()
        ],
        "residual_images": lambda: [
            image, Residual(nn.ReLU(), Conv(m, m)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head()
        ],
        "layer_norm_images": lambda: [image, norm(m, 4, 6), nn.ReLU(), nn.Flatten(), head(24 * m)],
    }  # fmt: skip
    return nn.Sequential(*pairs[name]()).double().eval()


def ones(model: nn.Module) -> dict[str, float]:
    """Standard deviations of layers in the NTK parametrisation."""
    return {name: 1.0 for name, _ in model.named_parameters()}


@pytest.mark.parametrize("name", KNOWN["networks"])
def test_numbers_of_neural_tangents(name: str) -> None:
    known, model = KNOWN["networks"][name], network(name)
    x1, x2 = INPUTS[known["input"]]
    found = limit_of(model, weights=ones(model))(x1, x2)
    for kernel, key in zip(found, ("nngp", "ntk"), strict=True):
        np.testing.assert_allclose(kernel, known[key], rtol=1e-6)


@pytest.mark.parametrize("name", ["relu_5", "residual", "conv_flatten", "average_pool", "residual_images"])
def test_one_set_is_two_that_are_the_same(name: str) -> None:
    model = network(name)
    limit, x = limit_of(model, weights=ones(model)), INPUTS[KNOWN["networks"][name]["input"]][0]
    for one, two in zip(limit(x), limit(x, x), strict=True):
        assert one == pytest.approx(two, rel=1e-12)
        assert np.array_equal(one, one.T)
        assert np.linalg.eigvalsh(one).min() > 0


def test_blocks_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("average_pool")
    limit, (x1, x2) = limit_of(model, weights=ones(model)), INPUTS["images"]
    whole = limit(x1, x2)
    monkeypatch.setattr("pullback.theory.wide.limit._ENTRIES", 4)
    for kernel, expected in zip((*limit(x1, x2), *limit(x1)), (*whole, *limit(x1, x1)), strict=True):
        assert kernel == pytest.approx(expected, rel=1e-12)


def test_the_named_kernels_are_limits_too() -> None:
    """The functions of settings and the reading of a network agree, in both parametrisations."""
    x = drawn(3, 5)
    for sigma_w, sigma_b in ((1.3, 0.2), (2**0.5, 0.0)):
        layers = [Dense(5, 16, sigma_w, sigma_b), nn.Tanh(), Dense(16, 16, sigma_w, sigma_b), nn.Tanh()]
        model = nn.Sequential(*layers, Dense(16, 1, sigma_w, sigma_b))
        found = limit_of(model, weights=ones(model))(x)
        for kernel, expected in zip(found, infinite_width_kernels("tanh", 2, sigma_w, sigma_b, x), strict=True):
            assert kernel == pytest.approx(expected, rel=1e-9)
    plain = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)).double()
    std = {f"{k}.weight": 1.5 / (40 if k else 5) ** 0.5 for k in (0, 2, 4)} | {f"{k}.bias": 0.3 for k in (0, 2, 4)}
    found = limit_of(plain, weights=std)(x)
    expected_kernels = infinite_width_kernels("relu", 2, 1.5, 0.3, x, parametrisation="standard", width=40)
    for kernel, expected in zip(found, expected_kernels, strict=True):
        assert kernel == pytest.approx(expected, rel=1e-9)
    images, m = drawn(2, 2, 3, 3), 30
    for pool in (True, False):
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(m, 1)] if pool else [nn.Flatten(), nn.Linear(9 * m, 1)]
        conv = nn.Sequential(nn.Conv2d(2, m, 3, padding=1), nn.Tanh(), nn.Conv2d(m, m, 3, padding=1), nn.Tanh(), *head)
        std = {
            name: 0.3 if name.endswith("bias") else 1.5 / math.sqrt(p[0].numel()) for name, p in conv.named_parameters()
        }
        expected_kernels = convolutional_kernels(
            "tanh", 2, 1.5, 0.3, images, parametrisation="standard", padding="zero",
            readout="mean" if pool else "flatten", channels=m,
        )  # fmt: skip
        for kernel, expected in zip(limit_of(conv, weights=std)(images), expected_kernels, strict=True):
            assert kernel == pytest.approx(expected, rel=1e-9)


def assert_within_the_scatter(make: Callable[[], nn.Module], x: Tensor, count: int, widest: float) -> None:
    """The tangent kernel of networks as torch draws them: mean within three standard errors of the limit's."""
    torch.manual_seed(0)
    kernels, limits = [], []
    for _ in range(count):
        model = make().double().eval()
        outputs = model(x[:1]).numel()
        kernels.append(pb.tangent_kernel(model, x).total / outputs)
        limits.append(torch.from_numpy(limit_of(model, weights="torch")(x)[1]))
    expected = limits[0]
    assert bool((torch.stack(limits) - expected).abs().max() < 1e-9 * expected.abs().max())
    mean, error = mean_and_stderr(torch.stack(kernels))
    assert float((error / expected.abs().max()).max()) < widest
    assert bool(((mean - expected).abs() < 3 * error + 1e-9).all()), (mean, expected, error)


class TokenNet(nn.Module):
    """Residual blocks with layer norm on tokens, positions averaged, a view and a squeeze, as people write them."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, m), nn.LayerNorm(m)
        self.up, self.down, self.head = nn.Linear(m, 2 * m), nn.Linear(2 * m, m), nn.Linear(m, 1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed((x - 0.5) * 2)
        h = h + self.drop(self.down(torch.relu(self.up(self.norm(h)))))
        h = h.mean(dim=1)
        return self.head(h.view(h.size(0), -1)).squeeze(-1)


class Affine(nn.Sequential):
    """Group norm with trained gains and shifts on maps, RMS norm on vectors."""

    def __init__(self, m: int) -> None:
        super().__init__(
            nn.Conv2d(2, m, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(1, m), nn.GELU(),
            nn.Conv2d(m, m, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * m, m), nn.RMSNorm(m),
            nn.SiLU(), nn.Linear(m, 2),
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["tokens", pytest.param("affine", marks=pytest.mark.slow)])
def test_real_networks_scatter_around_their_limit(kind: str) -> None:
    if kind == "tokens":
        assert_within_the_scatter(lambda: TokenNet(128), drawn(2, 4, 3), 12, 0.1)
    else:
        assert_within_the_scatter(lambda: Affine(128), drawn(2, 2, 4, 6), 40, 0.1)


def test_measured_variances_and_what_is_frozen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 2000), nn.ReLU(), nn.Linear(2000, 1, bias=False))
    pb.modules.initialise_weights(model, "he", seed=1)
    x = drawn(3, 6)
    limit = limit_of(model)
    assert "sigma_w = 1.4" in str(limit)
    known = {"0.weight": (2 / 6) ** 0.5, "0.bias": 0.0, "2.weight": (2 / 2000) ** 0.5}
    exact = limit_of(model, weights=known)(x)
    for found, expected in zip(limit(x), exact, strict=True):
        assert found == pytest.approx(expected, rel=0.06)  # 12,000 weights: 3 sqrt(2 / 2000)
    frozen = nn.Sequential(nn.Linear(6, 2000), nn.ReLU(), nn.Linear(2000, 1, bias=False))
    frozen.load_state_dict(model.state_dict())
    for p in frozen[0].parameters():
        p.requires_grad_(False)
    last = limit_of(frozen, weights=known)(x)
    assert last[0] == pytest.approx(exact[0])
    assert last[1] == pytest.approx(exact[0] * 2000 / 2)  # the read-out's own part alone
    before = limit(x)[1]
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert limit(x)[1] == pytest.approx(before)  # as it was when it was read


def test_the_wide_network_of_this_package() -> None:
    """S4-05 and S4-12: outputs of random signs that are not trained, or are."""
    x, fixed, trained = (
        drawn(4, 3),
        *(pb.modules.WideNetwork(3, [4000], "tanh", train_output=each, dtype=F64).eval() for each in (False, True)),
    )
    nngp, parts = infinite_width_kernels("tanh", 1, 1.0, 0.0, x, by_layer=True)
    for model, ntk in ((fixed, parts[0]), (trained, parts.sum(0))):
        found = limit_of(model, weights={"layers.0.weight": 1.0})(x)
        assert found[0] == pytest.approx(nngp, rel=1e-9)
        assert found[1] == pytest.approx(ntk, rel=1e-9)
        assert pb.tangent_kernel(model, x).total.numpy() == pytest.approx(found[1], abs=0.1)


def test_branches_with_means_and_other_signs() -> None:
    """Sums of branches that are not around 0 have their means in common: against many networks."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 300), nn.Linear(3, 300), nn.Linear(300, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.a(x)) - 0.5 * F.softplus(self.b(x)) / 2)

    x, found, features = drawn(2, 3), [], []
    torch.manual_seed(0)
    for _ in range(30):
        model = Branches().double()
        found.append(pb.tangent_kernel(model, x).total)
        features.append(limit_of(model, weights="torch")(x)[1])
    mean, error = mean_and_stderr(torch.stack(found))
    assert bool(((mean - torch.from_numpy(features[0])).abs() < 3 * error).all())
    assert float(error.max()) < 0.03 * float(mean.max())


class Written(nn.Module):
    """One network written in two ways: modules, or calls with settings of every kind."""

    def __init__(self, *, calls: bool) -> None:
        super().__init__()
        self.calls = calls
        self.first, self.second = nn.Conv2d(2, 6, 3, padding=(2, 1), stride=(1, 2)), nn.Conv2d(6, 4, (2, 3), dilation=2)
        self.third = nn.Conv2d(6, 4, (2, 3), dilation=2, padding="same", padding_mode="circular")
        self.head = nn.Linear(4, 1)
        self.pool = nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)
        self.register_buffer("mean", torch.tensor([0.3, 0.7]))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean.view(1, 2, 1, 1)) / 0.5
        if not self.calls:
            h = torch.tanh(self.first(x))
            h = nn.functional.gelu(self.third(self.pool(h)))
            return self.head(torch.flatten(h.mean((-1, -2)), 1) * 2.0)
        w, b = self.first.weight, self.first.bias
        h = F.conv2d(F.pad(x, (1, 1, 2, 2)), w, b, (1, 2)).tanh()
        h = F.avg_pool2d(h, kernel_size=3, stride=2, padding=1, count_include_pad=False)
        h = F.pad(h, (2, 2, 1, 1), mode="circular")
        h = F.gelu(F.conv2d(h, self.third.weight, bias=self.third.bias, dilation=2))
        h = F.adaptive_avg_pool2d(h, 1)
        h = h.reshape(h.shape[0], -1)
        return 2 * h @ self.head.weight.t() + self.head.bias


def test_two_ways_of_writing_one_network() -> None:
    torch.manual_seed(0)
    x = drawn(2, 2, 6, 7)
    plain, calls = (Written(calls=each).double().eval() for each in (False, True))
    calls.load_state_dict(plain.state_dict())
    assert torch.allclose(plain(x), calls(x))
    for one, other in zip(limit_of(plain)(x), limit_of(calls)(x), strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_the_network_is_only_read() -> None:
    model = TokenNet(8).double().eval()
    seen: list[Any] = []
    model.up.register_forward_hook(lambda *a: seen.append(a))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    limit_of(model, weights="torch")(drawn(2, 4, 3))
    assert not seen
    assert len(model.up._forward_hooks) == 1
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.relu(self.inner(x)))


class Shared(nn.Module):
    """A signal added to a function of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.out(h + torch.relu(h))


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(x)
        return h * torch.sigmoid(h)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.layer(x) + other


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *layers)


VECTORS, IMAGES = torch.ones(2, 4), torch.ones(2, 3, 6, 6)
CONV = nn.Conv2d(3, 8, 3, padding=1)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (chain(nn.BatchNorm1d(8), nn.ReLU()), VECTORS, r"limit of infinite width, got BatchNorm1d `1`\. See"),
        (chain(nn.BatchNorm1d(8).train(), nn.ReLU()), VECTORS, r"got BatchNorm1d `1`"),
        (nn.Sequential(CONV, nn.ReLU(), nn.MaxPool2d(2)), IMAGES, r"got MaxPool2d `2`"),
        (chain(nn.Softmax(1)), VECTORS, r"got Softmax `1`"),
        (nn.Sequential(chain(nn.ReLU()), nn.LSTM(8, 4)), VECTORS, r"got LSTM `1`"),
        (nn.Sequential(nn.Embedding(4, 3)), VECTORS, r"got Embedding `0`"),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.ones(2, 3, 8), r"limit_of: expected"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), IMAGES, r"got ConvTranspose2d `0`"),
        (nn.Sequential(CONV, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)), IMAGES, r"a single channel in a group `2`"),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), torch.ones(2, 4, 6, 6), r"with groups of input channels, `0`"),
        (chain(nn.ReLU(), nn.Tanh()), VECTORS, r"got tanh of units that are not Gaussian .*, `2`"),
        (chain(nn.PReLU(8)), VECTORS, r"got prelu with weights of its own, `1`"),
        (chain(nn.AvgPool1d(2)), VECTORS, r"got pooling of what has no positions, `1`"),
        (chain(nn.AdaptiveAvgPool1d(1)), VECTORS, r"got a mean over units, `1`"),
        (chain(nn.ZeroPad2d(1)), VECTORS, r"got padding of what has no positions, `1`"),
        (chain(nn.Conv1d(8, 2, 1)), VECTORS, r"got a convolution of what has no such positions, `1`"),
        (nn.Sequential(nn.Conv1d(3, 2, 1)), IMAGES, r"a convolution over 1 axes with inputs \(1, 3, 6, 6\), `0`"),
        (nn.Sequential(CONV, nn.Flatten(), nn.LayerNorm(288)), IMAGES, r"LayerNorm of flattened positions, `2`"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), VECTORS, r"Linear whose weights are made of other"),
        (nn.Sequential(CONV, nn.ReLU(), nn.AdaptiveAvgPool2d(2)), IMAGES, r"to more than one position `2`"),
        (nn.Sequential(CONV, nn.ReLU(), nn.AvgPool2d(4, ceil_mode=True)), IMAGES, r"whole windows, got ceil_mode=True"),
        (nn.Sequential(CONV, nn.LayerNorm(6)), IMAGES, r"LayerNorm over some of the positions, `1`"),
        (nn.Sequential(CONV, nn.Flatten(2)), IMAGES, r"flattening of axes 2 to -1, `1`"),
        (nn.Sequential(CONV, nn.Linear(6, 2)), IMAGES, r"a linear layer over an axis of positions, `1`"),
        (Twice(), VECTORS, r"weights `inner.weight` used twice, by `inner`"),
        (Shared(), VECTORS, r"a sum of branches that share the units of `inner.weight`"),
        (Gated(), VECTORS, r"got mul of several signals or weights,"),
        (chain(nn.Tanh()), VECTORS, r"an output that a layer with random weights makes, got a function of such"),
        (pb.modules.WideNetwork(4, [8], output="swish"), VECTORS, r"an output that a layer with random weights makes"),
        (pb.modules.WideNetwork(4, [8], output="softmax"), VECTORS, r"got Softmax `output`"),
        (chain(nn.Dropout(0.5)).train(), VECTORS, r"a model in eval mode, got Dropout `1` in train"),
    ],
)  # fmt: skip
def test_layers_without_a_limit_are_named(model: nn.Module, x: Tensor, message: str) -> None:
    model = model if "eval mode" in message else model.eval()
    with pytest.raises(pb.PullbackError, match=message):
        limit_of(model)(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: limit_of(torch.relu), r"limit_of: expected a module, got builtin"),
        (lambda: limit_of(Decides()), r"a model whose calls its code alone shows, got TraceError"),
        (lambda: limit_of(nn.Linear(4, 2), weights="he"), r"`weights` to be one of 'measured', 'torch', got 'he'"),
        (lambda: limit_of(nn.Linear(4, 2), weights={"w": 1.0}), r"parameters in `weights` among weight, bias"),
        (lambda: limit_of(nn.Linear(4, 2), weights={"bias": -1.0}), r"at least 0 in `weights`, got -1.0 for 'bias'"),
        (lambda: limit_of(nn.Linear(4, 2))(torch.ones(4)), r"finite `x1` \(N, ...\), got shape \(4,\)"),
        (lambda: limit_of(nn.Linear(4, 2))(VECTORS * math.nan), r"finite `x1` .*, got NaN or infinity"),
        (lambda: limit_of(nn.Linear(4, 2))(VECTORS, torch.ones(1, 3)), r"expected `x2` \(N2, 4\), got \(1, 3\)"),
        (lambda: limit_of(nn.Linear(4, 2))(torch.ones(3, 5)), r"expected inputs with 4 units for .*, got 5\. Pass"),
        (lambda: limit_of(nn.Sequential(CONV, nn.ReLU()))(torch.ones(1, 2, 6, 6)), r"with 3 units for `0`, got 2\."),
        (lambda: limit_of(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))(IMAGES), r"with 4 units for `1`, got 108"),
        (lambda: limit_of(Calls(lambda m, x: m.layer(x.reshape(7, 4))))(VECTORS), r"inputs that .* takes, got"),
        (lambda: limit_of(TwoInputs()), r"got TypeError \(TwoInputs.forward\(\) missing 1 required"),
        (lambda: limit_of(nn.ReLU())(VECTORS), r"one tensor made by layers with random weights, .* got inputs"),
        (lambda: limit_of(nn.Sequential(CONV))(IMAGES), r"without positions, got positions \(6, 6\). Flatten"),
        (lambda: limit_of(ones_like(nn.Linear(40, 2)))(torch.ones(1, 40)), r"around 0 in `weight`, got a mean of 1"),
        (lambda: limit_of(ones_like(nn.Linear(40, 2), math.inf)), r"expected finite numbers in `weight`"),
        (
            lambda: limit_of(nn.Sequential(CONV, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))(
                torch.zeros(1, 3, 91, 91)
            ),
            r"at most 8192 pixels where a layer mixes them, got 8281",
        ),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


class Calls(nn.Module):
    """A call of a user's own on the inputs, on what a linear layer or a convolution makes of them, and on weights."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.layer, self.conv, self.call = nn.Linear(4, 4), nn.Conv2d(3, 4, 3, padding=1), call
        self.w, self.narrow = nn.Parameter(torch.randn(4, 4)), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.call(self, x)
        return found


CALLS = {
    "add of inputs": (lambda m, x: m.layer(x + m.w[0]), VECTORS, r"got getitem of weights,"),
    "inputs and weights": (lambda m, x: m.layer(x + m.layer.bias), VECTORS, r"got a sum of inputs and weights,"),
    "matrix added": (lambda m, x: m.layer(x) + m.w, VECTORS, r"got a sum with weights \(4, 4\),"),
    "number added": (lambda m, x: m.layer(x) + 1.0, VECTORS, r"got a sum of units and a number,"),
    "sizes": (lambda m, x: m.conv(x) + m.narrow(x), IMAGES, r"got a sum of positions \(6, 6\) and \(4, 4\),"),
    "divided": (lambda m, x: m.layer(x) @ (2 / m.w), VECTORS, r"got a number divided by weights,"),
    "real": (lambda m, x: m.layer(x) @ m.w.real, VECTORS, r"got `real` of weights,"),
    "exponential": (lambda m, x: m.layer(x) @ m.w.exp(), VECTORS, r"got exp of weights,"),
    "joined": (lambda m, x: torch.cat([m.layer(x), x], 1), VECTORS, r"got cat,"),
    "mean of units": (lambda m, x: m.layer(x).mean(1), VECTORS, r"got mean over axes \[1\],"),
    "viewed": (lambda m, x: m.layer(x).view(-1, 2, 2), VECTORS, r"got view to other than \(N, -1\),"),
    "pooled": (lambda m, x: F.adaptive_avg_pool2d(m.conv(x), 2), IMAGES, r"adaptive_avg_pool2d to more than one"),
    "padded with ones": (lambda m, x: F.pad(m.conv(x), (1, 1), value=1.0), IMAGES, r"got padding with 1.0,"),
    "dropout": (lambda m, x: F.dropout(m.layer(x), training=True), VECTORS, r"expected dropout in eval mode, got"),
    "squeezed": (lambda m, x: m.conv(x).squeeze(), IMAGES, r"got squeeze of positions,"),
    "cumulated": (lambda m, x: m.layer(x).cumsum(1), VECTORS, r"got cumsum,"),
    "no weights": (lambda m, x: m.layer(x) @ m.layer(x).T, VECTORS, r"limit_of: expected"),
    "linear of itself": (lambda m, x: F.linear(m.layer(x), m.layer(x)), VECTORS, r"used twice, by"),
    "slopes": (lambda m, x: F.prelu(m.layer(x), m.w[0]), VECTORS, r"got getitem of weights,"),
    "two sides": (lambda m, x: m.layer(x) / x, VECTORS, r"got truediv of several signals or weights,"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_without_a_limit_are_named(name: str) -> None:
    call, x, message = CALLS[name]
    with pytest.raises(pb.UnsupportedError, match=message):
        limit_of(Calls(call).eval())(x)


def ones_like(model: nn.Module, value: float = 1.0) -> nn.Module:
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.LayerNorm(5), (3, 5)), (nn.LayerNorm(5), (3, 4, 5)), (nn.RMSNorm(5), (3, 4, 5)),
                        (nn.GroupNorm(1, 2), (3, 2, 4, 6)), (nn.LayerNorm((2, 4, 6)), (3, 2, 4, 6))], ids=str,
)  # fmt: skip
def test_a_norm_of_the_inputs_is_taken_of_their_numbers(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """As if the inputs had come so; the norm's own gain and shift are left out of what is trained."""
    first = nn.Conv2d(2, 64, 3, padding=1) if len(shape) == 4 else nn.Linear(5, 64)
    flat = [nn.Flatten()] * (len(shape) > 2)
    rest = (first, nn.ReLU(), *flat, nn.Linear(64 * {2: 1, 3: 4, 4: 24}[len(shape)], 1))
    x = 3 * drawn(*shape) + 1
    norm = norm.double().requires_grad_(False)
    whole, plain = nn.Sequential(norm, *rest).double(), nn.Sequential(*rest).double()
    limits = (limit_of(whole)(x), limit_of(plain)(norm(x)))
    for found, expected in zip(*limits, strict=True):
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("kind", "phi", "slope"), [
    (nn.Tanh, np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    (nn.ReLU, lambda u: u.clip(0), lambda u: 1.0 * (u > 0)),
])  # fmt: skip
def test_torchs_weights_over_one_input_are_uniform(
    kind: type[nn.Module], phi: Callable[[Any], Any], slope: Callable[[Any], Any]
) -> None:
    """Means over w and b on a grid; Gaussian weights are 2 to 11 percent off here."""
    model, x = nn.Sequential(nn.Linear(1, 40), kind(), nn.Linear(40, 1)), torch.tensor([[0.5], [-2.0], [3.0]])
    nngp, ntk = limit_of(model, weights="torch")(x)
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    units = [grid[:, None] * v + grid for v in x[:, 0].tolist()]
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        squares, slopes = (float((f(units[i]) * f(units[j])).mean()) for f in (phi, slope))
        first = float(x[i, 0] * x[j, 0]) + 1  # of the first layer's weight and bias
        assert math.isclose(nngp[i, j], squares / 3 + 1 / 120, rel_tol=2e-4)
        assert math.isclose(ntk[i, j], 40 * squares + 1 + slopes * first / 3, rel_tol=2e-4)


def test_torchs_weights_in_a_filter_are_those_of_a_layer_of_its_size() -> None:
    x = drawn(4, 2, 3)
    layer = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
    filtered = nn.Sequential(nn.Conv1d(2, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 1))
    for a, b in zip(limit_of(layer, weights="torch")(x), limit_of(filtered, weights="torch")(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_units_are_drawn_for_nothing_but_what_the_first_layer_makes() -> None:
    """Behind a norm, and over many inputs, they count as Gaussian, of the variances torch draws."""
    for model, inputs in (
        (nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1)), 3),
        (nn.Sequential(nn.Linear(33, 8), nn.Tanh(), nn.Linear(8, 1)), 33),
    ):
        x, spread = drawn(3, inputs), dict[str, float]()
        for name, layer in ((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)):
            spread |= dict.fromkeys((f"{name}.weight", f"{name}.bias"), (3 * layer.in_features) ** -0.5)
        for a, b in zip(limit_of(model, weights="torch")(x), limit_of(model, weights=spread)(x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
