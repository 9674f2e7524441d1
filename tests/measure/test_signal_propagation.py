"""Lengths, correlations and gradients of real networks against the same computed layer by layer, and against theory."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pullback as pb
from pullback.measure import NetworkSpec, signal_propagation
from pullback.measure.networks.layer_outputs import caught
from pullback.modules import MLP, initialise_weights
from pullback.theory import MeanField, backward_profile, signal_profile
from tests.compare import assert_same


def by_hand(model: nn.Sequential, x: Tensor) -> tuple[np.ndarray, list[Tensor]]:
    """q and c of every layer of a tanh network, (2, L), by loops over inputs, and h^l."""
    states, inputs = [], x
    for layer in model:
        states.append(layer.linear(inputs).detach())
        inputs = torch.tanh(states[-1])
    rows = []
    for h in states:
        lengths = [float(sum(v * v for v in row) / len(row)) for row in h]
        cosines = [
            float(a @ b / (a.norm() * b.norm())) for i, a in enumerate(h) for j, b in enumerate(h) if i != j
        ]  # fmt: skip
        rows.append((np.mean(lengths), np.mean(cosines)))
    return np.array(rows).T, states


def test_every_layer_by_hand() -> None:
    spec = NetworkSpec("tanh", 1.5, 0.2, depth=4, width=12, inputs=5)
    x = torch.randn(3, 5, dtype=torch.float64)
    found = signal_propagation(spec.build(7), x)
    (q, c), _ = by_hand(spec.build(7), x)
    assert found.q.value.numpy() == pytest.approx(q, rel=1e-12)
    assert found.c.value.numpy() == pytest.approx(c, rel=1e-12)
    assert found.layers == ("0.linear", "1.linear", "2.linear", "3.linear")
    assert found.num_seeds == 1
    same = signal_propagation(spec, x, seeds=1, seed=7)
    assert torch.equal(same.q.value, found.q.value)


@pytest.mark.slow
def test_backpropagation_written_out() -> None:
    """S1-25: delta^l = phi'(h^l) W^{l+1}^T delta^{l+1} and dL/dW^l = delta^l phi(h^{l-1})^T, by autograd to 1e-10.

    The same recursion of the whole matrix d h^L / d h^l gives the mean over directions of the measured gradients.
    """
    model = NetworkSpec("tanh", 1.5, 0.2, depth=4, width=6, inputs=5).build()
    x = torch.randn(2, 5, dtype=torch.float64)
    _, states = by_hand(model, x)
    with caught(model, 2, "test") as layers:
        model(x)
    u = torch.randn(2, 6, dtype=torch.float64)
    loss = (layers[-1].output * u).sum()
    outputs = [layer.output for layer in layers]
    gradients = torch.autograd.grad(loss, [*outputs, *(layer.linear.weight for layer in model)])
    delta = u
    for k in range(3, -1, -1):
        assert_same(gradients[k], delta, 1e-10)
        inputs = torch.tanh(states[k - 1]) if k else x
        assert_same(gradients[4 + k], delta.T @ inputs, 1e-10)
        delta = (delta @ model[k].linear.weight.detach()) * (1 - torch.tanh(states[k - 1]) ** 2) if k else delta
    measured = torch.stack([signal_propagation(model, x, seed=s).gradients.value for s in range(200)])
    jacobians = [torch.eye(6, dtype=torch.float64).expand(2, 6, 6)]
    for k in range(3, 0, -1):
        step = model[k].linear.weight.detach() * (1 - torch.tanh(states[k - 1]) ** 2)[:, None]  # (2, 6, 6)
        jacobians.insert(0, jacobians[0] @ step)
    expected = torch.stack([j.square().sum((1, 2)).mean() / 6 for j in jacobians])
    error = measured.std(0) / len(measured) ** 0.5
    assert ((measured.mean(0) - expected).abs() <= 3.5 * error + 1e-12).all()
    assert (measured[:, -1] - 1).abs().max() < 1e-12


@pytest.mark.slow
def test_lengths_average_themselves() -> None:
    """S1-08: the spread over networks falls like N^-1/2: by 2 from 250 to 1000 units."""
    spreads = [
        signal_propagation(NetworkSpec("tanh", 1.5, 0.3, depth=3, width=n), seeds=60, dtype=torch.float32).q.stderr
        for n in (250, 1000)
    ]
    ratios = (spreads[0] / spreads[1]).numpy()
    assert ((ratios > 1.5) & (ratios < 2.7)).all(), ratios


@pytest.mark.parametrize(("sigma_w", "c0"), [(0.9, 0.2), (1.3, 0.6), (2.5, 0.9), (2.5, -0.5)])
def test_correlations_follow_the_map(sigma_w: float, c0: float) -> None:
    """S1-09: within 3 / sqrt(N) of the map's iterates, layer by layer."""
    spec = NetworkSpec("tanh", sigma_w, 0.3, depth=6, width=1000)
    found = signal_propagation(spec, c0=c0, seeds=4, dtype=torch.float32).c.value
    known = signal_profile(spec.theory(), 6, c0=c0).c
    assert found.abs().max() <= 1
    assert np.abs(found.numpy() - known).max() < 3 / math.sqrt(1000)


