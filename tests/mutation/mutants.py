"""Which small changes a source file admits: one operator, constant, condition, call or statement at a time.

Left alone are words (texts of messages, docstrings, names), types, imports, decorators and the looks of charts: no test
should hold a package to them. So is a comparison's edge between floats (``<`` for ``<=``), which no float tells apart.

Left alone is also what cannot alter an answer, an error, a record, a file or what a memory limit is kept by:

- ``strict=True`` of a ``zip``: it guards against a fault of the package itself, whose sides are equally long.
- The default of a parameter ``seed``: another seed is as good, and a test of the one draw would hold to chance.
- ``TUNING``: constants that only say into how large pieces a loop is cut, how long speeds are measured, or how often
  progress is told. Constants that a plan's bytes or seconds, a route, a file or a refusal follow from are not in it.
- Calls that move a bar of progress (``PROGRESS``): their amounts are shown and nothing else.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
EDGES: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
NAMES = {"min": "max", "any": "all", "amin": "amax", "minimum": "maximum", "floor": "ceil", "argmin": "argmax"}
NAMES |= {other: name for name, other in NAMES.items()}
WORDING = {
    "sentence",
    "input_error",
    "unsupported",
    "self_check_error",
    "Option",
    "Argument",
    "cast",
    "TypeVar",
    "echo",
}
LOOKS = {
    *("color", "colors", "colorscale", "colorbar", "fill", "fillcolor", "font", "height", "hovertemplate", "layout"),
    *(
        "legend",
        "legendgroup",
        "line",
        "line_width",
        "margin",
        "marker",
        "mode",
        "opacity",
        "pad",
        "showlegend",
        "size",
    ),
    *("standoff", "style", "thickness", "tickangle", "width", "x0", "xanchor", "yanchor", "stacklevel"),
}
TUNING = {
    "pullback/_progress.py": {"PATIENCE", "LINE_EVERY"},
    "pullback/functional/agreement.py": {"PIECE"},
    "pullback/influence/held_rows.py": {"CAPTURED", "BLOCK_BYTES"},
    "pullback/gradients/rows/pieces.py": {"_CACHED_BYTES"},
    "pullback/kernels/plan/rates.py": {"WHILE"},
    "pullback/gradients/matrix.py": {"COLUMNS"},
    "pullback/gradients/rows/outer.py": {"_NUMBERS"},
    "pullback/gradients/capture/derived.py": {"_ROWS_AT_A_TIME"},
    "pullback/measure/boundary_curvature.py": {"COLUMNS_AT_ONCE"},
    "pullback/operators/flat_derivatives.py": {"BLOCK_BYTES", "GRAPH_TO_FORWARD"},
}
PROGRESS = {"bar", "progress", "shown"}, {"start", "advance", "update", "stop"}  # what is called, and by which names
CONSTANT = {"bool": ("True", "False"), "int": ("0",), "float": ("0.0",)}
Edit = tuple[ast.AST, str]  # what is replaced, and the text in its place


@dataclass(frozen=True)
class Mutant:
    """One change.

    Args:
        path: of the file, from the root of the repository.
        line: first line of what is changed.
        span: bytes of the file from ... to that are replaced by ``after``.
        watch: lines whose execution is what a test needs to notice it.
        uses: name of a constant of the module, whose readers are to be watched as well.
        default: whether it is the default of an argument, which is also read off the signature.
    """

    path: str
    line: int
    span: tuple[int, int]
    before: str
    after: str
    watch: range
    uses: str | None = None
    default: bool = False

    @property
    def package(self) -> str:
        """Folder below ``pullback``, or the file itself."""
        return Path(self.path).parts[1].removesuffix(".py")

    def applied(self, source: str) -> str:
        """The file with the change in it."""
        data = source.encode()
        return (data[: self.span[0]] + self.after.encode() + data[self.span[1] :]).decode()

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.path}:{self.line}  {before[:90]}  ->  {after[:90]}"


def draw(root: Path, count: int, seed: int, packages: Iterable[str] = ()) -> list[Mutant]:
    """So many changes, each of another line, every line that admits one with the same chance."""
    chosen, asked = random.Random(seed), set(packages)
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for path in sorted((root / "pullback").rglob("*.py")):
        for mutant in mutants_of(path.relative_to(root).as_posix(), path.read_text()):
            if not asked or mutant.package in asked:
                lines.setdefault((mutant.path, mutant.line), []).append(mutant)
    places = chosen.sample(sorted(lines), min(count, len(lines)))
    return [chosen.choice(lines[place]) for place in places]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All changes a file admits, in the order of their lines."""
    starts, data = [0, 0], source.encode()
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []
    for (node, after), home in _edits(ast.parse(source)):
        if home.uses in TUNING.get(path, ()):
            continue
        a = starts[node.lineno] + node.col_offset  # type: ignore[attr-defined]
        b = starts[node.end_lineno] + node.end_col_offset  # type: ignore[attr-defined]
        before = data[a:b].decode()
        if before != after:
            found.append(replace(home, path=path, line=node.lineno, span=(a, b), before=before, after=after))  # type: ignore[attr-defined]
    return sorted(found, key=lambda mutant: (mutant.line, mutant.span, mutant.after))


