"""``pullback watch`` in a real browser, beside a real training that is killed, goes on, is removed and begins anew."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pullback as pb
from tests.command import HEARS_INTERRUPTS

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WAIT_MS = 300_000  # a machine that is busy is slow; what hangs fails
LAST = "Math.max(...document.getElementById('loss-plot').data.flatMap((trace) => trace.x))"
RANGE = "document.getElementById('loss-plot')._fullLayout.xaxis.range"


def started(*command: str, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], text=True, **more)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of the folder ``runs``."""
    (tmp_path / "runs").mkdir()
    heard = HEARS_INTERRUPTS + "runpy.run_module('pullback', run_name='__main__')"
    with started("-c", heard, "watch", str(tmp_path / "runs"), "--port", "0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert second == "Stop with Ctrl-C.\n"
        yield re.sub(r"^Watching .* at ", "", first).strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_MS) == 130


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a training in a folder of ``runs``."""
    running: list[subprocess.Popen[str]] = []

    def begin(*made: str) -> subprocess.Popen[str]:
        running.append(started("-m", "tests.report.live_training", str(tmp_path / "runs" / "mine"), *made))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def measured(page: Any) -> int:
    """How many measurements the page knows of."""
    found = re.search(r"measured at ([\d,]+) step", page.locator("header").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def comes(page: Any, holds: Callable[[], bool]) -> None:
    """Wait until something holds; the page's content policy keeps others from waiting in it."""
    for _ in range(WAIT_MS // 50):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError


def test_a_training_that_is_watched(browser: Any, address: str, training: Any, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.set_default_timeout(WAIT_MS)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text))

    page.goto(address)
    assert "No run yet." in page.locator("main").inner_text()
    process = training()
    page.get_by_role("link", name="mine").click(timeout=WAIT_MS)  # it comes by itself
    comes(page, lambda: measured(page) > 3)
    page.wait_for_selector("#loss-plot .main-svg")

    # What the reader did stays: zoom, scroll position, what was unfolded, and the focus.
    page.locator("#loss-plot").scroll_into_view_if_needed()
    box = page.locator("#loss-plot .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.locator("#loss details summary").first.click()
    seen = "Math.round(document.querySelector('#loss details summary').getBoundingClientRect().top)"
    state = f"[{RANGE}.join(), {seen}, document.activeElement.tagName, document.querySelector('#loss details').open]"
    before, count = page.evaluate(state), measured(page)
    assert before[2:] == ["SUMMARY", True]
    drawn = page.evaluate(LAST)
    comes(page, lambda: measured(page) > count)
    comes(page, lambda: page.evaluate(LAST) > drawn)
    assert page.evaluate(state) == before
    page.locator("#loss-plot .nsewdrag").first.dblclick()
    comes(page, lambda: page.evaluate(f"{RANGE}.join()") != before[0])
    assert trouble == []

    # Killed within a record, the page stands; resumed, it goes on.
    process.kill()
    process.wait()
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"step":1')
    with pytest.warns(UserWarning, match="1 damaged lines"):
        steps = pb.load_run(folder).steps
    process = training(str(steps[-1]))
    page.get_by_text("Training was resumed").wait_for()
    comes(page, lambda: measured(page) > len(steps))
    assert trouble == []

    # Removed, it says so and shows the last state; begun anew, it shows the new run.
    process.kill()
    process.wait()
    shutil.rmtree(folder)
    page.get_by_text("This run is not there any more").wait_for()
    assert page.locator("#loss-plot .main-svg").count() > 0
    old = measured(page)
    training()
    comes(page, lambda: page.locator("#live").inner_text() == "Live")
    assert measured(page) < old
    assert all("410" in each for each in trouble), trouble