def test_inputs_start_exactly() -> None:
    """The first layer of a linear network of orthonormal weights leaves q0 and c0 as they are."""
    spec = NetworkSpec("linear", 1.0, depth=3, width=40, weights="orthogonal")
    found = signal_propagation(spec, q0=2.5, c0=-0.3, seeds=2)
    assert found.q.value.numpy() == pytest.approx(np.full(3, 2.5), rel=1e-12)
    assert found.c.value.numpy() == pytest.approx(np.full(3, -0.3), rel=1e-12)
    assert found.gradients.value.numpy() == pytest.approx(np.ones(3), rel=1e-12)


def test_inputs_do_not_repeat_the_numbers_of_the_weights() -> None:
    """The inputs' plane against the one that the first numbers of the weights' own stream would span."""
    spec, seen = NetworkSpec("linear", 1.0, depth=1, width=50), []
    weights = spec.build(3)[0].linear.weight.detach().flatten()
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, x: seen.append(x[0].detach()) if isinstance(module, nn.Linear) else None
    )
    try:
        signal_propagation(spec, seeds=1, seed=3)
    finally:
        handle.remove()
    repeated = torch.linalg.qr(weights[:100].view(50, 2)).Q
    inputs = torch.linalg.qr(seen[0].T).Q
    assert torch.linalg.matrix_norm(repeated.T @ inputs, 2) < 0.6


def test_gradients_between_layers_of_other_widths() -> None:
    """S1-26: widths 1000, 400, 1200, 600 at tanh (1.3, 0.3) from q*, within 5 percent."""
    net = MeanField("tanh", 1.3, 0.3)
    model = MLP([500, 1000, 400, 1200, 600], "tanh")
    q0 = (net.q_star - 0.09) / 1.69
    x = torch.randn(8, 500)  # with a read-out each: 20 networks then know their mean to one percent
    x = x / x.square().mean(1, keepdim=True).sqrt() * q0**0.5
    found = signal_propagation(
        model, x, seeds=20, redraw=lambda m, s: initialise_weights(m, "gaussian", sigma_w=1.3, sigma_b=0.3, seed=s)
    )
    known = backward_profile(net, [1000, 400, 1200, 600])
    assert known == pytest.approx([0.49804, 1.32486, 0.46990, 1.0], abs=1e-5)
    assert found.gradients.value.numpy() == pytest.approx(known, rel=0.05)


def test_gradients_of_weights() -> None:
    """S1-27: E (dL/dW^l)^2 = E (dL/dh^l)^2 E phi(h^{l-1})^2 within 10 percent at 1000 units."""
    spec = NetworkSpec("tanh", 1.6, 0.2, depth=5, width=1000)
    net, known = spec.theory(), signal_profile(spec.theory(), 5)
    x = torch.randn(1, 1000)
    x = x / x.square().mean().sqrt()
    squares = []
    for seed in range(4):
        model = spec.build(seed, torch.float32)
        h = x
        for layer in model[:-1]:
            h = layer(h)
        loss = model[-1].linear(h) @ torch.randn(1000, generator=torch.Generator().manual_seed(seed + 100))
        loss.sum().backward()
        squares.append([float(layer.linear.weight.grad.square().mean()) for layer in model])
    for k in range(1, 5):
        expected = known.gradients[k] * net.second_moment(known.q[k - 1]).value
        assert np.mean(squares, 0)[k] == pytest.approx(expected, rel=0.1), k


