"""Whether a test expected an error: it caught it by ``pytest.raises``, or failed with it."""

from __future__ import annotations

import ast
import inspect
from functools import lru_cache
from pathlib import Path
from types import TracebackType

#: What is called where an error is expected.
_EXPECTING = {"raises", "assertRaises", "assertRaisesRegex"}
#: Where the functions of these names call what they are given.
_MODULES = ("_pytest.", "unittest.case")
_RAISING = ("_pytest.raises", "_pytest.python_api")


def is_behind(error: BaseException, ending: BaseException) -> bool:
    """Return whether an error is, caused, or is a part of the error that a test ended with."""
    left, seen = [ending], set()
    while left:
        one = left.pop()
        if one is error:
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        left += [other for other in (one.__cause__, one.__context__) if other is not None]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
    return False


def is_caught_by_raises(error: BaseException) -> bool:
    """Return whether an error that was caught was caught by ``pytest.raises`` or by a test case's ``assertRaises``.

    The outermost line of its traceback is the one that caught it: inside a ``with`` statement of that name, or in the
    function of that name itself.
    """
    catching: TracebackType | None = error.__traceback__
    if catching is None:  # as assertRaises leaves it
        return True
    frame = catching.tb_frame
    if str(frame.f_globals.get("__name__", "")).startswith(_MODULES):
        return True
    return any(first <= catching.tb_lineno <= last for first, last in _expecting(frame.f_code.co_filename))


def is_wanted() -> bool:
    """Return whether whoever called expects an error: inside ``pytest.raises``, or a test case's ``assertRaises``."""
    frame = inspect.currentframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(_RAISING):
            return True
        if name.startswith("_pytest."):  # what called the test, or its fixture
            return False
        if not name.startswith("pytest_bnn."):
            line = frame.f_lineno
            if any(first <= line <= last for first, last in _expecting(frame.f_code.co_filename)):
                return True
        frame = frame.f_back
    return False


def _expecting(file: str) -> tuple[tuple[int, int], ...]:
    """Return the first and the last line of each ``with`` statement of a file in which an error is expected."""
    try:
        return _expecting_in(Path(file), Path(file).stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError):
        return ()


@lru_cache(maxsize=64)
def _expecting_in(file: Path, changed: int) -> tuple[tuple[int, int], ...]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            calls = (item.context_expr for item in node.items)
            names = {_name(call.func) for call in calls if isinstance(call, ast.Call)}
            if names & _EXPECTING:
                found.append((node.lineno, node.end_lineno or node.lineno))
    return tuple(found)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
