"""Kernels of convolutional networks against loops over pixels, fully connected ones, and real wide networks."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback._statistics import mean_and_stderr
from pullback.theory import convolutional_kernels, infinite_width_kernels
from pullback.theory.expectations.activations import BUILT_IN
from pullback.theory.expectations.gaussian import pair_mean


def drawn(*, size: tuple[int, ...]) -> Any:
    """The same numbers for one shape, whatever ran before."""
    return np.random.default_rng(sum(size)).normal(size=size)


@pytest.mark.parametrize("activation", ["relu", "erf", "hard_tanh"])
@pytest.mark.parametrize("options", [("ntk", None), ("standard", 300)])
@pytest.mark.parametrize("readout", ["flatten", "mean"])
def test_one_pixel_is_a_fully_connected_network(activation: str, options: Any, readout: str) -> None:
    parametrisation, width = options
    x1, x2 = drawn(size=(3, 5)), drawn(size=(2, 5))
    expected = infinite_width_kernels(activation, 2, 1.4, 0.2, x1, x2, parametrisation, width=width)
    for shape in ((1, 1), (1,)):
        images = (x.reshape(len(x), 5, *shape) for x in (x1, x2))
        found = convolutional_kernels(
            activation, 2, 1.4, 0.2, *images, parametrisation, kernel_size=1, readout=readout, channels=width
        )
        for kernel, other in zip(found, expected, strict=True):
            assert kernel == pytest.approx(other, rel=1e-12)


def loops(
    name: str,
    depth: int,
    sigma_w: float,
    sigma_b: float,
    x: Any,
    y: Any,
    padding: str,
    readout: str,
    fan_in: int | None,
) -> tuple[float, float]:
    """One entry of both kernels, pixel by pixel and one expectation at a time, by the definition."""
    phi, size = BUILT_IN[name], x.shape[1:]
    pixels = list(product(*map(range, size)))

    def at(table: dict[Any, float], p: Any, q: Any) -> float:
        """Mean over the filter's offsets."""
        total = 0.0
        for offset in product((-1, 0, 1), repeat=len(size)):
            moved = [tuple(a + d for a, d in zip(each, offset, strict=True)) for each in (p, q)]
            if padding == "circular":
                moved = [tuple(a % n for a, n in zip(each, size, strict=True)) for each in moved]
            total += table.get(tuple(moved), 0.0)
        return total / 3 ** len(size)

    pairs = list(product(pixels, pixels))
    images = {"xy": (x, y), "xx": (x, x), "yy": (y, y)}
    second = {
        key: {(p, q): float(a[(slice(None), *p)] @ b[(slice(None), *q)]) / len(x) for p, q in pairs}
        for key, (a, b) in images.items()
    }
    tangent = dict.fromkeys(pairs, 0.0)

    def own(mean: float, terms: int, width: int) -> float:
        return sigma_w**2 * mean + sigma_b**2 if fan_in is None else width * terms * mean + 1

    for layer in range(depth):
        width, terms = len(x) if layer == 0 else (fan_in or 0), 3 ** len(size)
        kernel = {key: {pq: sigma_w**2 * at(table, *pq) + sigma_b**2 for pq in pairs} for key, table in second.items()}
        grown = {pq: own(at(second["xy"], *pq), terms, width) + sigma_w**2 * at(tangent, *pq) for pq in pairs}
        for p, q in pairs:
            for key in images:
                left, right = kernel["yy" if key == "yy" else "xx"][p, p], kernel["xx" if key == "xx" else "yy"][q, q]
                c = min(1.0, kernel[key][p, q] / math.sqrt(left * right))
                second[key][p, q] = pair_mean(phi.value, left, right, c, phi.kinks).value
                if key == "xy":
                    tangent[p, q] = grown[p, q] * pair_mean(phi.slope, left, right, c, phi.kinks).value
    chosen = pairs if readout == "mean" else [(p, p) for p in pixels]
    k, t = (sum(table[pq] for pq in chosen) / len(chosen) for table in (second["xy"], tangent))
    terms = 1 if readout == "mean" else len(pixels)
    return sigma_w**2 * k + sigma_b**2, own(k, terms, fan_in or 0) + sigma_w**2 * t


OPTIONS = tuple(product(("circular", "zero"), ("flatten", "mean"), (None, 40)))


@pytest.mark.parametrize(  # half of them hold every two options together
    ("padding", "readout", "channels"),
    [
        pytest.param(*options, marks=() if sum((number >> bit) & 1 for bit in range(3)) % 2 else pytest.mark.slow)
        for number, options in enumerate(OPTIONS)
    ],
)
def test_images_against_loops(padding: str, readout: str, channels: int | None) -> None:
    x, y = drawn(size=(2, 2, 1, 3))
    parametrisation = "ntk" if channels is None else "standard"
    found = convolutional_kernels(
        "tanh", 2, 1.5, 0.3, x[None], y[None], parametrisation, padding=padding, readout=readout, channels=channels
    )
    expected = loops("tanh", 2, 1.5, 0.3, x, y, padding, readout, channels)
    assert [float(kernel[0, 0]) for kernel in found] == pytest.approx(expected, rel=1e-9)


def test_sequences_against_loops() -> None:
    x, y = drawn(size=(2, 3, 4))
    found = convolutional_kernels("erf", 2, 1.5, 0.3, x[None], y[None], padding="zero", readout="mean")
    expected = loops("erf", 2, 1.5, 0.3, x, y, "zero", "mean", None)
    assert [float(kernel[0, 0]) for kernel in found] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("readout", ["flatten", "mean"])
