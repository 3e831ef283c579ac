"""What the command line shows while an audit runs: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pytest_bnn.commands.pace import Pace, in_words, seconds_of
from pytest_bnn.progress import Event
from pytest_bnn.records.codec import clean

if TYPE_CHECKING:
    from rich.console import Console

#: Takes what is being done: an `Event`, or words alone.
Say: TypeAlias = Callable[[Event | str], None]

#: Seconds before the first line where nobody looks at a terminal, between the next ones, and between later ones.
FIRST, NEXT, LATER = 5.0, 10.0, 30.0

#: Seconds from which on lines come seldom.
_LONG = 300.0

#: Remaining seconds below which nothing is said of them.
_SOON = 3.0


@contextmanager
def progress(earlier: Path | None = None, *, quiet: bool = False) -> Iterator[Say]:
    """Show on standard error what an audit is doing, while it lasts.

    Args:
        earlier: The JSON of an earlier audit, whose checks say how long those of this one may take.
        quiet: Whether to show nothing.
    """
    if quiet:
        yield lambda _: None
        return
    from rich.console import Console

    line = _Line(Pace({} if earlier is None else seconds_of(earlier)))
    console = Console(stderr=True, highlight=False)
    with _live(console, line) if console.is_terminal and not console.is_dumb_terminal else _now_and_then(line):
        yield line.take


class _Line:
    """What is being done, as one line; it is written in one thread and read in another."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._words = "starting"

    def take(self, now: Event | str) -> None:
        now = Event(note=now) if isinstance(now, str) else now
        self._pace.take(now)
        self._words = clean(str(now)).replace("\n", " ")

    @property
    def elapsed(self) -> float:
        return self._pace.elapsed

    def __str__(self) -> str:
        left = self._pace.left()
        about = f", about {in_words(left)} left" if left is not None and left >= _SOON else ""
        return f"{self.elapsed:.0f} s{about}: {self._words}"


@contextmanager
def _live(console: Console, line: _Line) -> Iterator[None]:
    from rich.live import Live
    from rich.text import Text

    def shown() -> Text:
        return Text(str(line), no_wrap=True, overflow="ellipsis")

    # What a model prints goes above the line; where standard output is elsewhere, it goes there.
    with Live(
        get_renderable=shown, console=console, transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
    ):
        yield


@contextmanager
def _now_and_then(line: _Line) -> Iterator[None]:
    ended, stream = threading.Event(), sys.stderr

    def write() -> None:
        wait = FIRST
        while not ended.wait(wait):
            with suppress(Exception):  # nobody reads it any more
                stream.write(f"pytest-bnn: {line}\n")
                stream.flush()
            wait = NEXT if line.elapsed < _LONG else LATER

    writer = threading.Thread(target=write, name="pytest-bnn progress", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
