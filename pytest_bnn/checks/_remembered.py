"""What checks of a subject compute once for each other, with what drew the passes behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pytest_bnn.subject import Subject

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DrawnBy:
    """What drew the passes behind something that is remembered, and why, in words."""

    samplers: tuple[str, ...]


def drawn_by_key(key: str) -> str:
    """Return where a subject's evaluations say what drew the passes behind another one."""
    return f"{key}, drawn by"


def remembered(subject: Subject, key: str, compute: Callable[[], T], *, again: bool = False) -> T:
    """Return what a subject's evaluations have under a key, computed where it is not there.

    The passes behind it count as given out to whoever gets it: a check says what drew them, whoever asked first.

    Args:
        subject: Whose.
        key: Its name.
        compute: Computes it.
        again: Compute it in any case; what drew the passes behind it before stays said.
    """
    known = subject.evaluations.get(drawn_by_key(key))
    words = known.samplers if isinstance(known, DrawnBy) else ()
    if again or key not in subject.evaluations:
        before = dict(subject.samplers)
        subject.samplers.clear()
        try:
            subject.evaluations[key] = compute()
        finally:
            words = tuple(dict.fromkeys((*words, *subject.samplers)))
            subject.evaluations[drawn_by_key(key)] = DrawnBy(words)
            subject.samplers.clear()
            subject.samplers.update(before)
    subject.samplers.update(dict.fromkeys(words))
    found: T = subject.evaluations[key]  # type: ignore[assignment]
    return found
