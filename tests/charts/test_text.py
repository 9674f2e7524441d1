"""Escaping and numbers: whatever a run holds must come out as text."""

from __future__ import annotations

import json
import math

import pytest

from pullback.charts.text import as_float, cell, clean, number, percent, plotly_text, script_json, shorten


def test_what_no_file_can_hold_is_replaced():
    assert clean("a\x00b\ud800c\x1b[0m") == "a\ufffdb\ufffdc\ufffd[0m"


def test_plotly_text_leaves_no_tag_and_no_unknown_entity():
    assert plotly_text('<b>"x"</b> & y') == '&lt;b&gt;"x"&lt;/b&gt; &amp; y'


def test_plotly_text_is_shortened_before_it_is_escaped():
    assert plotly_text("<" * 50, limit=5) == "&lt;&lt;…&lt;&lt;"


@pytest.mark.parametrize("limit", [5, 8, 9])
def test_shorten_keeps_both_ends(limit):
    short = shorten("abcdefghijkl", limit)
    assert len(short) == limit
    assert (short[0], short[-1]) == ("a", "l")
    assert shorten("abc", limit) == "abc"
    assert shorten("abcdefghijkl"[:limit], limit) == "abcdefghijkl"[:limit]


def test_json_in_a_script_cannot_end_it_and_means_the_same():
    value = {"</script><!--": ["a & b", "\u2028\u2029"]}
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_json_in_a_script_refuses_nan():
    with pytest.raises(ValueError, match="Out of range"):
        script_json([math.nan])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (101770, "101,770"),
        (-3, "−3"),
        (0.0251234, "0.02512"),
        (0.5, "0.5"),
        (41.7, "41.7"),
        (1234.56, "1,235"),
        (3.1e-7, "3.1×10⁻⁷"),
        (-2e9, "−2×10⁹"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        ("wide", "NaN"),
        (10**400, "∞"),
    ],
)
def test_numbers_for_readers(value, text):
    assert number(value) == text


@pytest.mark.parametrize("value", [0.00099995, 0.99996, 999999.7, 1e-310, 9.9999e5])
def test_numbers_keep_their_size(value):
    text = number(value).replace(",", "").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    assert float(text.replace("×10", "e")) == pytest.approx(value, rel=1e-3)


def test_other_forms():
    assert percent("wide") == "NaN"
    assert percent(math.inf) == "∞"
    assert cell(None) == ""
    assert cell("<i>") == "<i>"
    assert cell(0.25) == "0.25"
    assert math.isnan(as_float(True))
