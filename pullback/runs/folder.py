"""Where a run goes: what happens where a folder is taken. Nothing that anybody made is overwritten."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from pullback._checks import check_option, input_error
from pullback.runs.schema import META_FILE, RECORDS_FILE

DRAFT = ".part"  # ends the name of what is not whole yet
ON_EXISTS = ("refuse", "resume", "number")


def chosen_on_exists(on_exists: str | None, resume: int | None, where: str) -> str:
    """What to do where the folder is taken: None goes on where steps to go on from are given, and refuses else.

    Raises:
        InputError: another word.
    """
    if on_exists is None:
        return "refuse" if resume is None else "resume"
    check_option(where, "on_exists", on_exists, ON_EXISTS)
    return on_exists


def check_place(path: str | Path, on_exists: str) -> None:
    """Refuse a taken folder as early as can be, before anything is built that would be lost.

    Raises:
        InputError: the folder is taken, and nothing is to be done about it.
    """
    if on_exists == "refuse":
        check_free(Path(path))


def check_free(
    path: Path, remedy: str = "Choose another folder, or pass on_exists='number' for the next free one"
) -> None:
    """Refuse a path that is already taken; what a process killed at its start leaves is no run yet."""
    got = None
    if path.is_dir() and any(path.iterdir()) and not _is_stillborn(path):
        got = "one that holds a run" if (path / META_FILE).exists() else "one that is not empty"
    elif path.exists() and not path.is_dir():
        got = "a file"
    elif any(above.is_file() for above in path.parents):
        got = "one below a file"
    if got is not None:
        where = f"run folder {path}"
        raise input_error(where, "an empty or new folder", got, remedy)


def _is_stillborn(path: Path) -> bool:
    files = {each.name: each for each in path.iterdir()}
    records = files.get(RECORDS_FILE)
    return files.keys() <= {META_FILE + DRAFT, RECORDS_FILE} and (records is None or records.stat().st_size == 0)


def next_free(path: Path) -> Path:
    """The first of ``path``, ``path-2``, ``path-3`` and so on that is new or empty, made and claimed.

    Of several processes that look at once each gets its own: a folder belongs to whoever begins its description.
    """
    named = path if path.name else path.resolve()
    for number in count(1):
        found = named if number == 1 else named.with_name(f"{named.name}-{number}")
        if found.is_dir() or not found.exists():
            found.mkdir(parents=True, exist_ok=True)
            if not any(found.iterdir()) and _is_claimed(found / (META_FILE + DRAFT)):
                return found
    raise AssertionError  # numbers do not end


def _is_claimed(draft: Path) -> bool:
    """Whether this process, and no other, has made the file."""
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True
