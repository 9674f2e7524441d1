"""Where one way to show numbers ends and the next begins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pullback.charts.chart import log_axis, step_axis, wants_log
from pullback.charts.numbers import extremes
from pullback.charts.text import number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9_999_999, "9,999,999"),
        (12_345_678, "1.235×10⁷"),
        (123456.7, "123,457"),
        (1234567.8, "1.235×10⁶"),
        (0.00123, "0.00123"),
        (0.00098, "9.8×10⁻⁴"),
    ],
)
def test_numbers_are_written_out_up_to_a_size(value: float, text: str) -> None:
    """Whole ones below 10⁷, others from 10⁻³ to 10⁶."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([20.0, 200000.0], ["10²", "10³", "10⁴", "10⁵"]),
        ([0.002, 5.0], ["0.01", "0.1", "1"]),
        ([0.0005, 5.0], ["10⁻³", "10⁻²", "10⁻¹", "10⁰"]),
        ([1.0, 10**5.5], ["10⁰", "10²", "10⁴"]),
        ([1.0, 3.5], ["1", "1.5", "2", "2.5", "3"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(values: list[float], ticks: list[str]) -> None:
    """Powers from 10⁵ and below 10⁻³, every second decade of more than five, finer ones within 0.6 of a decade."""
    made = log_axis("", values)
    low, high = made["range"]
    marks = zip(made["tickvals"], made["ticktext"], strict=True)
    assert [text for value, text in marks if low <= math.log10(value) <= high] == ticks


def test_an_axis_of_few_steps_has_whole_numbers() -> None:
    few, more = step_axis([3, 7]), step_axis([3, 8])
    assert (few["range"], few["dtick"]) == ([2.5, 7.5], 1)
    assert not {"range", "dtick"} & set(more)


def test_a_logarithmic_axis_is_for_numbers_that_are_30_times_apart() -> None:
    assert [wants_log([2.0, 2.0 * spread]) for spread in (29.0, 31.0)] == [False, True]


def test_extremes_are_no_more_than_was_asked_for() -> None:
    """Of each of three stretches the least, the greatest and a gap, with both ends: eleven places."""
    values = np.random.default_rng(0).standard_normal(1000)
    values[100::100] = np.nan
    assert len(extremes(values, 11)) == 11
