"""Defaults of public arguments and options are promises: ``tests/data/defaults.txt``, which reviews see change, holds.

Who changes one on purpose changes its line there and says so in CHANGELOG.md. A new argument gets a line of its own:
``python -m tests.test_defaults`` prints what the file should hold.
"""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import pullback
from pullback.cli.main import app

PACKAGES = ("diagnostics", "dynamics", "functional", "influence", "kernels", "measure", "modules", "operators")
PACKAGES += ("reference", "runs", "spectral", "theory")
NAMESPACES = ("pullback", *(f"pullback.{name}" for name in PACKAGES), "pullback.dynamics.textbook")
PLAIN = (bool, int, float, str, tuple, type(None), Path)
FILE = Path(__file__).parent / "data" / "defaults.txt"


def stated(value: Any) -> dict[str, str]:
    """Defaults as they are written in a call, but for seeds and for what is no plain value."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return {}
    plain = {p.name: p.default for p in parameters if p.name != "seed" and isinstance(p.default, PLAIN)}
    return {name: repr(value if type(value) in PLAIN[:-1] else str(value)) for name, value in plain.items()}


def public() -> dict[str, dict[str, str]]:
    """Defaults of each public function, class and method, under the first name it is offered by."""
    found: dict[str, dict[str, str]] = {}
    seen: set[int] = set()
    for namespace in NAMESPACES:
        module = import_module(namespace)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if id(value) in seen or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            seen.add(id(value))
            found[f"{namespace}.{name}"] = stated(value)
            for inner in vars(value) if inspect.isclass(value) else ():
                if not inner.startswith("_") and callable(getattr(value, inner)):
                    found[f"{namespace}.{name}.{inner}"] = stated(getattr(value, inner))
    found |= {f"command {name}": stated(value) for name, value in commands().items()}
    return {where: defaults for where, defaults in found.items() if defaults}


def commands() -> dict[str, Any]:
    """Functions behind the commands of ``pullback``, by the words that are typed."""
    groups = [("", app), *((f"{group.name} ", group.typer_instance) for group in app.registered_groups)]
    return {
        f"{group}{each.name or getattr(each.callback, '__name__', '')}": each.callback
        for group, inside in groups
        for each in getattr(inside, "registered_commands", ())
    }


FOUND = public()


def test_what_is_typed_first_is_in_the_file() -> None:
    """Every name of ``pullback`` itself and every command; those of its packages as they become settled."""
    held = {line.partition("(")[0] for line in FILE.read_text().splitlines()}
    first = {where for where in FOUND if where.startswith("command ") or where.split(".")[1] in pullback.__all__}
    assert sorted(first - held) == [], "say what is promised: see above"


@pytest.mark.parametrize("line", FILE.read_text().splitlines(), ids=lambda line: line.partition("(")[0])
def test_a_promised_default(line: str) -> None:
    where, _, rest = line.removesuffix(")").partition("(")
    assert where in FOUND, "no longer public, or without defaults: change the line"
    found = FOUND[where]
    call = ast.parse(f"call({rest})", mode="eval").body
    assert isinstance(call, ast.Call)
    assert ", ".join(f"{each.arg}={found.get(each.arg or '')}" for each in call.keywords) == rest


if __name__ == "__main__":
    for where, defaults in sorted(FOUND.items()):
        print(f"{where}({', '.join(f'{name}={value}' for name, value in defaults.items())})")
