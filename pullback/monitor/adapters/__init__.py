"""The monitor as a callback of other packages' trainers. Each file imports its package, once the file is used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pullback._checks import input_error
from pullback.runs.folder import check_place, chosen_on_exists


def base_class(modules: tuple[str, ...], name: str, extra: str) -> Any:
    """A class of the first of these modules that is installed.

    Raises:
        InputError: none is.
    """
    for module in modules:
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
                raise  # the package is there, and lacks one of its own
    where, packages = f"pullback.monitor[{extra}]", " or ".join(module.partition(".")[0] for module in modules)
    raise input_error(where, f"the package {packages}", "no such package", f"pip install 'pullback[{extra}]'")


def check_asked(run_dir: str | Path, options: Mapping[str, Any], where: str) -> None:
    """Refuse a taken folder, and a wrong ``on_exists``, before the trainer is made; without it the trainer decides.

    Raises:
        InputError: the folder is taken and is to be refused; another word.
    """
    asked = options.get("on_exists")
    if asked is not None:
        check_place(run_dir, chosen_on_exists(asked, None, where))


def steps_behind(global_step: int, options: Mapping[str, Any]) -> int | None:
    """Steps that a trainer's weights have behind them, as ``Monitor`` takes them; None of a new training."""
    return global_step if options.get("on_exists") == "resume" else global_step or None
