"""The README's own claims; that its code prints what it shows is tested with the other pages (``tests/docs``)."""

from __future__ import annotations

import re
from pathlib import Path

from pullback.advisor import thresholds


def test_the_first_block_is_a_loop_that_goes_wrong_in_ten_lines() -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)^```.*?^```text\nwarning: ", page, re.MULTILINE | re.DOTALL)
    assert block
    assert block.start() == page.index("```")
    assert len(block[1][block[1].index("with pb.Monitor") :].splitlines()) <= 10  # the loop, and what it is asked


def test_what_is_called_bad_is_what_the_rules_call_so() -> None:
    """The README's table of good and bad numbers, beside the thresholds themselves."""
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = page[page.index("| number | good |") :].partition("\n\n")[0]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[-1] for line in table.splitlines()}
    for number, bad in (
        ("loss over that of one constant answer", f"{thresholds.LEARNT_NOTHING:g}"),
        (
            "size of a step over that of the weights",
            f"below {thresholds.SMALL_UPDATE:.5f}, above {thresholds.WILD_UPDATE:g}",
        ),
        ("mean cosine of two gradients, after the start", f"{thresholds.CONFLICT:g}"),
        ("entropy of an attention row over its largest", f"{thresholds.ONE_KEY:g}"),
    ):
        assert bad in rows[number]
    assert thresholds.DEAD == thresholds.SATURATED == 0.5
