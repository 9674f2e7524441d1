"""The geometry of neural-network training, exact and cheap enough to leave on.

Public names stand in ``__init__.pyi``, each once, and are loaded when they are first used, so that ``import pullback``
itself costs next to nothing.
"""

import sys

import lazy_loader

from pullback import _hooks

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name not in __all__:  # worded as Python does, with what it needs to suggest the name that was meant
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])
    return _load(name)


def _view(result: object, **options: object) -> object:
    from pullback.views import view_of  # and charts with it

    return view_of(result, **options)


def _verdict(run: object, findings: list) -> str:
    from pullback.advisor import verdict

    return verdict(run, findings)


# Loaded when a run's findings, what they come to, or its page are first asked for.
_hooks.judges[:] = [lambda run: _load("diagnose")(run)]
_hooks.verdicts[:] = [_verdict]
_hooks.pages[:] = [lambda run, path: _load("write_report")(run, path)]
_hooks.viewers[:] = [_view]
