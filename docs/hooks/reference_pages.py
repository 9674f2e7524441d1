"""Pages of the reference: every public name once, on the page of the module that makes it, from its docstring.

The names are those of ``pullback/__init__.pyi``, and of ``__all__`` of the modules that are public themselves.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

PRIVATE = {"_checks": "results", "_results": "results", "_version": "results"}
TITLES = {
    "kernels": "Kernels",
    "operators": "Operators",
    "spectral": "Spectra and solves",
    "influence": "Influence",
    "diagnostics": "Diagnostics",
    "monitor": "Monitor",
    "runs": "Runs",
    "advisor": "Findings",
    "controllers": "Controllers",
    "report": "Reports",
    "theory": "Theory",
    "measure": "Measurements",
    "modules": "Modules",
    "dynamics": "Dynamics",
    "functional": "Models as functions",
    "reference": "Dense reference",
    "results": "Results and errors",
}


def modules(root: Path) -> dict[str, str]:
    """Names of the pages, with their titles, in order."""
    found = _by_page(root)
    unknown = found.keys() - TITLES.keys()
    if unknown:
        message = f"expected every module of public names to have a title, got none for {sorted(unknown)}"
        raise KeyError(message)
    return {page: TITLES[page] for page in TITLES if page in found}


def pages(root: Path) -> dict[str, str]:
    """Every page, by its place in the site."""
    made = {f"reference/{page}.md": _page(root, page, names) for page, names in _by_page(root).items()}
    return made | {"reference/index.md": _index(root)}


def public(root: Path) -> list[tuple[str, str]]:
    """Module and name of every line of the stub; a module that is public itself has no module before it."""
    tree = ast.parse((root / "pullback" / "__init__.pyi").read_text(encoding="utf-8"))
    return [
        (node.module or "", alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def _by_page(root: Path) -> dict[str, list[str]]:
    """Full names of what stands on each page."""
    found: dict[str, list[str]] = {}
    for module, name in public(root):
        if module:
            page = PRIVATE.get(module, module)
            found.setdefault(page, []).append(f"pullback.{module}.{name}")
        else:
            found.setdefault(name, []).extend(f"pullback.{name}.{each}" for each in _all_of(root, name))
    return {page: list(dict.fromkeys(names)) for page, names in found.items()}


def _all_of(root: Path, module: str) -> list[str]:
    """``__all__`` of a module, read and not imported."""
    for node in _tree(root, module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    message = f"expected pullback.{module} to have a literal __all__, got none"
    raise LookupError(message)


def _tree(root: Path, module: str) -> ast.Module:
    return ast.parse((root / "pullback" / module / "__init__.py").read_text(encoding="utf-8"))


def _page(root: Path, page: str, names: list[str]) -> str:
    about = "What calls return beside tensors, and what they raise."
    if page not in PRIVATE.values():
        about = inspect.cleandoc(ast.get_docstring(_tree(root, page)) or "").replace("``", "`")
    entries = "\n\n".join(f"::: {name}" for name in names)
    return f"# {TITLES[page]}\n\n{about}\n\n{entries}\n"


def _index(root: Path) -> str:
    """All names in one table, each with a link to its entry."""
    lines = [
        "# Reference",
        "",
        "`import pullback as pb`, then `pb.` and one of these. Nothing is loaded before it is used.",
        "",
    ]
    lines += ["| name | page |", "|---|---|"]
    for module, name in sorted(public(root), key=lambda each: each[1].lower()):
        page = PRIVATE.get(module, module) or name
        anchor = f"#pullback.{module}.{name}" if module else ""
        lines.append(f"| [`{name}`]({page}.md{anchor}) | [{TITLES[page]}]({page}.md) |")
    return "\n".join(lines) + "\n"
