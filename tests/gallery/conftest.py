"""Pages as modules: a script finds its helpers beside itself, so their folder goes first on the path."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

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
def filled(load: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A page at its small size, computed once, whichever worker asks first: the others read what it left on disk."""
    own = tmp_path_factory.getbasetemp()
    kept = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    @cache
    def page_of(name: str) -> Any:
        path = kept / f"page-{name}.pickle"
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                return pickle.loads(path.read_bytes())
            script = load(name)
            page = load("kit.run").fill(script.build, load("kit.page").Page(name, script.__doc__ or ""))
            path.write_bytes(pickle.dumps(page))
            return page

    return page_of