def test_dropout_masks_differ_between_inputs() -> None:
    """Equal inputs come apart: c tends to c* < 1 of the theory with dropout; gradients follow chi_1 / keep_prob."""
    spec = NetworkSpec("tanh", 1.3, 0.3, depth=8, width=800, keep_prob=0.9)
    found = signal_propagation(spec, c0=1.0, seeds=20, dtype=torch.float32)
    known = signal_profile(spec.theory(), 8, c0=1.0)
    for profile, expected in ((found.q, known.q), (found.c, known.c), (found.gradients, known.gradients)):
        assert (np.abs(profile.value.numpy() - expected) <= 3 * profile.stderr.numpy() + 1e-12).mean() >= 0.95
    assert found.c.value[-1] < 0.8


def test_batch_norm_makes_gradients_explode() -> None:
    """The factor of the last layers, whose inputs have forgotten x, is the theory's for this batch."""
    spec = NetworkSpec("relu", 1.0, depth=20, width=400, batch_norm=True)
    x = torch.randn(32, 400, generator=torch.Generator().manual_seed(5))
    found = signal_propagation(spec, x, seeds=6, dtype=torch.float32).gradients.value
    growth = float((found[8] / found[18]) ** 0.1)
    assert growth == pytest.approx(pb.theory.batch_norm_gradient_factor("relu", 32), rel=0.05)
    assert growth > 1.3


def test_the_error_over_units_is_that_of_repeated_draws() -> None:
    """In the first layer, which has no random layers before it: spread over 80 networks, against one's error."""
    spec = NetworkSpec("tanh", 1.4, 0.3, depth=1, width=300, inputs=50)
    x = torch.randn(4, 50, dtype=torch.float64)
    ones = [signal_propagation(spec, x, seeds=1, seed=s) for s in range(80)]
    for name in ("q", "c"):
        values = torch.stack([getattr(p, name).value for p in ones])
        errors = torch.stack([getattr(p, name).stderr for p in ones])
        assert float(values.std()) == pytest.approx(float(errors.mean()), rel=0.3), name
    assert signal_propagation(nn.Linear(3, 1), torch.randn(2, 3)).q.stderr.isnan().all()


