"""The monitor as a callback of other packages' trainers. Each file imports its package, once the file is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pullback._checks import input_error


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
