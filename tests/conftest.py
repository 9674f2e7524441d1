"""Settings all tests share, and a browser for those that look at pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

settings.register_profile("pullback", max_examples=20, deadline=None, derandomize=True)
settings.load_profile("pullback")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same random state and leaves the default dtype alone."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium, or a skip."""
    path = os.environ.get("PULLBACK_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("no Chromium: set PULLBACK_CHROMIUM or install one")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-sync", *quiet]
        )
        yield started
        started.close()


@pytest.fixture(scope="session")
def open_page(browser: Any) -> Callable[..., Any]:
    """Opens a file; what the page complains about, says or asks the network for is in ``page.trouble``."""

    def opened(path: Path, width: int = 1280, wait_ms: int = 300) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(message.text))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (page.trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.trouble.append(request.url) if "http" in request.url else None)
        page.goto(path.as_uri())
        page.wait_for_timeout(wait_ms)
        return page

    return opened
