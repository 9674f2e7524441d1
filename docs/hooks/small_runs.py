"""The gallery at its small size: computed where it is not kept, and held to its numbers; one that fails ends the build.

Pages are kept in ``.small_runs``, or where ``PULLBACK_SMALL_RUNS`` says, until code that computed them changes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

log = logging.getLogger("mkdocs.hooks.gallery")


def records(root: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The record of every page's small run; the gallery's folder must be on the path."""
    from kit.small import kept_record

    folder = Path(os.environ.get("PULLBACK_SMALL_RUNS", root / ".small_runs")).resolve()
    missing = [name for name in names if kept_record(name, folder) is None]
    if missing:
        log.info("Gallery: %d of %d pages are computed at their small size", len(missing), len(names))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda name: _compute(root, name, folder), missing))
    found = {}
    for name in names:
        record = kept_record(name, folder)
        if record is None:
            raise PluginError(f"{name}: expected code that stays as it is, got changes during the build. Build again.")
        if wrong := [row["quantity"] for row in record["rows"] if row["holds"] == bool(row["not_reproduced"])]:
            raise PluginError(
                f"{name}: expected a small run that holds, got {wrong[0]!r}. Compute it: pullback gallery."
            )
        found[name] = record
    return found


def _compute(root: Path, name: str, folder: Path) -> None:
    """Compute and check one page, on one thread, in a process of its own."""
    places = (str(root), os.environ.get("PYTHONPATH", ""))
    own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kit.small", name, str(folder)]
    done = subprocess.run(
        command, cwd=root / "gallery", env=os.environ | own, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PluginError(f"gallery, {name}: {done.stderr.strip() or f'ended with {done.returncode}'}")
    log.info("Gallery: %s holds", name)
