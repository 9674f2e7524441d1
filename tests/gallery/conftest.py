"""Pages as modules: a script finds its helpers beside itself, so their folder goes first on the path."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GALLERY = Path(__file__).parents[2] / "gallery"


@pytest.fixture(scope="session", autouse=True)
def _folder_first() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GALLERY))
        yield


@pytest.fixture(scope="session")
def load(_folder_first: None) -> Callable[[str], ModuleType]:
    """A script of the gallery by its name."""
    return importlib.import_module


@pytest.fixture(scope="session")
def filled(load: Callable[[str], ModuleType], small_runs: Path) -> Callable[[str], Any]:
    """A page at its small size, computed once, whichever worker asks first: the others read what it left on disk."""
    return cache(lambda name: load("kit.small").small_page(name, small_runs))
