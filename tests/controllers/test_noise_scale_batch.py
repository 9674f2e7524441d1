"""A batch size that follows the noise: against gradients whose noise scale is known."""

from __future__ import annotations

from itertools import chain, islice

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pullback as pb
from pullback.controllers import NoiseScaleBatch


def kernel(scale: float, generator: torch.Generator) -> Tensor:
    """K of 64 gradients with |G| = 1 and tr(Sigma) = scale."""
    noise = torch.randn(64, 200, generator=generator, dtype=torch.float64) * (scale / 200) ** 0.5
    gradients = noise + torch.eye(1, 200, dtype=torch.float64)
    return gradients @ gradients.T


@pytest.mark.parametrize(("scale", "start"), [(20.0, 256), (20.0, 2), (5.0, 64)])
def test_it_settles_at_the_noise_scale(scale: float, start: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sampler = NoiseScaleBatch(1000, start)
    sizes = []
    for _ in range(40):
        sampler.update(kernel(scale, generator))
        sizes.append(sampler.batch_size)
    assert sum(sizes[20:]) / 20 == pytest.approx(scale, rel=0.2)
    assert all(0.5 <= later / earlier <= 2 for earlier, later in zip([start, *sizes], sizes, strict=False))


def test_share_and_bounds() -> None:
    generator = torch.Generator().manual_seed(1)
    half, bounded = NoiseScaleBatch(1000, 16, share=0.5), NoiseScaleBatch(1000, 16, smallest=12, largest=18)
    for _ in range(30):
        measured = kernel(40.0, generator)
        half.update(measured)
        bounded.update(measured)
    assert half.batch_size == pytest.approx(20, rel=0.25)
    assert bounded.batch_size == 18


def test_an_epoch_holds_every_sample_once_whatever_the_sizes() -> None:
    sampler = NoiseScaleBatch(103, 5)
    seen = []
    for count, batch in enumerate(sampler):
        seen.append(batch)
        if count == 2:
            sampler.update(kernel(400.0, torch.Generator().manual_seed(0)))
    assert sorted(chain(*seen)) == list(range(103))
    assert [len(batch) for batch in seen] == [5, 5, 5, *[10] * 8, 8]
    assert len(sampler) == 11


def test_it_is_a_batch_sampler_and_the_global_random_state_is_left_alone() -> None:
    x = torch.arange(10.0)
    before = torch.get_rng_state()
    sampler = NoiseScaleBatch(10, 4)
    first, second = list(sampler), list(sampler)
    assert first != second  # another order every epoch
    assert torch.equal(torch.get_rng_state(), before)
    loader = DataLoader(TensorDataset(x), batch_sampler=NoiseScaleBatch(10, 4))
    assert [batch.tolist() for (batch,) in loader] == [[float(i) for i in batch] for batch in first]


def test_state_goes_on() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = NoiseScaleBatch(50, 8), NoiseScaleBatch(50, 8)
    one.update(kernel(20.0, generator))
    list(one)
    other.load_state_dict(one.state_dict())
    measured = kernel(20.0, generator)
    one.update(measured)
    other.update(measured)
    assert list(islice(one, 3)) == list(islice(other, 3))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(pb.InputError, match="1 <= smallest <= batch_size"):
        NoiseScaleBatch(10, 11)
    with pytest.raises(pb.InputError, match="`share` above 0"):
        NoiseScaleBatch(10, 2, share=0.0)
    with pytest.raises(pb.InputError, match="three"):
        NoiseScaleBatch(10, 2).update(torch.eye(2))
