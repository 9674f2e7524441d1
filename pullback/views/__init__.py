"""What notebooks show of results: by their class, a card and a picture. It knows all below, and nothing knows it.

A result is shown by ``Shown`` and ``Drawn`` (``pullback._results``), which are handed ``view_of`` from here when the
package is imported. Which files draw the results of a package stands in ``HOMES``; they are loaded when one is shown.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pullback.views.view import View, drawing

HOMES = {
    "_results": ("estimates",),
    "advisor": ("findings",),
    "diagnostics": ("spectra",),
    "influence": ("influences", "plans"),
    "kernels": ("kernels", "plans"),
    "measure": ("spectra",),
    "runs": ("records",),
    "spectral": ("spectra",),
    "theory": ("spectra",),
}

__all__ = ["View", "view_of"]


def view_of(result: Any, **options: Any) -> View:
    """What is shown of a result; options are those of its drawing."""
    for kind in type(result).__mro__:
        package, _, rest = kind.__module__.partition(".")
        for home in HOMES.get(rest.partition(".")[0], ()) if package == "pullback" else ():
            import_module(f"{__name__}.{home}")
    return drawing(result, **options)
