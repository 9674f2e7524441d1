"""A newcomer's path, from the wheel to the run that goes right, as one script with a real browser.

Every leg is what a user types or opens; each begins where the one before it ended.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pullback.cli.main import STOPPED
from tests.cli.terminal import in_terminal, lines_left
from tests.command import HEARS_INTERRUPTS
from tests.conftest import BROWSER_MS
from tests.release.conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.browser]
OWN = Path(__file__).with_name("own_model.py")
TOO_FAST = 300.0


class Newcomer:
    """A folder to work in, the commands of the new environment, and a browser."""

    def __init__(self, python: Path, home: Path, open_page: Any) -> None:
        self.python, self.home, self.open_page = python, home, open_page
        self.program = python.with_name("pullback")
        shutil.copy(OWN, home / "own_model.py")

    def types(self, *words: str | Path, code: int = 0) -> str:
        """A command of the package; what it prints."""
        return run(self.program, *words, cwd=self.home, code=code, OMP_NUM_THREADS="1")

    def trains(self, folder: str, learning_rate: float) -> None:
        """The own loop, which is in a file of its own."""
        run(self.python, "own_model.py", folder, str(learning_rate), cwd=self.home, OMP_NUM_THREADS="1")

    @contextmanager
    def watches(self, folder: str) -> Iterator[str]:
        """The address at which runs are shown while they are written."""
        there = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        heard = HEARS_INTERRUPTS + f"runpy.run_path({str(self.program)!r}, run_name='__main__')"
        command = [self.python, "-c", heard, "watch", folder, "--port", "0"]
        with subprocess.Popen(command, cwd=self.home, env=there, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout.readline().rpartition(" at ")[2].strip()
            finally:
                process.send_signal(signal.SIGINT)
                process.stdout.read()
                assert process.wait() == STOPPED

    def opens(self, name: str) -> Any:
        """A page in the browser; it asks the network for nothing and complains of nothing."""
        page = self.open_page(self.home / name)
        page.wait_for_selector(".plot .main-svg")
        assert page.trouble == []
        return page


def test_a_newcomers_path(empty: Path, browser: Any, open_page: Any, tmp_path: Path) -> None:
    user = Newcomer(empty, tmp_path, open_page)

    # The demo, on a terminal: one bar, the verdict, and what to type next.
    demo = [str(user.program), "demo", "--epochs", "30", "--width", "16", "--depth", "1", "--lr", "0.01"]
    code, sent = in_terminal(demo, tmp_path)
    lines = lines_left(sent)
    assert code == 0, sent
    assert len(lines) < 40
    (bar,) = [line for line in lines if line.startswith("Training")]
    assert re.search(r"30/30 epochs +loss \d+\.\d{4}", bar)
    assert len(re.findall(r"\d+/30.{0,9} epochs", sent)) > 1  # the line is written over itself
    screen = "\n".join(lines)
    assert "Epoch [" not in screen
    assert "Verdict: Reached a loss of" in screen
    assert re.search(r"Looked for \d+ kinds of fault", screen)
    assert "Next: pullback demo" in screen

    # A loop of one's own that goes wrong, on a page that is open before it begins; its report, and its diagnosis.
    with user.watches("runs") as address:
        page = browser.new_page()
        page.goto(address)
        assert page.get_by_role("link", name="demo").count() == 1
        user.trains("runs/wrong", TOO_FAST)
        page.get_by_role("link", name="wrong").click(timeout=BROWSER_MS)  # it came by itself
        page.wait_for_selector("#loss-plot .main-svg", timeout=BROWSER_MS)
        assert page.title() == "wrong – pullback training report"
        assert page.evaluate("document.getElementById('loss-plot').data[0].x.length") > 40
        page.close()
    assert "Report: runs/wrong/report.html" in user.types("report", "runs/wrong")
    page = user.opens("runs/wrong/report.html")
    verdict = page.locator(".verdict").inner_text()
    assert re.match(r"Diverges from step \d+: the learning rate, 300, is beyond what the curvature bears", verdict)
    cause = json.loads(user.types("diagnose", "runs/wrong", "--json", code=1))[0]
    assert (cause["name"], cause["severity"]) == ("learning-rate-too-high", "critical")
    assert cause["change"]["kind"] == "learning_rate"

    # The change it names, and the run that goes right.
    user.trains("runs/right", TOO_FAST * cause["change"]["value"])
    assert "critical" not in user.types("diagnose", "runs/right")

    # Both beside each other.
    compared = user.types("compare", "runs/wrong", "runs/right")
    assert re.search(r"^ +wrong +right$", compared, re.M)
    user.types("report", "runs/wrong", "runs/right", "--out", "both.html")
    assert "2 training runs compared" in user.opens("both.html").locator("h1").inner_text()
