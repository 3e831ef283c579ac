"""How the tests of a session ended: those that were left out, those that never ran, and why."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pytest

from pytest_bnn.records.run import SessionRecord, TestOutcome

Outcome: TypeAlias = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "never run"]

#: Where a worker tells what it left out.
LEFT_OUT = "bnn_left_out"

#: From worst to best: a test has the worst outcome of its phases.
_RANK = ("failed", "error", "xpassed", "xfailed", "skipped", "passed")

_DESELECTED = pytest.StashKey[int]()
_LAST_FAILED = pytest.StashKey[bool]()
#: Options that leave tests out, each with the name of its value.
_LEAVING_OUT = {"-k": "keyword", "-m": "markexpr", "--deselect": "deselect", "--lf": "lf", "--stepwise": "stepwise"}


def count_deselected(items: Collection[pytest.Item]) -> None:
    """Count tests that were left out of the session."""
    for config in {item.config for item in items}:
        config.stash[_DESELECTED] = config.stash.get(_DESELECTED, 0) + len(items)


def see_last_failed(session: pytest.Session) -> None:
    """See, before a test runs, whether ``--lf`` left out all tests but those that failed the last time."""
    plugin = session.config.pluginmanager.get_plugin("lfplugin")
    failed = {str(id) for id in getattr(plugin, "lastfailed", ())}
    asked = bool(session.config.getoption("lf", False) and failed)
    session.config.stash[_LAST_FAILED] = asked and all(item.nodeid in failed for item in session.items)


def left_out(config: pytest.Config) -> tuple[int, bool]:
    """Return how many tests were deselected in this process, and whether only those ran that failed the last time."""
    return config.stash.get(_DESELECTED, 0), config.stash.get(_LAST_FAILED, False)


@dataclass(slots=True)
class _Test:
    outcome: Outcome
    reason: str = ""
    ended: bool = False
    line: int = sys.maxsize


class Outcomes:
    """Collects the reports of a session, in the process that has all of them."""

    def __init__(self) -> None:
        self.collected: dict[str, None] = {}
        self.deselected = 0
        self.last_failed = False
        self.stopped = ""
        self._tests: dict[str, _Test] = {}
        self._collection: dict[str, _Test] = {}

    def collect(self, ids: Iterable[str]) -> None:
        """Take the node ids of all tests that should run; each worker has the same."""
        self.collected.update(dict.fromkeys(map(without_group, ids)))

    def leave_out(self, tests: int, last_failed: bool) -> None:
        """Take what `left_out` says; each worker has the same."""
        self.deselected, self.last_failed = max(self.deselected, tests), self.last_failed or last_failed

    def take(self, report: pytest.TestReport) -> None:
        """Take how a phase of a test ended."""
        id = without_group(report.nodeid)
        if report.when == "setup":  # a test that is run again starts anew
            self._tests.pop(id, None)
        test = self._tests.setdefault(id, _Test("passed"))
        line = report.location[1]
        test.line = test.line if line is None else line
        found = _outcome(report)
        if found is not None and _RANK.index(found) < _RANK.index(test.outcome):
            test.outcome, test.reason = found, _reason(report)
        test.ended = test.ended or report.when not in ("setup", "call")

    def take_collection(self, report: pytest.CollectReport) -> None:
        """Take what could not be collected."""
        if not report.passed:
            self._collection[report.nodeid] = _Test("error" if report.failed else "skipped", _reason(report))

    def outcome(self, test: str) -> Outcome:
        """Return how a test ended, by its node id."""
        found = self._tests.get(test)
        return "never run" if found is None else found.outcome if found.ended else "error"

    def record(self, exit_status: int, judged: Collection[str], why: str) -> SessionRecord:
        """Return the session.

        Args:
            exit_status: What pytest ends with.
            judged: The node ids of the tests that ran a check.
            why: Why the session ended early, where it did.
        """
        ids = sorted({**self.collected, **dict.fromkeys(self._tests)}, key=self._place)
        tests = [
            TestOutcome(test=id, outcome=found.outcome, reason=found.reason) for id, found in self._collection.items()
        ]
        for id in ids:
            found, outcome = self._tests.get(id), self.outcome(id)
            if found is None or not found.ended:
                reason = why if found is None else f"it did not end: {why}"
                tests.append(TestOutcome(test=id, outcome=outcome, reason=reason))
            elif outcome != "passed" or id in judged:
                tests.append(TestOutcome(test=id, outcome=outcome, reason=found.reason))
        return SessionRecord(exit_status=exit_status, total=len(ids), deselected=self.deselected, tests=tuple(tests))

    def _place(self, test: str) -> tuple[str, int, str]:
        """Return where a test stands, in whatever order the tests ran; behind it those that never ran."""
        found = self._tests.get(test)
        return test.partition("::")[0], sys.maxsize if found is None else found.line, "" if found is None else test

    def cut(self, config: pytest.Config, why: str) -> tuple[str, ...]:
        """Say in words what was left out of the session."""
        total, said = len({**self.collected, **self._tests}), []
        if self.deselected:
            said.append(f"{_share(self.deselected, total + self.deselected)} deselected by {_options(config)}")
        if self.last_failed:
            said.append("only tests that failed the last time were run, by --lf")
        never = sum(id not in self._tests for id in self.collected)
        if never:
            said.append(f"{never} of {_tests(total)} never ran: {why}")
        return tuple(said)

    def why(self, session: pytest.Session) -> str:
        """Say why a session ended early, where it did."""
        words = str(session.shouldfail or session.shouldstop or self.stopped or "the session ended early")
        most = session.config.getoption("maxfail", 0)
        if words.startswith("stopping after") and most:
            words += " (-x)" if most == 1 else f" (--maxfail={most})"
        return words


def group_of(parent: str) -> str:
    """Return the group in which pytest-xdist keeps the checks below a node together."""
    return re.sub(r"[@\]\[]", "-", parent)


def without_group(id: str) -> str:
    """Return a node id without the group that pytest-xdist puts behind those of checks, as their evidence has it."""
    head, at, group = id.rpartition("@")
    return head if at and group == group_of(head.rpartition("::")[0]) else id


def is_subtest(report: pytest.TestReport) -> bool:
    """Say whether a report is about a part of a test."""
    return hasattr(report, "context")


def is_xfailed(report: pytest.TestReport) -> bool:
    """Say whether a phase failed as it was expected to, by ``xfail``."""
    return report.skipped and hasattr(report, "wasxfail")


def _outcome(report: pytest.TestReport) -> Outcome | None:
    """Return what a phase makes of its test; None for nothing, as a phase that is run again."""
    if report.failed:
        return "error" if report.when in ("setup", "teardown") else "failed"
    if is_subtest(report):
        return None
    if report.skipped:
        return "xfailed" if is_xfailed(report) else "skipped"
    return "xpassed" if report.passed and hasattr(report, "wasxfail") else None


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the first line of what a report says, without what is around it."""
    told: Any = report.longrepr
    if hasattr(report, "wasxfail") and not report.failed:
        told = report.wasxfail
    elif isinstance(told, tuple):
        told = str(told[2]).removeprefix("Skipped: ")
    elif crash := getattr(told, "reprcrash", None):
        told = crash.message
    lines = [line.strip() for line in str(told or "").splitlines() if line.strip()]
    if isinstance(report, pytest.CollectReport):  # a traceback, of which the last line says it
        lines.reverse()
    return lines[0].removeprefix("E ").strip() if lines else ""


def _options(config: pytest.Config) -> str:
    """Name the options that leave tests out."""
    given = {option: config.getoption(name, None) for option, name in _LEAVING_OUT.items()}
    said = [f"{option} {shlex.quote(value)}" if isinstance(value, str) else option
            for option, value in given.items() if value]  # fmt: skip
    return " and ".join(said) or "a plugin or a conftest.py"


def _tests(count: int) -> str:
    return "1 test" if count == 1 else f"{count:,} tests"


def _share(count: int, total: int) -> str:
    return f"{count:,} of {_tests(total)} {'was' if count == 1 else 'were'}"