class Attention(nn.Module):
    """Attention alone: X <- P(X) X W, over tokens (T, d)."""

    def __init__(self, depth: int, d: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (
            nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(depth)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for query, key, value in zip(self.queries, self.keys, self.values, strict=True):
            x = torch.softmax(query(x) @ key(x).T / x.shape[1] ** 0.5, 1) @ value(x)
        return x


def test_tokens_that_collapse_are_inputs_whose_correlation_tends_to_one() -> None:
    """S1-71: the mean cosine of tokens is c of the tokens as inputs; it tends to 1 as the residual tends to 0."""
    model = initialise_weights(Attention(6, 64), "orthogonal", sigma_w=1.0).double()
    x = torch.randn(16, 64, dtype=torch.float64)
    found = signal_propagation(model, x)
    cosines = {n: float(c) for n, c in zip(found.layers, found.c.value, strict=True) if n.startswith("values")}
    residuals, state = [], x
    for k, (name, cosine) in enumerate(cosines.items()):
        seen = state @ model.values[k].weight.detach().T
        unit = seen / seen.norm(dim=1, keepdim=True)
        mean = (float((unit @ unit.T).sum()) - 16) / (16 * 15)
        assert cosine == pytest.approx(mean, abs=1e-12), name
        residuals.append(float((state - state.mean(0)).norm() / state.norm()))
        logits = (state @ model.queries[k].weight.T @ (state @ model.keys[k].weight.T).T / 8).detach()
        state = torch.softmax(logits, 1) @ seen
    values = list(cosines.values())
    assert residuals[0] > 0.9
    assert residuals[-1] < 1e-3
    rounding = 16 * torch.finfo(torch.float64).eps  # what is left of tokens that have become one
    assert all(b < max(a, rounding) for a, b in pairwise(residuals))
    assert abs(values[0]) < 0.1
    for residual, cosine in zip(residuals[1:], values[1:], strict=True):
        assert 0 <= 1 - cosine <= 1.2 * residual**2 * 16 / 15 + 1e-14  # 1 - c is the residual's square, to first order


def test_models_of_other_kinds_are_left_as_they_are() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 4 * 4, 5),
    )  # fmt: skip
    model[3].weight.requires_grad_(False)
    model[1].eval()
    x = torch.randn(4, 3, 8, 8)
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    state, modes = torch.random.get_rng_state(), [m.training for m in model.modules()]
    found = signal_propagation(model, x)
    assert found.layers == ("0", "3", "7")
    first = model[0](x).detach()
    assert float(found.q.value[0]) == pytest.approx(float(first.double().square().mean()), rel=1e-6)
    first = first.flatten(1)
    cosines = torch.nn.functional.cosine_similarity(first[:, None], first[None], dim=2)
    assert float(found.c.value[0]) == pytest.approx(float((cosines.sum() - 4) / 12), abs=1e-6)
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values(), strict=True))
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(grads, before[1], strict=True))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.slow
def test_frozen_models_and_gradients_through_maps() -> None:
    """Gradients of a convolution's maps by finite differences of <u, h^L>; no parameter needs a gradient."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double().requires_grad_(False)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found = torch.stack([signal_propagation(model, x, seed=s).gradients.value for s in range(300)])
    h = model[0](x)
    w = model[3].weight
    jacobian = w * (1 - torch.tanh(h).flatten(1)[:, None] ** 2)  # (2, 3, 8)
    expected = float(jacobian.square().sum((1, 2)).mean()) / 8
    assert abs(float(found[:, 0].mean()) - expected) < 4 * float(found[:, 0].std()) / 300**0.5


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("gpt2", "transformer.h.0.attn.c_attn", 9),
        ("llama", "model.layers.0.self_attn.q_proj", 15),
        ("bert_sequences", "bert.encoder.layer.0.attention.self.query", 14),
        ("albert", "albert.encoder.embedding_hidden_mapping_in", 15),
        ("t5", "encoder.block.0.layer.0.SelfAttention.q", 33),
        ("vit", "vit.embeddings.patch_embeddings.projection", 14),
        ("resnet", "resnet.embedder.embedder.convolution", 9),
    ],
)
def test_models_of_the_transformers_package(name: str, first: str, count: int) -> None:
    """Every module that has a matrix, GPT-2's own kind too, in the order of the calls; ALBERT's one layer twice."""
    from tests.stacks import models

    model, _, x, _ = getattr(models, name)(3, "eager")
    model = model.double().eval()
    found = signal_propagation(model, x)
    assert (found.layers[0], len(found.layers)) == (first, count)
    assert len(set(found.layers)) == count
    for profile in (found.q, found.c, found.gradients):
        assert torch.isfinite(profile.value).all()
    assert float(found.gradients.value[-1]) == pytest.approx(1, rel=1e-12)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_that_is_called_twice_is_two() -> None:
    shared = nn.Linear(4, 4).double()
    found = signal_propagation(nn.Sequential(shared, nn.Tanh(), shared), torch.randn(2, 4, dtype=torch.float64))
    assert found.layers == ("0", "0#2")


def test_redrawn_models_are_copies() -> None:
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()

    def redraw(copied: nn.Module, seed: int) -> None:
        for layer in copied:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()  # from torch's own state, which the seed has set

    x = torch.randn(2, 20)
    torch.random.set_rng_state(state)
    found, again = (signal_propagation(model, x, seeds=5, redraw=redraw) for _ in range(2))
    assert torch.equal(found.q.value, again.q.value)
    assert found.num_seeds == 5
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    assert torch.equal(state, torch.random.get_rng_state())
    lengths = []
    for seed in range(5):  # each network is that of its seed
        torch.manual_seed(seed)
        redraw(model, seed)
        lengths.append(signal_propagation(model, x).q.value)
    assert found.q.value == pytest.approx(torch.stack(lengths).mean(0), rel=1e-6)
    assert bool((found.q.stderr > 0).all())


def test_hooks_are_gone_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Flatten(0), nn.Unflatten(0, (3, 2)), nn.Linear(2, 2)).train()
    model[0].weight.data[0, 0] = math.inf
    state = torch.random.get_rng_state()
    with pytest.raises(
        pb.UnsupportedError, match=r"layer outputs \(2, …\) with the samples first, got \(3, 2\) of `3`"
    ):
        signal_propagation(model, torch.randn(2, 3))
    torch.random.set_rng_state(state)
    with pytest.raises(pb.InputError, match=r"expected finite signals, got NaN or infinity in `0`. Lower sigma_w"):
        signal_propagation(model[0:1], torch.randn(2, 3))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training


SPEC = NetworkSpec("tanh", 1.0, depth=2, width=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signal_propagation(SPEC, seeds=0), r"signal_propagation: expected `seeds` at least 1, got 0"),
        (lambda: signal_propagation(SPEC, q0=0), r"signal_propagation: expected `q0` above 0"),
        (lambda: signal_propagation(SPEC, c0=1.2), r"a correlation `c0` from -1 to 1, got 1.2"),
        (lambda: signal_propagation(SPEC, torch.zeros(1, 4)), r"two or more inputs in `x`, got 1"),
        (lambda: signal_propagation(SPEC, torch.full((2, 4), math.nan)), r"finite numbers in `x`"),
        (lambda: signal_propagation(SPEC, torch.zeros(3, 5)), r"`x` \(N, 4\), got \(3, 5\)"),
        (lambda: signal_propagation(SPEC, [torch.zeros(3, 4)]), r"`x` \(N, 4\), got list"),
        (lambda: signal_propagation(nn.Linear(2, 2)), r"`x` for a module, got None"),
        (lambda: signal_propagation(nn.Tanh(), torch.zeros(2, 2)), r"a model with linear or convolutional layers"),
        (lambda: signal_propagation("mlp", torch.zeros(2, 2)), r"an nn.Module or a NetworkSpec, got str"),
        (lambda: signal_propagation(nn.Linear(2, 2), torch.zeros(2, 2), seeds=3), r"`redraw` for more than one seed"),
        (
            lambda: signal_propagation(NetworkSpec("tanh", 1.0, depth=2, width=4, batch_norm=True)),
            r"`x`, the batch to normalise over, got None. Pass inputs \(N, width\)",
        ),
        (
            lambda: signal_propagation(NetworkSpec("tanh", 1.0, depth=2, width=4, inputs=1)),
            r"two or more input units for a pair, got 1",
        ),
        (
            lambda: signal_propagation(NetworkSpec("relu", 1e200, depth=4, width=4)),
            r"finite signals, got NaN or infinity in `1.linear`. Lower sigma_w or check the activation",
        ),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(pb.InputError, match=message):
        call()


class Changing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.which = nn.Linear(2, 2), nn.Linear(2, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.two(x) if self.which else self.one(x)


def test_redraws_with_other_layers() -> None:
    def redraw(model: nn.Module, seed: int) -> None:
        model.which = seed  # type: ignore[assignment]

    with pytest.raises(pb.InputError, match=r"the same layers in every network, got others for another seed"):
        signal_propagation(Changing(), torch.randn(2, 2), seeds=2, redraw=redraw)


@pytest.mark.gpu
def test_a_model_on_another_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = MLP([6, 20, 20, 3], "tanh").double()
    x = torch.randn(3, 6, dtype=torch.float64)
    here, there = signal_propagation(model, x), signal_propagation(copy.deepcopy(model).cuda(), x.cuda())
    for name in ("q", "c", "gradients"):
        assert_same(getattr(there, name).value.cpu(), getattr(here, name).value, 1e-9)
