"""What GitHub's workflows read of a run: annotations at tests, and the summary of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytest_bnn.records.evidence import SEVERITY, Evidence, Inconclusive, Verdict, is_failure
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import wording
from pytest_bnn.report.markdown import render
from pytest_bnn.report.standing import Known, nothing_known

#: GitHub shows as many annotations of each kind for a step.
_MOST: Final = 10
#: GitHub refuses a summary of more than 1 MiB.
_MOST_BYTES: Final = 1_000_000

_OF_DATA: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_OF_PROPERTY: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def annotation_lines(
    run: AuditRun,
    places: Mapping[str, tuple[str, int]],
    *,
    inconclusive: Inconclusive = "fail",
    known: Known = nothing_known,
) -> list[str]:
    """Return the lines that let GitHub show failed claims and warnings at their places, the worst first.

    Args:
        run: What was found. Failures that tests expected are left out.
        places: A file, relative to the root of the repository, and a line of it, by the node id of a test; ``""`` has
            the place of what belongs to no test.
        inconclusive: Whether an undecided claim is an error or a warning.
        known: Says whether a failure is known from a baseline; it is a warning.
    """
    told = [check for check in run.checks if not check.expected]
    failed = [check for check in told if is_failure(check.verdict, inconclusive=inconclusive)]
    errors = [check for check in failed if not known(check)]
    warned = (Verdict.WARN, Verdict.INCONCLUSIVE)
    warnings = [check for check in told if (check.verdict in warned or check in failed) and check not in errors]
    return [*_lines("error", errors, places), *_lines("warning", warnings, places)]


def _lines(kind: str, checks: list[Evidence], places: Mapping[str, tuple[str, int]]) -> list[str]:
    checks = sorted(checks, key=lambda check: SEVERITY.index(check.verdict))
    shown = checks if len(checks) <= _MOST else checks[: _MOST - 1]
    lines = [_line(kind, check, places) for check in shown]
    if len(shown) < len(checks):
        more = len(checks) - len(shown)
        claims = "claims failed" if kind == "error" else "claims have a warning"
        lines.append(f"::{kind} title=pytest-bnn::{more} more {claims}; the summary of the step has them all")
    return lines


def _line(kind: str, check: Evidence, places: Mapping[str, tuple[str, int]]) -> str:
    title = f"{check.id}, {check.subject}"
    words = wording.clean(check.headline) + (f"\nWhat to do: {wording.clean(check.remedy)}" if check.remedy else "")
    place = places.get(check.test)
    said = {} if place is None else {"file": place[0], "line": str(place[1])}
    properties = {**said, "title": wording.clean(title)}
    parts = ",".join(f"{name}={value.translate(_OF_PROPERTY)}" for name, value in properties.items())
    return f"::{kind} {parts}::{words.translate(_OF_DATA)}"


def summary(run: AuditRun) -> str:
    """Return the run as Markdown for the summary of a step, cut where GitHub would refuse it."""
    text = render(run)
    if len(text.encode("utf-8")) <= _MOST_BYTES:
        return text
    kept, size = [], 0
    for line in text.splitlines(keepends=True):
        size += len(line.encode("utf-8"))
        if size > _MOST_BYTES:
            break
        kept.append(line)
    return "".join(kept) + "\nThe summary is cut here; the HTML report has all of it.\n"
