"""A page at its small size, computed once by whoever asks first and kept for the others, until its code is another.

``python -m kit.small PAGE FOLDER``, from the folder of the gallery, computes a page that is not kept and checks it.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from .page import Page

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")


def small_page(name: str, folder: Path) -> Page:
    """The page, filled and not yet checked; several processes that ask for it at once compute it once.

    Args:
        name: of the script, without its ending; the gallery's folder must be on the path.
        folder: where pages are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pickle"
    with FileLock(path.with_suffix(".lock")):
        known = _current(path)
        if known is None:
            known = _computed(name)
            path.write_bytes(pickle.dumps(known))
        return pickle.loads(known["page"])


def kept_record(name: str, folder: Path) -> dict[str, Any] | None:
    """What is kept of the page, as ``record.as_record`` has it; None where nothing is, or of other code.

    Neither torch nor the page's script is loaded.
    """
    known = _current(folder / f"{name}.pickle")
    return None if known is None else known["record"]


def _computed(name: str) -> dict[str, Any]:
    """The page, and the files it was computed by: all of the package and the gallery that are loaded at its end."""
    from .code_hash import code_of
    from .page import Page
    from .record import as_record
    from .run import fill, machine

    script = importlib.import_module(name)
    page = fill(script.build, Page(name, script.__doc__ or ""))
    loaded = [Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    ours = {file for file in loaded if {ROOT / "pullback", ROOT / "gallery"} & set(file.parents)} - {Path(__file__)}
    files = {str(file.relative_to(ROOT)): _hash(file) for file in ours}
    record = as_record(page, machine(), code_of(Path(script.__file__ or "")))
    return {"files": files, "versions": _versions(), "record": record, "page": pickle.dumps(page)}


def _current(path: Path) -> dict[str, Any] | None:
    """What is kept, if all that it was computed by is still the same."""
    if not path.is_file():
        return None
    try:
        known: dict[str, Any] = pickle.loads(path.read_bytes())
    except (pickle.UnpicklingError, EOFError):
        return None  # cut off while it was written
    same = all((ROOT / name).is_file() and _hash(ROOT / name) == each for name, each in known["files"].items())
    return known if same and known["versions"] == _versions() else None


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


if __name__ == "__main__":
    import pullback as pb

    try:
        small_page(sys.argv[1], Path(sys.argv[2])).check()
    except pb.SelfCheckError as error:
        sys.exit(str(error))
