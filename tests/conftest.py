"""Settings all tests share, and a browser for those that look at pages."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One thread, here and in the processes that tests start, unless more are asked for: the tensors are tiny, and threads
# would only wait for each other. Set before torch is loaded, which reads it once.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from pullback.kernels.plan import rates  # noqa: E402

torch.set_num_threads(THREADS)

# The checks that go by the clock fail on a busy machine.
settings.register_profile(
    "pullback", max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("pullback")

BROWSER_MS = 300_000  # a browser that hangs; one that is slow on a busy machine does not

# Operations a second, stated: which form a layer takes, and with it the plan, follows from the machine's rates, and no
# test may depend on the machine.
RATES = rates.Rates(gemm=1e11, bmm=5e10, stream=2e9)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Rates come from a file in place of the user's, which processes that tests start read as well; its folder goes.

    Where pytest-randomly is installed it shuffles only when a seed is asked for, and never draws for a test.
    """
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest keeps its own of the last sessions
    folder = tempfile.tempdir = tempfile.mkdtemp(prefix="pullback-tests-")  # also for what docstrings leave behind
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["XDG_CACHE_HOME"] = folder
    known = {
        rates.key("cpu", dtype, threads): vars(RATES)
        for dtype in ("float16", "bfloat16", "float32", "float64")
        for threads in range(1, 1 + max(THREADS, os.cpu_count() or 1))
    }
    rates.cache_file().parent.mkdir()
    rates.cache_file().write_text(json.dumps(known))
    if hasattr(config.option, "randomly_seed"):
        config.option.randomly_reorganize &= config.option.randomly_seed != "default"
        config.option.randomly_reset_seed = False


SLOW = re.compile(r"^pytestmark = (\[\s*)?pytest\.mark\.slow\b", re.M)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run without slow tests does not import files that are slow as a whole: some load a whole trainer."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return True if SLOW.search(collection_path.read_text()) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers must agree on names: one with an address in it is another in every process."""
    if found := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        message = f"expected names of tests without addresses, got {found[0]}. Pass `ids=`"
        raise pytest.UsageError(message)


def same_start() -> None:
    """All generators that have no owner, from the same state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global one, for libraries that draw from it
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """What several tests share is the same whichever of them comes first."""
    if fixturedef.scope != "function":
        same_start()


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same random state and leaves the default dtype alone."""
    same_start()
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the gallery's pages are kept at their small size: of this run of the tests, for all its workers."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "small_runs"


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
        page.set_default_timeout(BROWSER_MS)
        page.trouble = []
        page.on("console", lambda message: page.trouble.append(message.text))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (page.trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.trouble.append(request.url) if "http" in request.url else None)
        page.goto(path.as_uri())
        page.wait_for_timeout(wait_ms)
        for _ in range(200):  # what is out of sight is drawn when there is time; tests say what has to be there
            if not page.locator(".plot:not(:has(.main-svg))").count():
                break
            page.wait_for_timeout(50)
        return page

    return opened