def _edits(tree: ast.Module) -> Iterator[tuple[Edit, Mutant]]:
    """Every edit, with where it can be watched."""
    for statement in tree.body:
        yield from _of_statement(statement, _home(statement))


def _home(statement: ast.stmt) -> Mutant:
    """Of a statement of the module, which runs at import: a constant is watched where it is read."""
    name = None
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            pass
    return Mutant("", 0, (0, 0), "", "", _lines(statement), name)


def _lines(node: ast.stmt) -> range:
    """All of a simple statement; of one with a body, its head."""
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
    return range(node.lineno, max(last, node.lineno) + 1)


def _of_statement(
    node: ast.stmt, home: Mutant, returns: str = "", where: str = "module"
) -> Iterator[tuple[Edit, Mutant]]:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Global() | ast.Nonlocal() | ast.Pass():
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return
        case ast.AnnAssign(target=ast.Name(id="seed")):  # of a dataclass
            return
        case ast.FunctionDef():
            inside = replace(home, watch=range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1), uses=None)
            for default in _defaults(node.args):
                yield from ((edit, replace(inside, default=True)) for edit in _of_expression(default))
            returns = ast.unparse(node.returns) if node.returns else ""
            for each in node.body:
                yield from _of_statement(each, replace(inside, watch=_lines(each)), returns, node.name)
        case ast.ClassDef():
            inside = replace(home, watch=range(node.lineno, (node.end_lineno or 0) + 1))
            for each in node.body:  # a field of a dataclass is an argument of its ``__init__``
                yield from _of_statement(each, replace(inside, default=isinstance(each, ast.AnnAssign)), "", "class")
        case _:
            yield from ((edit, home) for edit in _of_simple(node, returns, where))
            for each in _below(node):
                yield from _of_statement(each, replace(home, watch=_lines(each)), returns, where)


def _defaults(args: ast.arguments) -> Iterator[ast.expr]:
    """Of all parameters but seeds."""
    positional = [*args.posonlyargs, *args.args]
    pairs = [
        *zip(reversed(positional), reversed(args.defaults), strict=False),
        *zip(args.kwonlyargs, args.kw_defaults, strict=True),
    ]
    yield from (default for parameter, default in pairs if default and parameter.arg != "seed")


def _below(node: ast.stmt) -> Iterator[ast.stmt]:
    """Statements of the bodies of one that branches or repeats."""
    for field in ("body", "orelse", "finalbody"):
        yield from getattr(node, field, [])
    for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
        yield from part.body


