"""What an audit is doing now, told to whoever watches: through a context variable, so that nobody hands it on.

Nothing here starts a thread, and telling that a pass was drawn costs about a microsecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeAlias

#: Seconds between two reports of one check's passes, at the least.
EVERY = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What an audit is doing: judging a check on a subject, or something else, in words.

    Attributes:
        note: What is being done beside a check, such as ``"fine-tuning, step 3 of 40"``.
        subject: The name of the model.
        check: The id of the check.
        number: Which check of the audit it is, from 1; 0 for a check outside of an audit.
        of: How many checks the audit has.
        ahead: The ids of those that follow.
        passes: How many Monte-Carlo passes were drawn for this check so far.
        most_passes: The most that it may draw; 0 where that is not known.
        certainty: What the passes show so far, in words; empty where the check does not say.
        processes: How many processes share the checks that follow.
    """

    note: str = ""
    subject: str = ""
    check: str = ""
    number: int = 0
    of: int = 0
    ahead: tuple[str, ...] = ()
    passes: int = 0
    most_passes: int = 0
    certainty: str = ""
    processes: int = 1

    def __str__(self) -> str:
        """Return it as one line of text."""
        if not self.check:
            return self.note
        parts = [f"check {self.number} of {self.of}"] if self.of else []
        parts.append(f"{self.check} on {self.subject}" if self.subject else self.check)
        if self.passes:
            most = f" of at most {self.most_passes:,}" if self.passes <= self.most_passes else ""
            parts.append(f"{self.passes:,}{most} {'pass' if self.passes == 1 and not most else 'passes'} drawn")
        return ", ".join([*parts, *filter(None, (self.certainty, self.note))])


#: Called with what the audit is doing now: at every check, and some times a second while it draws passes.
Progress: TypeAlias = Callable[[Event], object]


class _Watch:
    """A watcher, and what it was told last."""

    def __init__(self, watcher: Progress) -> None:
        self.watcher = watcher
        self.now = Event()
        self.passes = 0
        self.told = 0.0
        self.thread = threading.get_ident()

    def begin(self, now: Event) -> None:
        self.now, self.passes, self.told = now, 0, time.monotonic()
        self.watcher(now)

    def drawn(self, passes: int) -> None:
        self.passes += passes
        if time.monotonic() - self.told >= EVERY and threading.get_ident() == self.thread:
            self.tell()

    def tell(self) -> None:
        """Report passes. Who watches must not make a check fail: what is raised here is dropped."""
        self.told = time.monotonic()
        self.now = replace(self.now, passes=self.passes)
        with suppress(Exception):
            self.watcher(self.now)


_watch: ContextVar[_Watch | None] = ContextVar("pytest_bnn_progress", default=None)


@contextmanager
def watching(watcher: Progress | None) -> Iterator[None]:
    """Let a watcher be told what is done inside; None leaves the one that is there."""
    if watcher is None:
        yield
        return
    token = _watch.set(_Watch(watcher))
    try:
        yield
    finally:
        _watch.reset(token)


@contextmanager
def unwatched() -> Iterator[None]:
    """Let nobody be told what is done inside."""
    token = _watch.set(None)
    try:
        yield
    finally:
        _watch.reset(token)


def begin(now: Event) -> None:
    """Say what begins. What the watcher raises ends it."""
    watch = _watch.get()
    if watch is not None:
        watch.begin(now)


def drawn() -> Callable[[int], None]:
    """Return a function that takes how many passes were drawn; any thread may call it."""
    watch = _watch.get()
    return _ignore if watch is None else watch.drawn


def so_far(certainty: str) -> None:
    """Say what the passes of a check show so far."""
    watch = _watch.get()
    if watch is not None:
        watch.now = replace(watch.now, certainty=certainty)
        watch.drawn(0)


def watched() -> bool:
    """Return whether anybody watches."""
    return _watch.get() is not None


def _ignore(passes: int) -> None:
    """Nobody watches."""
