"""How a page that is watched follows, in a real browser: when it asks, and which charts it draws anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pullback.report.live import feed as feeds
from pullback.report.live.folders import Folders
from pullback.runs import RunWriter

pytestmark = [pytest.mark.browser, pytest.mark.slow]

testclient = pytest.importorskip("starlette.testclient")

from pullback.report.live.app import RESTING, make_app  # noqa: E402

HERE = "http://127.0.0.1:7474"
PROBES = ("kernel", "alignment", "noise", "updates")
VALUES = {"M1": 1.0, "M2": 2.0, "mean_cosine": 0.1, "conflict_fraction": 0.1, "signal_to_noise": 0.1, "median": 1e-3}
LAST = "(key) => Math.max(...box(key).data[0].x)"
WAIT_MS = 300_000


def written(folder: Path, steps: range, **more: Any) -> None:
    with RunWriter(folder, {"optimizer": {"class": "SGD"}}, **more) as writer:
        for step in steps:
            writer.append(step, "loss", {"loss": 3.0 / (step + 1), "batch_loss": 2.0})
            for probe in PROBES:
                writer.append(step, probe, dict(VALUES))


def test_a_page_asks_when_it_was_told_to_and_draws_what_is_seen(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asking is begun by hand, so that no clock decides."""
    monkeypatch.setattr(feeds, "rest", lambda cost: 0.0)
    folder, resting = tmp_path / "run", [0]
    written(folder, range(30))
    client = testclient.TestClient(make_app(Folders([folder])), base_url=HERE)

    def answer(route: Any) -> None:
        address = urlsplit(route.request.url)
        got = client.get(address.path + (f"?{address.query}" if address.query else ""))
        headers = dict(got.headers) | ({RESTING: str(resting[0])} if "since" in address.query else {})
        route.fulfill(status=got.status_code, headers=headers, body=got.content)

    page = browser.new_page(viewport={"width": 1000, "height": 500})
    page.set_default_timeout(WAIT_MS)
    page.add_init_script("""
        window.pauses = [];
        const wait = window.setTimeout;
        window.setTimeout = (act, pause, ...more) => {
            if (act.name !== "ask") return wait(act, pause, ...more);
            pauses.push(pause);
            window.again = act;
        };
    """)
    page.route("**/*", answer)
    page.goto(f"{HERE}/run/run")
    page.wait_for_selector("html[data-ready=all]", state="attached")
    assert page.evaluate("pauses") == [1000]

    def pause(told: int) -> float:
        resting[0] = told
        return float(page.evaluate("async () => { await again(); return pauses.at(-1); }"))

    assert pause(0) == 1000
    assert pause(300_000) > 200_000  # no sooner than there can be anything new
    keys = page.evaluate("waiting.filter((key) => box(key).closest('details') === null)")
    first, last = keys[0], keys[-1]
    assert page.evaluate(LAST, first) == page.evaluate(LAST, last) == 29
    page.evaluate("document.querySelector('#loss-plot').scrollIntoView()")
    written(folder, range(30, 33), resume=29)
    assert 0 < pause(1) < 200_000  # as long as it took, where that is longer
    page.wait_for_function(f"() => ({LAST})('loss') === 32")
    assert page.evaluate(LAST, last) == 29
    page.evaluate("(key) => box(key).scrollIntoView()", last)
    page.wait_for_function(f"(key) => ({LAST})(key) === 32", arg=last)
    page.close()