def _of_simple(node: ast.stmt, returns: str, where: str) -> Iterator[Edit]:
    """Edits of a statement outside its bodies."""
    match node:
        case ast.Raise():
            yield node, "pass"
            return
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=receiver, attr=called))) if _is_progress(
            receiver, called
        ):
            return
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue():
            yield node, "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) if where not in ("__init__", "__post_init__"):
            yield node, "pass"
        case ast.Return(value=ast.expr()):
            yield from ((node.value, constant) for constant in CONSTANT.get(returns, ()))  # type: ignore[misc]
        case ast.If() | ast.While() if not isinstance(node.test, ast.Compare | ast.UnaryOp | ast.BoolOp):
            yield node.test, f"not ({ast.unparse(node.test)})"
    types = where in ("module", "class") and isinstance(node, ast.Assign)  # `Batch = Tensor | dict` is no sum
    for field, value in ast.iter_fields(node):
        if field in ("body", "orelse", "finalbody", "handlers", "cases", "annotation", "targets", "target"):
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.withitem):
                yield from _of_expression(each.context_expr)
            elif isinstance(each, ast.expr) and not (types and isinstance(each, ast.BinOp | ast.Subscript)):
                yield from _of_expression(each)


def _of_expression(node: ast.AST, wrap: Callable[[str], str] = "({})".format) -> Iterator[Edit]:
    match node:
        case ast.JoinedStr() | ast.FormattedValue():
            return
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                counts = any(_counts(each) for each in [node.left, *node.comparators])
                for table in (COMPARED, EDGES) if counts else (COMPARED,):
                    if other := table.get(type(op)):
                        changed = ast.Compare(node.left, [*ops[:place], other(), *ops[place + 1 :]], node.comparators)
                        yield node, wrap(ast.unparse(changed))
        case ast.BoolOp(op=op):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, wrap(ast.unparse(ast.BoolOp(other, node.values)))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield node, wrap(ast.unparse(operand))
        case ast.BinOp(op=op) if type(op) in ARITHMETIC and not _is_text(node):
            yield node, wrap(ast.unparse(ast.BinOp(node.left, ARITHMETIC[type(op)](), node.right)))
        case ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp | ast.BoolOp):
            yield test, wrap(f"not ({ast.unparse(test)})")
        case ast.Constant(value=value) if (other := _other(value)) is not None:
            yield node, other
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in NAMES:
            yield node.func, ast.unparse(node.func).removesuffix(name) + NAMES[name]
    yield from _of_children(node)


def _of_children(node: ast.AST) -> Iterator[Edit]:
    """Edits of what an expression is made of, but for words and looks."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in WORDING:
            return
        case ast.Lambda():
            yield from _of_expression(node.body)
        case ast.Dict():
            for key, value in zip(node.keys, node.values, strict=True):
                if not (isinstance(key, ast.Constant) and key.value in LOOKS):
                    yield from _of_expression(value)
        case ast.Subscript(value=ast.Name(id="Literal" | "dict" | "list" | "tuple")):
            return
        case _:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.keyword) and (child.arg in LOOKS or _is_strict(node, child)):
                    continue
                yield from _of_expression(child)


def _is_progress(receiver: ast.expr, called: str) -> bool:
    name = getattr(receiver, "attr", None) or getattr(receiver, "id", None)
    return name in PROGRESS[0] and called in PROGRESS[1]


def _is_strict(node: ast.AST, keyword: ast.keyword) -> bool:
    """Whether this is ``strict=True`` of a ``zip``."""
    match node, keyword:
        case ast.Call(func=ast.Name(id="zip")), ast.keyword(arg="strict", value=ast.Constant(value=True)):
            return True
    return False


def _counts(node: ast.expr) -> bool:
    """Whether a comparison's side is a whole number, so that its edge can be told."""
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int) and not isinstance(value, bool) and value > 0
        case ast.Call(func=ast.Name(id="len")):
            return True
    return False


def _is_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(each, ast.JoinedStr) or (isinstance(each, ast.Constant) and isinstance(each.value, str))
        for each in ast.walk(node)
    )


def _other(value: object) -> str | None:
    """Another constant: the other truth value, the next whole number or twice a float, 100 times what is tiny."""
    match value:
        case bool():
            return repr(not value)
        case int():
            return repr(value + 1 if abs(value) < 8 else 2 * value)
        case float() if value:
            return repr(float(f"{value * (100 if abs(value) < 1e-3 else 2):.12g}"))
        case float():
            return "1.0"
    return None
