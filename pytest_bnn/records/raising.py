"""Who hears that a claim raised its AssertionError, so that one which a test catches is known as expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

#: Called with the error and the evidence that it is about.
Listener: TypeAlias = Callable[[AssertionError, Sequence[Any]], None]

_listener: ContextVar[Listener | None] = ContextVar("pytest_bnn_raising", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let ``listener`` hear of every error that a claim raises inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def raising(words: str, evidence: Sequence[Any]) -> AssertionError:
    """Return the error to raise for failed evidence, and let the listener know of it.

    Args:
        words: What the error says.
        evidence: The failed `Evidence` that it is about.
    """
    error = AssertionError(words)
    listener = _listener.get()
    if listener is not None:
        listener(error, evidence)
    return error
