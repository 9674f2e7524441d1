"""What is handed out, built once, and an environment with nothing but it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.command import HANGS

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, code: int = 0, **environment: str) -> str:
    """What a command prints, away from the checkout; it must end with this code."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution and wheel, the wheel built from the source distribution as ``python -m build`` does."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="session")
def empty(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment with the wheel and nothing else installed.

    What the wheel depends on is not downloaded again: it is found in the environment of the tests, which comes last on
    the path. The package itself is not found there, since links to it are followed in folders of packages alone.
    """
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=False, symlinks=True)
    (home,) = folder.glob("lib/python*/site-packages")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--no-deps",
        "--no-index",
        made[1],
        cwd=folder,
    )
    dependencies = Path(pytest.__file__).parents[1]
    (home / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin" / "python"
