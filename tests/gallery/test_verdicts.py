"""Stored verdicts follow from stored means and errors: S0-42, S1-50, S1-51, S1-53, S1-54, S3-16 on real networks."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from scipy import stats

from tests.gallery.conftest import GALLERY

PAGES = {
    "lecun1998_mitigation": 5,
    "kirkpatrick2017_forgetting": 5,
    "dauphin2014_index": 5,
    "keskar2017_sharp_minima": 5,
    "damian2023_self_stabilisation": 5,
    "shallue2019_batch_size": 5,
    "shalevshwartz2017_parity": 5,
}


ROUNDS = {"shallue2019_batch_size": 20}  # of times, which are not of seeds


def agree(t: float, p: float, count: int) -> bool:
    """Whether a chance is that of a t with two digits, of so many numbers."""
    low, high = sorted(float(stats.t.sf(t * factor, count - 1)) for factor in (1.015, 0.985))
    return low * 0.99 <= p <= high * 1.01


def claims_of(table: dict[str, Any]) -> list[list[list[Any]]]:
    """Rows by claim."""
    found: list[list[list[Any]]] = []
    for row in table["rows"]:
        if row[1]:
            found.append([])
        found[-1].append(row)
    return found


@pytest.mark.parametrize(("name", "seeds"), PAGES.items())
def test_stored_verdicts_follow_from_their_evidence(load, name, seeds):
    claims = load("kit.claims")
    record = json.loads((GALLERY / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["settings"]["seeds"] == seeds
    tables = [each for each in record["tables"] if tuple(each["header"]) == claims.HEADER]
    assert tables
    for rows in (rows for table in tables for rows in claims_of(table)):
        (_, verdict, *_), *evidence = rows
        shown = 0
        for _, _, measured, p, word in evidence:
            mean, error = map(float, measured.split(" ± "))
            if error > 1e-6 * abs(mean) > 0:  # three digits are stored of each, and t goes into p by a power
                assert any(agree(mean / error, p, count) for count in (seeds, ROUNDS.get(name, seeds)))
            level = claims.LEVEL / len(evidence)
            assert (word == "yes") == (p < level)
            assert (word == "the opposite") == (1 - p < level) or math.isclose(1 - p, level, rel_tol=0.1)
            shown += word == "yes"
        known = "holds" if shown == len(evidence) else ("holds under conditions" if shown else "does not hold")
        assert verdict == known


def test_batch_sizes_are_compared_at_equal_epochs_and_at_equal_updates() -> None:
    """S1-50: sharpness and both gaps of three batch sizes, with batch norm and without, each with its error."""
    record = json.loads((GALLERY / "results" / "keskar2017_sharp_minima.json").read_text(encoding="utf-8"))
    table = next(each for each in record["tables"] if each["caption"].startswith("Where training ended"))
    names = ["sharpness", "gap of the loss", "gap of the accuracy"]
    columns = [table["header"].index(name) for name in names]
    settings = [f"equal {what}, {norm}" for norm in ("no norm", "batch norm") for what in ("epochs", "updates")]
    assert [row[:2] for row in table["rows"]] == [[each, size] for each in settings for size in (16, 64, 256)]
    for row in table["rows"]:
        means, errors = zip(*(map(float, row[column].split(" ± ")) for column in columns), strict=True)
        assert means[0] > 0  # the largest eigenvalue
        assert all(error > 0 for error in errors)
