"""The page of symptoms names findings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from pullback.advisor.causes import ORDER

PAGE = Path(__file__).parents[2] / "docs" / "symptoms.md"


def test_every_finding_that_the_page_names_is_one() -> None:
    rows = [line.split("|")[2] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    named = {name for row in rows for name in re.findall(r"[a-z-]+", row)}
    assert named
    assert named <= set(ORDER)
