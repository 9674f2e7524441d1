"""Standard errors by hand: over networks by Student's distribution, over units by leaving groups out."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from pullback.measure import Profile
from pullback.measure.networks.profile import over_units


def test_over_seeds() -> None:
    """Three errors cover what three of a normal do: 99.73 percent."""
    samples = torch.randn(7, 3, dtype=torch.float64)
    found = Profile.over_seeds(samples)
    assert len(found) == 3
    assert torch.equal(found.value, samples.mean(0))
    quantile = stats.t(6).ppf(stats.norm.cdf(3)) / 3
    assert found.stderr.numpy() == pytest.approx(stats.sem(samples.numpy()) * quantile, rel=1e-9)


@pytest.mark.parametrize(("units", "sizes"), [(70, [3] * 23 + [1]), (64, [2] * 32), (5, [1] * 5)])
def test_over_units(units: int, sizes: list[int]) -> None:
    """A ratio of means, and a mean's square, groups left out one by one."""
    h = torch.rand(units, 2, dtype=torch.float64)

    def statistic(means: torch.Tensor) -> torch.Tensor:
        return torch.stack([means[:, 0] / means[:, 1], means[:, 0] ** 2], 1)

    value, error = over_units(statistic, lambda group: group.sum(1), h)
    assert torch.allclose(value, statistic(h.mean(0, keepdim=True))[0])
    without, start = [], 0
    for size in sizes:
        without.append(statistic(torch.cat([h[:start], h[start + size :]]).mean(0, keepdim=True))[0].numpy())
        start += size
    assert start == units
    count = len(sizes)
    middle = sum(without) / count
    variance = (count - 1) / count * sum((w - middle) ** 2 for w in without)
    quantile = stats.t(count - 1).ppf(stats.norm.cdf(3)) / 3
    assert error.numpy() == pytest.approx(variance**0.5 * quantile, rel=1e-9)


def test_one_unit_has_no_error() -> None:
    value, error = over_units(lambda means: means, lambda group: group.sum(1), torch.ones(1, 1))
    assert float(value) == 1
    assert error.isnan().all()
