"""Samples that fight the others are drawn less: by hand, and undone by their weights."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch import Tensor

import pullback as pb
from pullback._rng import make_generator

# Cosines: 0 and 1 agree, 2 stands at right angles to 1 and against 0 by a half, 3 opposes 0 and 1.
G = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-0.5, math.sqrt(0.75)], [-2.0, 0.0]], dtype=torch.float64)
COSINE = [[1, 1, -0.5, -1], [1, 1, -0.5, -1], [-0.5, -0.5, 1, 0.5], [-1, -1, 0.5, 1]]


def conflict(i: int) -> float:
    return sum(max(0.0, -COSINE[i][j]) for j in range(4) if j != i) / 3


def test_probabilities_by_hand() -> None:
    sampler = pb.ConflictSampler(6, strength=3.0)
    assert sampler.probabilities().tolist() == [1 / 6] * 6
    sampler.update(G @ G.T, torch.tensor([4, 2, 0, 1]))
    expected = [conflict(2), conflict(3), conflict(1), 0, conflict(0), 0]
    assert sampler.conflict.tolist() == pytest.approx(expected, abs=1e-12)
    masses = [math.exp(-3 * c) for c in expected]
    assert sampler.probabilities().tolist() == pytest.approx([m / sum(masses) for m in masses], abs=1e-12)
    sampler.update(torch.eye(2), [4, 3])  # no conflict now: a fifth of the way there
    assert float(sampler.conflict[4]) == pytest.approx(0.8 * conflict(0))
    assert float(sampler.conflict[3]) == 0


def test_off_by_default() -> None:
    sampler = pb.ConflictSampler(50, seed=3)
    sampler.update(G @ G.T, [4, 2, 0, 1])
    for epoch in range(2):
        assert list(sampler) == torch.randperm(50, generator=make_generator(3 + epoch)).tolist()
    assert sampler.weights([0, 4]).tolist() == pytest.approx([1, 1])


def test_draws_follow_the_probabilities_and_weights_undo_them() -> None:
    sampler = pb.ConflictSampler(4, strength=2.0)
    sampler.update(G @ G.T, [0, 1, 2, 3])
    p = sampler.probabilities()
    assert float(p[3]) == float(p.min())
    drawn = torch.tensor([i for _ in range(5000) for i in sampler])
    shares = drawn.bincount(minlength=4) / len(drawn)
    stderr = (p * (1 - p) / len(drawn)).sqrt()
    assert ((shares - p).abs() < 4 * stderr).all()
    biased = p @ G
    unbiased = (p * sampler.weights([0, 1, 2, 3])) @ G
    assert torch.allclose(unbiased, G.mean(0), atol=1e-12)
    assert not torch.allclose(biased, G.mean(0), atol=1e-2)


def test_a_kernel_of_a_model() -> None:
    model, loss_fn = torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss()
    x, y = torch.randn(1, 3).expand(8, 3), torch.tensor([0, 1, 0, 0, 0, 0, 0, 0])  # one against seven
    sampler = pb.ConflictSampler(8, strength=5.0)
    sampler.update(pb.backward_kernel(model, loss_fn, x, y), list(range(8)))
    assert int(sampler.probabilities().argmin()) == 1
    assert float(sampler.conflict[1]) == pytest.approx(1, abs=1e-5)


def test_it_goes_on_where_it_stood_and_touches_no_random_state() -> None:
    state = torch.get_rng_state()
    one, other = (pb.ConflictSampler(20, strength=1.0, seed=5) for _ in range(2))
    one.update(G @ G.T, [4, 2, 0, 1])
    first = list(one)
    other.load_state_dict(one.state_dict())
    assert list(other) == list(one) != first
    assert len(list(islice(one, 7))) == 7
    assert len(one) == 20
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kernel", "indices", "message"),
    [
        (
            G @ G.T,
            [0, 1, 2],
            r"ConflictSampler.update: expected `indices` with a place of its own .* got 3 of them for 4",
        ),
        (G @ G.T, [0, 1, 2, 2], "a place of its own"),
        (G @ G.T, [0, 1, 2, 9], r"expected `indices` from 0 to 4, got 0 to 9"),
        (G @ G.T, [-1, 1, 2, 3], "got -1 to 3"),
    ],
)
def test_bad_updates(kernel: Tensor, indices: list[int], message: str) -> None:
    sampler = pb.ConflictSampler(5)
    with pytest.raises(ValueError, match=message):
        sampler.update(kernel, indices)
    assert not sampler.conflict.any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="ConflictSampler: expected `strength` of at least 0, got -1"):
        pb.ConflictSampler(5, strength=-1.0)
    with pytest.raises(ValueError, match="num_samples"):
        pb.ConflictSampler(0)
    with pytest.raises(ValueError, match="expected a state of 5 samples, got 6"):
        pb.ConflictSampler(5).load_state_dict(pb.ConflictSampler(6).state_dict())
