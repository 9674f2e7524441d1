"""``python docs/hooks/picture.py``: docs/report.png, the page of the run that the README's first block makes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def main() -> None:
    """Run the block as it stands, write its page, and look at the top of it."""
    (code,) = re.findall(r"\A.*?^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        subprocess.run(
            [sys.executable, "-m", "pullback", "report", "runs/first", "--out", "report.html"], cwd=folder, check=True
        )
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
            page = browser.new_page(viewport={"width": 1280, "height": 1400}, color_scheme="light")
            page.goto((Path(folder) / "report.html").as_uri())
            page.wait_for_timeout(2000)  # until the charts are drawn
            page.screenshot(path=ROOT / "docs" / "report.png")
            browser.close()


if __name__ == "__main__":
    main()
