"""Whether an error that a test caught was expected: told by what caught it."""

from __future__ import annotations

import unittest
from contextlib import suppress

import pytest
from pytest import raises  # noqa: PT013  imported as users do

from pytest_bnn.gathering.catching import is_behind, is_caught_by_raises


def fail(error: BaseException) -> None:
    raise error


def test_pytest_raises() -> None:
    """As a statement by either name, beside others, over several lines, and as a function."""
    errors = [AssertionError(str(number)) for number in range(5)]
    with pytest.raises(AssertionError):
        fail(errors[0])
    with raises(AssertionError, match="1"):
        fail(errors[1])
    with (
        suppress(ValueError),
        pytest.raises(AssertionError),
    ):
        fail(errors[2])
    pytest.raises(AssertionError, fail, errors[3])  # noqa: RUF061  users do
    with unittest.TestCase().assertRaises(AssertionError):  # noqa: PT027  users do
        fail(errors[4])
    assert [is_caught_by_raises(error) for error in errors] == [True] * 5


def test_otherwise_caught() -> None:
    """Who retries, collects errors or suppresses them has not said that it should fail."""
    errors = [AssertionError(str(number)) for number in range(2)]
    found = []
    try:
        fail(errors[0])
    except AssertionError as error:
        found.append(error)
    with suppress(AssertionError):
        fail(errors[1])
    assert found == errors[:1]
    assert [is_caught_by_raises(error) for error in errors] == [False] * 2


def test_behind() -> None:
    """The error itself, its cause, what it was raised beside, and a part of a group."""
    inner = AssertionError("inner")

    def caused(how: str) -> BaseException:
        try:
            try:
                raise inner
            except AssertionError as error:
                if how == "cause":
                    raise ValueError from error
                raise ValueError  # noqa: B904
        except ValueError as found:
            return found

    assert is_behind(inner, inner)
    assert is_behind(inner, caused("cause"))
    assert is_behind(inner, caused("context"))
    assert is_behind(inner, ExceptionGroup("two", [KeyError(), ExceptionGroup("one", [inner])]))
    assert not is_behind(AssertionError("inner"), inner)
    circle = ValueError()
    circle.__context__ = KeyError()
    circle.__context__.__context__ = circle
    assert not is_behind(inner, circle)
