"""Tracebacks of tests end where a user's own code ends; ``--full-trace`` shows all of them.

Claims that fail hide their frames by themselves (``__tracebackhide__``). Here it is wrong input, which is a sentence:
where in this package it was noticed helps nobody. What is a defect of this package keeps its frames.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Generator
from pathlib import Path
from types import CodeType, TracebackType

import pytest

from pytest_bnn.errors import PytestBnnError

_OURS = Path(__file__).resolve().parent

#: Where code is that is no user's own.
_OTHERS = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shorten the traceback of a test before it is shown."""
    if call.excinfo is not None and not item.config.getoption("fulltrace", False):
        shorten(call.excinfo)
    return (yield)


def shorten(found: pytest.ExceptionInfo[BaseException]) -> None:
    """Leave out the frames of this package, and of what it calls, where an error is about what was given."""
    error, frames = found.value, [entry.frame.code.raw for entry in found.traceback]
    about_input = isinstance(error, PytestBnnError) or (isinstance(error, TypeError) and is_ours(frames[-1]))
    first = next((place for place, code in enumerate(frames) if is_ours(code)), 0)
    if not about_input or not first:  # without a frame of a user's there is nothing to end with
        return
    kept = _only(found.tb, lambda place, code: place < first or _is_users(code))
    assert kept is not None
    found.traceback = type(found.traceback)(kept)
    cause = error.__cause__
    while cause is not None:
        cause.__traceback__ = _only(cause.__traceback__, lambda _, code: _is_users(code))
        cause = cause.__cause__


def is_ours(code: CodeType) -> bool:
    """Return whether code is of this package."""
    return _OURS in Path(code.co_filename).parents


def _is_users(code: CodeType) -> bool:
    path = Path(code.co_filename)
    return path.is_file() and not is_ours(code) and not any(folder in path.parents for folder in _OTHERS)


def _only(traceback: TracebackType | None, wanted: Callable[[int, CodeType], bool]) -> TracebackType | None:
    """Return a traceback of the frames that are wanted, by their place and their code."""
    frames = []
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    for place, one in reversed([*enumerate(frames)]):
        if wanted(place, one.tb_frame.f_code):
            traceback = TracebackType(traceback, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return traceback
