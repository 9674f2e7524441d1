"""The README's first block, pasted into a file and run, prints what stands below it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from pullback.advisor import thresholds

NUMBER = re.compile(r"\d[\d.]*(e[+-]?\d+)?")


def words(text: str) -> str:
    """Without line breaks; the digits of numbers are the processor's."""
    return NUMBER.sub("0", " ".join(text.split()))


def test_the_first_block_prints_the_finding_below_it(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "README.md").read_text()
    code, printed = re.search(r"^```python\n(.*?)^```.*?^```text\n(.*?)^```", page, re.M | re.S).groups()  # type: ignore[union-attr]
    assert page.index("```python\n" + code) == page.index("```python")
    assert len(code[code.index("with pb.Monitor") :].splitlines()) <= 10  # the loop, and what it is asked
    (tmp_path / "first.py").write_text(code)
    done = subprocess.run([sys.executable, "first.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert words(done.stdout) == words(printed)


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
