"""A page of the gallery as a script: its options, its files, its exit code."""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import pullback as pb

from .code_hash import code_of
from .html import write_page
from .page import Page
from .record import as_record, read_json, table_text, write_json

PRESETS = ("small", "full")
SEED = 0


def fill(build: Callable[[Page], None], page: Page) -> Page:
    """Let a script's ``build`` fill a page, with the seed set and the time taken."""
    torch.manual_seed(SEED)
    began = time.perf_counter()
    build(page)
    page.seconds = time.perf_counter() - began
    return page


def machine() -> dict[str, str]:
    """What the numbers were computed on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", "scipy")},
        "pullback": pb.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def run(build: Callable[[Page], None], arguments: Sequence[str] | None = None) -> None:
    """What a page does as a script: compute, write ``<name>.html`` and ``<name>.json``, print the table, check it.

    The files are written before the check, so that a page that fails can be looked at. Exit code 1 if it fails, 2 on
    a usage error, 3 if it cannot be made.
    """
    script = Path(inspect.getfile(build))
    name = script.stem
    parser = argparse.ArgumentParser(prog=name, description=(inspect.getmodule(build).__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="small", help="size of the computation [small]")
    parser.add_argument("--out", type=Path, help="folder for the page; without one only the table is printed")
    parser.add_argument("--force", action="store_true", help="replace a page that is already there")
    parser.add_argument("--store", action="store_true", help="also keep the numbers in the gallery's own results")
    asked = parser.parse_args(arguments)
    files = [asked.out / f"{name}{ending}" for ending in (".html", ".json")] if asked.out else []
    taken = [str(file) for file in files if file.exists()]
    if taken and not asked.force:
        sys.stderr.write(
            f"{name}: expected a folder without this page, got {taken[0]}. Pass --force, or another --out.\n"
        )
        sys.exit(2)
    try:
        page = fill(build, Page(name, inspect.getmodule(build).__doc__ or name, asked.preset))
    except Exception:
        traceback.print_exc()
        sys.exit(3)
    record = as_record(page, machine(), code_of(script))
    stored = script.parent / "results" / f"{name}.json"
    if asked.store:
        write_json(record, stored)
    if files:
        write_page(record, page.text, read_json(stored), script, files[0])
        write_json(record, files[1])
    print(table_text(record))
    if files:
        print(f"Page: {files[0]}")
    try:
        page.check()
    except pb.SelfCheckError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
