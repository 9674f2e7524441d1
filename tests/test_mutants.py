"""The changes that ``tests/mutations.py`` draws from: what they are, and what they leave alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation.mutants import TUNING, draw, mutants_of

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("x = a <= b", ["x = (a > b)"]),
        ("x = 0 < n", ["x = (0 >= n)", "x = 1 < n"]),
        ("x = len(a) < n", ["x = (len(a) >= n)", "x = (len(a) <= n)"]),
        ("x = a and not b", ["x = (a or not b)", "x = a and (b)"]),
        ("x = a + b * 2", ["x = (a - b * 2)", "x = a + (b / 2)", "x = a + b * 3"]),
        ("x = min(a.any(), 0.5)", ["x = max(a.any(), 0.5)", "x = min(a.all(), 0.5)", "x = min(a.any(), 1.0)"]),
        ("x = 1e-6, 40, True", ["x = 0.0001, 40, True", "x = 1e-6, 80, True", "x = 1e-6, 40, False"]),
        ("call(a)", ["pass"]),
        ("a.b += c", ["pass"]),
        ("a.b = c", ["pass"]),
        ("if ready: pass", ["if not (ready): pass"]),
        ('raise ValueError(f"{1 + 1}")', ["pass"]),
    ],
)
def test_changes_of_a_line(line: str, changes: list[str]) -> None:
    source = f"def f():\n    {line}\n"
    found = [mutant.applied(source).splitlines()[1].strip() for mutant in mutants_of("pullback/f.py", source)]
    assert sorted(found) == sorted(changes)


@pytest.mark.parametrize(
    "text",
    [
        '"""Of 3 words."""',
        "import a.b",
        "Batch = Tensor | dict",
        "x: Literal[1, 2]",
        'x = input_error(where, "at least 1", f"{n + 1}", "Pass 1")',
        'x = {"width": 3, "color": 1}',
        "@wrapped(3)\ndef f(a: int) -> int: ...",
        'if __name__ == "__main__":\n    main()',
    ],
)
def test_words_types_and_looks_are_left_alone(text: str) -> None:
    assert mutants_of("pullback/f.py", text + "\n") == []


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("x = zip(a, b, strict=True)", "x = zip(a, b, strict=False)"),
        ("x = zip(a, b, strict=True)", "x = batched(a, strict=True)"),
        ("def f(seed=0): ...", "def f(count=0): ..."),
        ("def f(a, seed=0): ...", "def f(seed, a=0): ..."),
        ("def f(*, a, seed=0): ...", "def f(*, seed, a=0): ..."),
        ("class A:\n    seed: int = 0", "class A:\n    count: int = 0"),
        ("def f():\n    self.progress.start(3 * n)", "def f():\n    self.clock.start(3 * n)"),
        ("def f():\n    shown.advance(3)", "def f():\n    shown.append(3)"),
        ("def f():\n    x = bar.start(a + b)", "def f():\n    x = bar.start(a + b)"),
    ],
)
def test_what_cannot_alter_an_answer_is_left_alone_and_what_stands_beside_it_is_not(left: str, kept: str) -> None:
    assert bool(mutants_of("pullback/f.py", left + "\n")) == (left == kept)
    assert mutants_of("pullback/f.py", kept + "\n")


def test_constants_that_only_cut_work_are_left_alone_in_their_file() -> None:
    line = "COLUMNS = 32\n"
    assert mutants_of("pullback/gradients/matrix.py", line) == []
    assert len(mutants_of("pullback/kernels/plan/kernel_plan.py", line)) == 1
    assert len(mutants_of("pullback/gradients/matrix.py", "def f():\n    return COLUMNS + 1\n")) == 2


@pytest.mark.parametrize("path", sorted(TUNING))
def test_every_constant_that_is_left_alone_exists(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    assigned = [target for each in tree.body if isinstance(each, ast.Assign) for target in each.targets]
    names = {target.id for target in assigned if isinstance(target, ast.Name)}
    assert TUNING[path] <= names


def test_what_returns_a_number_or_a_truth_returns_a_constant() -> None:
    source = "def f() -> bool:\n    return g\n\n\ndef h() -> float:\n    return g\n"
    assert [mutant.after for mutant in mutants_of("pullback/f.py", source)] == ["False", "True", "0.0"]


def test_a_constant_is_watched_where_it_is_read_and_a_default_in_its_function() -> None:
    source = "LIMIT = 0.5\n\n\ndef f(n=3):\n    a(n)\n    b(n)\n"
    constant, default, *_ = mutants_of("pullback/f.py", source)
    assert (constant.uses, default.uses) == ("LIMIT", None)
    assert default.watch == range(5, 7)
    assert (constant.default, default.default) == (False, True)
    field, inner, *rest = mutants_of(
        "pullback/f.py", "class A:\n    n: int = 3\n\n    def f(self, k=1):\n        a(k)\n"
    )
    assert [field.default, inner.default, *(each.default for each in rest)] == [True, True, False]


@pytest.mark.slow
def test_a_draw_is_of_its_seed_and_every_change_can_be_compiled() -> None:
    first, again, other = (draw(ROOT, 40, seed, ["runs", "report"]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({(mutant.path, mutant.line) for mutant in first}) == 40
    for mutant in first:
        source = (ROOT / mutant.path).read_text()
        assert ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    assert {mutant.package for mutant in first} == {"runs", "report"}
