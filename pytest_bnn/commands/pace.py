"""How long an audit still takes, from the checks ahead and from what they took before."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from pytest_bnn.progress import Event

#: Past seconds below which they say nothing about how fast this machine is today.
_ENOUGH = 1.0


class Pace:
    """Knows how long checks take: from an earlier audit, and from those of this audit that are done.

    Args:
        past: Seconds of each check in an earlier audit, by its id.
        clock: Gives the time in seconds.
    """

    def __init__(self, past: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._past = past
        self._clock = clock
        self._start = self._began = clock()
        self._now = Event()
        self._done: list[tuple[str, float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._start

    def take(self, now: Event) -> None:
        """Take what the audit is doing now."""
        before = self._now
        if (now.subject, now.check, now.number) != (before.subject, before.check, before.number):
            at = self._clock()
            if before.check:
                self._done.append((before.check, at - self._began))
            self._began = at
        self._now = now

    def left(self) -> float | None:
        """Return about how many seconds are left; None where too little is known to say."""
        now = self._now
        if not now.of:
            return None
        factor = self._factor()
        known = {id: factor * seconds for id, seconds in self._past.items()} | dict(self._done)
        unknown = {id for id in now.ahead if id not in known}
        if unknown and 2 * now.number < now.of:
            return None
        usual = fmean(seconds for _, seconds in self._done) if self._done else 0.0
        of_this = max(0.0, known.get(now.check, usual) - (self._clock() - self._began))
        return of_this + sum(known.get(id, usual) for id in now.ahead) / now.processes

    def _factor(self) -> float:
        """Return how much slower this audit is than the earlier one was."""
        both = [(seconds, self._past[id]) for id, seconds in self._done if id in self._past]
        before = sum(past for _, past in both)
        return min(5.0, max(0.2, sum(seconds for seconds, _ in both) / before)) if before >= _ENOUGH else 1.0


def seconds_of(path: Path) -> dict[str, float]:
    """Return how long each check took in the audit that a JSON holds; nothing where there is none."""
    from pytest_bnn.records.run import AuditRun

    found: dict[str, list[float]] = {}
    with suppress(Exception):  # any file may have this name
        for check in AuditRun.from_json(path.read_text(encoding="utf-8")).checks:
            found.setdefault(check.id, []).append(check.seconds)
    return {id: fmean(seconds) for id, seconds in found.items()}


def in_words(seconds: float) -> str:
    """Say a duration roughly: ``20 s``, ``3 min``."""
    if seconds < 57.5:
        return f"{5 * max(1, round(seconds / 5))} s"
    return f"{round(seconds / 60)} min"
