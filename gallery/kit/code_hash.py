"""What of a page's script makes its numbers, as a hash: a stored run belongs to the script it has in common with it.

Left out are docstrings and what pages say, allow and draw (names of rows, the paper's numbers, tolerances, figures), so
that a page can be worded or held more tightly without being computed again; its small size, which no stored run
has; and where names are imported from, since files of the package may move.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

HERE = {
    "row": 2,
    "measured": 2,
    "at_most": 2,
    "at_least": 2,
    "mostly": 1,
}  # place of what was found among the arguments
SHOWN = ("draw", "facts", "set")


def code_of(script: Path) -> str:
    """Hash of the script's code, without what is only said of it."""
    return hashlib.sha256(ast.dump(computing(script.read_text(encoding="utf-8"))).encode()).hexdigest()[:32]


def computing(text: str) -> ast.AST:
    """The tree of a script without what is only said, and then without what only that made use of."""
    tree = _Computing().visit(ast.parse(text))
    while True:
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        before = ast.dump(tree)
        tree = _Used(used).visit(tree)
        if ast.dump(tree) == before:
            return tree


class _Used(ast.NodeTransformer):
    """Drops assignments to names that nothing reads, and functions that nothing calls."""

    def __init__(self, used: set[str]) -> None:
        self.used = used

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        names = [each for target in node.targets for each in ast.walk(target)]
        plain = all(isinstance(each, ast.Name | ast.Tuple | ast.Starred | ast.expr_context) for each in names)
        if plain and not self.used.intersection(each.id for each in names if isinstance(each, ast.Name)):
            return ast.Pass()
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if node.name not in self.used and node.name.startswith("_"):
            return None
        return self.generic_visit(node)

    def visit_Pass(self, node: ast.Pass) -> None:
        return None


class _Computing(ast.NodeTransformer):
    """Keeps what computes: a text alone is a docstring, a call of the page what it was given to compare."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "pick":
            node.keywords = [each for each in node.keywords if each.arg != "small"]
        return self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant):
            return ast.copy_location(ast.Pass(), node)
        call = node.value
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and isinstance(call.func.value, ast.Name)
        ):
            if call.func.value.id == "page" and call.func.attr in HERE:
                found = call.args[HERE[call.func.attr]] if len(call.args) > HERE[call.func.attr] else None
                here = next((each.value for each in call.keywords if each.arg in ("here", "value")), found)
                return ast.Expr(self.visit(here)) if here is not None else ast.Pass()
            if call.func.value.id == "page" and call.func.attr in SHOWN:
                return ast.Pass()
        return self.generic_visit(node)