def test_matrices_are_symmetric_positive_and_consistent(readout: str) -> None:
    x = drawn(size=(4, 3, 3, 4))
    whole = convolutional_kernels("relu", 3, 2**0.5, 0.1, x, readout=readout, padding="zero")
    part = convolutional_kernels("relu", 3, 2**0.5, 0.1, x, x[:2], readout=readout, padding="zero")
    for kernel, columns in zip(whole, part, strict=True):
        assert kernel == pytest.approx(kernel.T, rel=1e-12)
        assert np.linalg.eigvalsh(kernel).min() > 0
        assert columns == pytest.approx(kernel[:, :2], rel=1e-10)
    nngp, ntk = whole
    assert np.linalg.eigvalsh(ntk - nngp).min() > 0  # the read-out's own part of the tangent kernel


class Layer(nn.Module):
    """A convolution (or, on vectors, a matrix) with weights and biases N(0, 1) that are scaled in the forward pass."""

    def __init__(self, weight: Tensor, sigma_w: float, sigma_b: float, padding: str) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(torch.randn(len(weight), dtype=weight.dtype))
        self.gain, self.sigma_b, self.padding = sigma_w / math.sqrt(weight[0].numel()), sigma_b, padding

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.gain * self.weight, self.sigma_b * self.bias
        if weight.dim() == 2:
            return nn.functional.linear(x, weight, bias)
        mode = "circular" if self.padding == "circular" else "constant"
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), mode), weight, bias)


def network(padding: str, readout: str, channels: int, seed: int) -> nn.Sequential:
    """Two convolutions with tanh and a read-out, in the "ntk" parametrisation."""
    torch.manual_seed(seed)
    pixels = 9 if readout == "flatten" else 1
    shapes = ((channels, 2, 3, 3), (channels, channels, 3, 3), (1, channels * pixels))
    first, second, last = (Layer(torch.randn(shape, dtype=torch.float64), 1.5, 0.3, padding) for shape in shapes)
    pool = [nn.AdaptiveAvgPool2d(1)] if readout == "mean" else []
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), *pool, nn.Flatten(), last)


@pytest.mark.slow  # sixty networks
@pytest.mark.parametrize(("padding", "readout"), [("circular", "mean"), ("zero", "flatten")])
def test_real_networks(padding: str, readout: str) -> None:
    """Means over 60 networks of 96 channels, the NNGP kernel from the features, within three standard errors."""
    x = drawn(size=(2, 2, 3, 3))
    nngp, ntk = convolutional_kernels("tanh", 2, 1.5, 0.3, x, padding=padding, readout=readout)
    images, kernels, tangents = torch.from_numpy(x), [], []
    for seed in range(60):
        model = network(padding, readout, 96, seed)
        with torch.no_grad():
            features = model[:-1](images)
        kernels.append(1.5**2 * features @ features.T / features.shape[1] + 0.09)
        tangents.append(pb.tangent_kernel(model, images).total.reshape(2, 2))
    for found, expected in ((kernels, nngp), (tangents, ntk)):
        mean, error = (each.numpy() for each in mean_and_stderr(torch.stack(found)))
        assert (error < 0.05 * np.abs(expected).max()).all()
        assert (np.abs(mean - expected) < 3 * error).all(), (mean, expected, error)


def test_a_real_network_in_the_standard_parametrisation() -> None:
    """Torch's own convolutions with zero padding: the tangent kernel grows with the width."""
    x, channels, found = drawn(size=(2, 2, 3, 3)), 96, []
    _, expected = convolutional_kernels(
        "relu", 2, 2**0.5, 0.0, x, parametrisation="standard", padding="zero", channels=channels
    )
    for seed in range(40):
        model = nn.Sequential(
            nn.Conv2d(2, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(9 * channels, 1),
        ).double()  # fmt: skip
        pb.modules.initialise_weights(model, "he", seed=seed)
        found.append(pb.tangent_kernel(model, torch.from_numpy(x)).total.reshape(2, 2))
    mean, error = (each.numpy() for each in mean_and_stderr(torch.stack(found)))
    assert (error < 0.05 * expected.max()).all()
    assert (np.abs(mean - expected) < 3 * error).all(), (mean, expected, error)


IMAGE = np.ones((1, 2, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 1.0, 0.0, IMAGE), {}, r"convolutional_kernels: expected a `depth` of at least 1, got 0"),
        ((2, 0.0, 0.0, IMAGE), {}, r"convolutional_kernels: expected `sigma_w` above 0"),
        ((2, 1.0, 0.0, IMAGE[0, 0]), {}, r"expected finite `x1` \(N, C, H, W\) or \(N, C, T\), got shape \(3, 3\)"),
        ((2, 1.0, 0.0, IMAGE * math.nan), {}, r"expected finite `x1` .*, got NaN or infinity"),
        ((2, 1.0, 0.0, IMAGE, IMAGE[:, :1]), {}, r"expected `x2` \(N2, 2, 3, 3\), got \(1, 1, 3, 3\)"),
        ((2, 1.0, 0.0, IMAGE), {"kernel_size": 4}, r"expected an odd `kernel_size`, got 4"),
        ((2, 1.0, 0.0, IMAGE), {"kernel_size": 9}, r"expected a filter that reaches at most 3 pixels, got 4"),
        ((2, 1.0, 0.0, IMAGE), {"padding": "same"}, r"expected `padding` to be one of 'circular', 'zero'"),
        ((2, 1.0, 0.0, IMAGE), {"readout": "max"}, r"expected `readout` to be one of 'flatten', 'mean'"),
        ((2, 1.0, 0.0, IMAGE), {"channels": 8}, r"expected `channels` for the standard .*got 8. Leave it out"),
        (
            (2, 1.0, 0.0, IMAGE, None, "standard"),
            {"channels": 0},
            r"convolutional_kernels: expected `channels` of at least 1, got 0",
        ),
    ],
)
def test_bad_input(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        convolutional_kernels("tanh", *arguments, **options)
