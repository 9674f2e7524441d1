"""What lower packages ask of higher ones: handed down when the package is imported, so that none imports upwards."""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would be the dearest part of `import pullback`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

judges: list[Callable[[Any], list[Any]]] = []  # one: a run to its findings, ``pullback.diagnose``
verdicts: list[Callable[[Any, list[Any]], str]] = []  # one: a run and its findings to a sentence, ``advisor.verdict``
pages: list[Callable[[Any, Any], Any]] = []  # one: a run to its page in a file, ``pullback.write_report``
viewers: list[Callable[..., Any]] = []  # one: a result to what notebooks show of it, ``pullback.views.view_of``
