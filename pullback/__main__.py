"""``python -m pullback``."""

from pullback.cli.main import run

run()
