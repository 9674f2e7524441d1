"""Verdicts follow from the numbers: Student's test over seeds, shared out over conditions."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats


@pytest.fixture
def claims(load):
    return load("kit.claims")


def verdict(claims, **differences):
    return claims.decide("a claim", differences).verdict


def test_verdicts(claims):
    up, down, open_ = [1.0, 1.1, 0.9, 1.05, 0.95], [-1.0, -1.1, -0.9, -1.05, -0.95], [1.0, -1.0, 2.0, -2.0, 0.1]
    assert verdict(claims, a=up, b=up) == "holds"
    assert verdict(claims, a=up, b=open_) == "holds under conditions"
    assert verdict(claims, a=open_, b=down) == "does not hold"
    assert [e.word for e in claims.decide("", {"a": up, "b": open_, "c": down}).evidence] == [
        "yes", "not shown", "the opposite",
    ]  # fmt: skip


def test_chances_are_those_of_student_s_test(claims):
    values = torch.tensor([0.3, 0.1, -0.2, 0.8, 0.4])
    (found,) = claims.decide("", {"a": values}).evidence
    known = stats.ttest_1samp(values.double().numpy(), 0, alternative="greater")
    assert found.p == pytest.approx(known.pvalue, rel=1e-12)
    assert found.mean == pytest.approx(0.28, rel=1e-6)
    assert found.stderr == pytest.approx(float(values.double().std()) / 5**0.5, rel=1e-12)


def test_conditions_share_the_level(claims):
    """A chance of 0.03 is enough alone and not where it is one of two."""
    t = float(stats.t.isf(0.03, 4))
    spread = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).double()
    values = spread + t * spread.std() / 5**0.5
    assert claims.decide("", {"a": values}).evidence[0].p == pytest.approx(0.03)
    assert verdict(claims, a=values) == "holds"
    assert verdict(claims, a=values, b=-values) == "does not hold"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([1.0, 1.0, 1.0], "yes"),
        ([0.1 + 0.2, 0.3, 0.3], "yes"),  # alike but for rounding
        ([0.0, 0.0, 0.0], "not shown"),
        ([-1.0, -1.0, -1.0], "the opposite"),
        ([math.inf, 1.0, 1.0], "not shown"),
        ([math.nan, 1.0, 1.0], "not shown"),
        ([5.0], "not shown"),
    ],
)
def test_seeds_that_agree_or_do_not_answer(claims, values, word):
    assert claims.decide("", {"a": values}).evidence[0].word == word


def test_a_claim_that_is_wrong_everywhere_seldom_holds_somewhere(claims):
    """At most one in twenty, by 3 standard errors of 600 draws."""
    draws = torch.randn(600, 3, 5, generator=torch.Generator().manual_seed(0))
    wrong = sum(verdict(claims, **dict(zip("abc", each, strict=True))) != "does not hold" for each in draws)
    assert 0 < wrong <= 600 * 0.05 + 3 * (600 * 0.05 * 0.95) ** 0.5


def test_the_table_has_a_row_a_claim_and_a_row_a_condition(claims):
    found = [claims.decide("one", {"a": [1.0, 2.0], "b": [0.0, 1.0]}), claims.decide("two", {"c": [1, 2]})]
    rows = claims.table(found)
    assert [row[0] for row in rows] == ["one", "– a", "– b", "two", "– c"]
    assert [row[1] for row in rows] == ["does not hold", "", "", "does not hold", ""]
    assert [row[2] for row in rows] == ["", "1.5 ± 0.5", "0.5 ± 0.5", "", "1.5 ± 0.5"]
    assert all(len(row) == len(claims.HEADER) for row in rows)
