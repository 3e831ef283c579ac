"""What evidence counts as on a page: its verdict, and apart from it what was not judged and what was expected."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun, TestOutcome

#: Says whether a failure is known from a baseline.
Known: TypeAlias = Callable[[Evidence], bool]


class Standing(enum.StrEnum):
    """A verdict as a reader counts it.

    A claim that is not applicable is about something that the model does not have. One that is not judged lacks what
    nobody gave. An expected failure is one that its test asked for.
    """

    ERROR = "error"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    WARN = "warn"
    NOT_JUDGED = "not_judged"
    PASS = "pass"  # noqa: S105  no password
    NOT_APPLICABLE = "not_applicable"
    EXPECTED = "expected"


#: From what asks the most of a reader to what asks nothing.
ORDER: Final = tuple(Standing)
RANK: Final[Mapping[Standing, int]] = {standing: rank for rank, standing in enumerate(ORDER)}

#: Claims that were judged.
JUDGED: Final = frozenset({Standing.ERROR, Standing.FAIL, Standing.INCONCLUSIVE, Standing.WARN, Standing.PASS})

#: What asks something of the reader, one piece of evidence at a time.
LOUD: Final = frozenset({Standing.ERROR, Standing.FAIL, Standing.INCONCLUSIVE, Standing.WARN})

#: Verdicts that can make a test fail.
_FAILING: Final = LOUD - {Standing.WARN}
_FELL: Final = frozenset({"failed", "error"})

SYMBOLS: Final[Mapping[Standing, str]] = {
    Standing.PASS: "✓",
    Standing.WARN: "!",
    Standing.FAIL: "✕",
    Standing.ERROR: "‼",
    Standing.INCONCLUSIVE: "?",
    Standing.NOT_JUDGED: "○",
    Standing.NOT_APPLICABLE: "\N{EN DASH}",
    Standing.EXPECTED: "✕",
}

_WORDS: Final[Mapping[Standing, str]] = {
    Standing.NOT_JUDGED: "not judged",
    Standing.NOT_APPLICABLE: "not applicable",
    Standing.EXPECTED: "failed as expected",
}

#: How a model of which this is the worst fared, of one and of several.
_FARED: Final[Mapping[Standing, tuple[str, str]]] = {
    Standing.ERROR: ("could not be checked", "could not be checked"),
    Standing.FAIL: ("fails", "fail"),
    Standing.INCONCLUSIVE: ("is undecided", "are undecided"),
    Standing.WARN: ("passes with a warning", "pass with a warning"),
    Standing.NOT_JUDGED: ("has claims that were not judged", "have claims that were not judged"),
    Standing.PASS: ("passes", "pass"),
    Standing.NOT_APPLICABLE: ("was not judged", "were not judged"),
    Standing.EXPECTED: ("failed as expected", "failed as expected"),
}


def fared(worst: Standing, count: int) -> str:
    """Say how so many models fared, by the worst of their claims: two of them "pass with a warning"."""
    return _FARED[worst][count != 1]


def standing(evidence: Evidence) -> Standing:
    """Say what a piece of evidence counts as."""
    if evidence.expected:
        return Standing.EXPECTED
    if evidence.unjudged:
        return Standing.NOT_JUDGED
    return Standing(evidence.verdict.value)


def nothing_known(_: Evidence) -> bool:
    """Say that no failure is known from a baseline."""
    return False


def fell(run: AuditRun) -> tuple[TestOutcome, ...]:
    """Return the tests of a session that failed or broke."""
    return () if run.session is None else tuple(test for test in run.session.tests if test.outcome in _FELL)


def fell_outside(run: AuditRun) -> tuple[TestOutcome, ...]:
    """Return those that failed before or outside a claim; none where a claim failed of which the test is not known."""
    claimed = {check.test for check in run.checks if standing(check) in _FAILING}
    return () if "" in claimed else tuple(test for test in fell(run) if test.test not in claimed)


def word(of: Standing | Verdict) -> str:
    """Name a verdict or standing: ``not_applicable`` is "not applicable"."""
    return _WORDS.get(Standing(of.value), of.value)
