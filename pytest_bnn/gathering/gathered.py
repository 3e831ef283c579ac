"""The evidence of a whole session, in the process that has the reports of all tests."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from pytest_bnn.audit.causes import explained
from pytest_bnn.gathering.outcomes import Outcomes
from pytest_bnn.records.codec import from_plain
from pytest_bnn.records.evidence import Evidence, is_failure
from pytest_bnn.records.run import AuditRun, Change, SubjectRecord

_PHASES = ("setup", "call", "teardown")
#: What was left out of audits is told with as many tests as these.
_NAMED = 3

#: File, line, the place among what has the same line, test and phase.
Place: TypeAlias = tuple[str, int, str, str, int]
#: What a test or a fixture found: its place, the evidence, and the numbers of what failed.
Found: TypeAlias = tuple[Place, AuditRun, list[str]]


class Gathered:
    """Collects what tests and fixtures recorded, from the reports that carry it."""

    def __init__(self) -> None:
        self._found: list[Found] = []
        self._shared: dict[str, Found] = {}
        self._same: dict[str, str] = {}
        self._expected: set[str] = set()
        self._counted: set[str] = set()
        #: Where each test that ran a check begins: its file, relative to the root folder, and the line.
        self.places: dict[str, tuple[str, int]] = {}

    def take(self, report: pytest.TestReport) -> None:
        """Take what a phase of a test recorded, here or in a worker."""
        plain: Any = getattr(report, "bnn", None)
        if plain is None:
            return
        path, line, _ = report.location
        self.places[report.nodeid] = (path, (line or 0) + 1)
        place = (path, line or 0, plain["order"], report.nodeid, _PHASES.index(report.when))
        self._found.append((place, from_plain(plain["test"], AuditRun), plain["numbers"]))
        for end, run, numbers in plain["shared"]:
            self._take_shared(((end, sys.maxsize, "", "", 0) if end else place, from_plain(run, AuditRun), numbers))
        self._expected.update(plain["expected"])
        if str(report.outcome) == "rerun":  # another plugin tries again: what failed is told, and decides nothing
            self._expected.update(filter(None, plain["numbers"]))
        else:
            self._counted.update(plain["counted"])

    def _take_shared(self, found: Found) -> None:
        """Keep what a shared fixture found once, at its earliest place: in two workers only the time differs."""
        place, run, numbers = found
        timeless = replace(run, checks=tuple(replace(check, seconds=0.0) for check in run.checks)).to_json()
        first = self._shared.get(timeless, found)
        self._same.update(zip(numbers, first[2], strict=True))
        self._shared[timeless] = (min(first[0], place), first[1] if first[0] <= place else run, first[2])

    def tests(self) -> set[str]:
        """Return the node ids of the tests that ran a check."""
        return {place[3] for place, run, _ in self._found if run.checks}

    def run(self, outcomes: Outcomes, changed: Iterable[Change] = (), cut: Iterable[str] = ()) -> AuditRun:
        """Return everything that was recorded, in the order of the files, as one run.

        Args:
            outcomes: How the tests ended: what fails in a test that was expected to fail was expected.
            changed: What was not at its default in the whole session.
            cut: What was left out of the session.
        """
        expected = {self._same.get(number, number) for number in self._expected}
        expected -= {self._same.get(number, number) for number in self._counted}
        runs, apart = [], self._apart()
        for place, run, numbers in sorted([*self._shared.values(), *self._found], key=lambda found: found[0]):
            xfailed = outcomes.outcome(place[3]) == "xfailed"
            checks = tuple(
                _marked(check, (xfailed and check.test == place[3]) or number in expected)
                for check, number in zip(run.checks, numbers, strict=True)
            )
            runs.append(_told_apart(replace(run, checks=checks), apart, place[3]))
        whole = AuditRun.merged(runs, provenance={}, title="Bayesian checks of a test session")
        return replace(
            whole,
            checks=tuple(explained(whole.checks)),
            subjects=each_once(whole.subjects),
            changed=_merged([*changed, *(change for run in runs for change in run.changed)]),
            cut=(*cut, *self._cut()),
        )

    def _apart(self) -> set[str]:
        """Return the names that tests gave to models whose weights are not the same."""
        states: dict[tuple[str, str], set[str]] = {}
        for _, run, _ in (*self._shared.values(), *self._found):
            for subject in run.subjects:
                if subject.sha256 and not subject.key:
                    states.setdefault((subject.name, subject.stage), set()).add(subject.sha256)
        return {name for (name, _), found in states.items() if len(found) > 1}

    def _cut(self) -> list[str]:
        """Say what was left out of audits, each with the tests in which it was."""
        tests: dict[str, list[str]] = {}
        for place, run, _ in sorted([*self._shared.values(), *self._found], key=lambda found: found[0]):
            for words in run.cut:
                audited = [subject.key for subject in run.subjects if subject.key]
                tests.setdefault(words, []).extend(audited or [place[3] or place[0]])
        said = []
        for words, ids in tests.items():
            names = list(dict.fromkeys(ids))
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            said.append(f"{words} ({', '.join(names[:_NAMED])}{more})")
        return said


def each_once(subjects: tuple[SubjectRecord, ...]) -> tuple[SubjectRecord, ...]:
    """Keep one record of a subject whose checks several workers ran: of those with its key, the one that tells most."""
    found: dict[object, SubjectRecord] = {}
    for number, one in enumerate(subjects):
        key: object = (one.key, one.name, one.stage) if one.key else number
        found[key] = max(found.get(key, one), one, key=lambda it: (bool(it.prediction_summary), len(it.predictions)))
    return tuple(found.values())


def _told_apart(run: AuditRun, names: Collection[str], test: str) -> AuditRun:
    """Give subjects of these names the test as their key."""
    if not names or not test:
        return run
    return replace(
        run,
        checks=tuple(replace(c, key=c.key or test) if c.subject in names else c for c in run.checks),
        subjects=tuple(replace(s, key=s.key or test) if s.name in names else s for s in run.subjects),
    )


def _marked(check: Evidence, expected: bool) -> Evidence:
    return replace(check, expected=True) if expected and is_failure(check.verdict) else check


def _merged(found: Iterable[Change]) -> tuple[Change, ...]:
    """Return each change once, with the tests of all that are equal."""
    tests: dict[Change, list[str]] = {}
    for change in found:
        tests.setdefault(replace(change, tests=()), []).extend(change.tests)
    return tuple(replace(change, tests=tuple(dict.fromkeys(ids))) for change, ids in tests.items())
