"""Which runs may be looked at: those that were given, and those below folders that were. No other file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pullback._checks import input_error
from pullback.charts.text import clean
from pullback.runs.schema import META_FILE

Signature = tuple[tuple[str, int, int, int], ...]


class Folders:
    """Runs by the names that the pages have for them.

    A name is looked up, never made a path: whatever a request asks for, only what ``runs`` found is read.

    Args:
        given: folders of runs, and folders with runs at any depth.

    Raises:
        InputError: nothing is given, or one that is no folder.
    """

    def __init__(self, given: Sequence[str | Path]) -> None:
        self.roots = [Path(each).resolve() for each in given]
        missing = next((each for each, root in zip(given, self.roots, strict=True) if not root.is_dir()), None)
        if missing is not None or not self.roots:
            got = "no folder" if missing is not None else "none"
            remedy = "Pass the folder that Monitor or the demo writes to, or one that holds such folders"
            where = "watch" if missing is None else f"watch({missing})"
            raise input_error(where, "a run or a folder of runs", got, remedy)
        self.single = len(self.roots) == 1 and is_run(self.roots[0])

    def runs(self) -> dict[str, tuple[Path, Path]]:
        """Name -> folder of the run and the folder that was given, which it must not lead out of; by name."""
        folders: dict[str, tuple[Path, Path]] = {}
        for root in self.roots:
            for run in runs_below(root):
                parts = run.relative_to(root).parts
                name = "/".join(parts if parts and len(self.roots) == 1 else (root.name, *parts)) or "run"
                name, count = clean(name), 2
                while name in folders:  # folders of one name in different places
                    name, count = f"{clean(name)} ({count})", count + 1
                folders[name] = run, root
        return dict(sorted(folders.items()))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run."""
    return (folder / META_FILE).is_file()


def runs_below(root: Path) -> Iterator[Path]:
    """Runs at any depth; links to folders are not followed, and nothing is looked for inside a run."""
    for folder, below, files in os.walk(root):
        if META_FILE in files and is_run(Path(folder)):
            yield Path(folder)
            below.clear()
        else:
            below.sort()


def stays_inside(run: Path, root: Path) -> bool:
    """Whether no link in a run's folder leads out of the folder that was given."""
    for folder, below, files in os.walk(run):
        for name in (*below, *files):
            path = os.path.join(folder, name)  # noqa: PTH118 - thousands of them
            if os.path.islink(path) and not Path(path).resolve().is_relative_to(root):  # noqa: PTH114
                return False
    return True


def signature(run: Path) -> Signature:
    """Changes whenever a file of the run does: names, sizes and times, which are next to free to read.

    Raises:
        OSError: the folder is not there.
    """
    with os.scandir(run) as entries:
        found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    return tuple(sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found))
