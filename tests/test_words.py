"""Percentages, shares and lists, worded in one way by pages, cards, commands and verdicts."""

from __future__ import annotations

import math

import pytest

from pullback._text import first_listed, percent, share_of

PERCENTAGES = {
    0.0: "0%",
    0.1: "10%",
    0.939: "93.9%",
    0.0014: "0.14%",
    0.9997: "99.97%",
    0.99999: "over 99.99%",
    1e-6: "under 0.01%",
    1.0: "100%",
    1.00044: "100%",
    1.5: "150%",
    -0.03: "−3%",
    math.nan: "NaN",
    -math.inf: "−∞",
}


@pytest.mark.parametrize(("fraction", "text"), PERCENTAGES.items())
def test_a_fraction_is_a_percentage_without_a_space(fraction, text):
    assert percent(fraction) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(0.105, "10.5% of"), (1.99, "199% of"), (5.93, "5.93 times"), (5432.0, "5,400 times")]
)
def test_a_ratio_is_a_share_below_two_and_a_factor_above(ratio, text):
    assert share_of(ratio) == text


def test_a_long_list_names_its_first_words():
    assert first_listed(["a", "b", "c"], 2) == "a, b and c"
    assert first_listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert first_listed([], 2) == ""
