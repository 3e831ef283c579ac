"""What a session's terminal shows of a test whose checks take long: a line now and then."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import nullcontext

import pytest

from pytest_bnn.progress import Event, watching
from pytest_bnn.records.codec import clean

#: Seconds of checks in one test before the first line, and between the next ones.
FIRST, NEXT = 10.0, 10.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch the checks of a test; pytest-xdist's workers have no terminal."""
    reporter = item.config.pluginmanager.get_plugin("terminalreporter")
    quiet = hasattr(item.config, "workerinput") or item.config.get_verbosity() < -1
    with watching(None if quiet or reporter is None else _Lines(item, reporter)):
        return (yield)


class _Lines:
    """Writes what is being done, not too often; no time passes for tests that run no check."""

    def __init__(self, item: pytest.Item, reporter: pytest.TerminalReporter) -> None:
        self._item = item
        self._reporter = reporter
        self._begun = 0.0
        self._next = 0.0

    def __call__(self, now: Event) -> None:
        at = time.monotonic()
        if not self._begun:
            self._begun, self._next = at, at + FIRST
        if at < self._next:
            return
        self._next = at + NEXT
        capture = self._item.config.pluginmanager.get_plugin("capturemanager")
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            self._reporter.ensure_newline()
            self._reporter.write_line(clean(f"bnn: {at - self._begun:.0f} s in {self._item.nodeid}: {now}"))
            self._reporter.flush()
