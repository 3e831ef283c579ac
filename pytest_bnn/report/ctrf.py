"""A run in the Common Test Report Format (https://ctrf.io), version 0.0.0 of its schema.

It has a test for each claim, and for each test of a session that failed outside of one.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from typing import Any, Final

from pytest_bnn.records.evidence import Evidence, Inconclusive, Verdict
from pytest_bnn.records.run import AuditRun, TestOutcome
from pytest_bnn.report import wording
from pytest_bnn.report.standing import Known, fell_outside, nothing_known, word

_STATUSES: Final = ("passed", "failed", "skipped", "pending", "other")
_CREATED: Final = "%Y-%m-%d %H:%M:%S UTC"


def render_ctrf(run: AuditRun, *, inconclusive: Inconclusive = "fail", known: Known = nothing_known) -> str:
    """Return a run as the text of a CTRF file.

    A claim that holds, with a warning or without, is passed; one that is not judged is skipped. A failure that its test
    expected, or that is known from a baseline, is ``other``. ``rawStatus`` has the verdict. A test of the session that
    failed before or outside a claim is a test too.

    Args:
        run: What was found.
        inconclusive: Whether an undecided claim is ``failed`` or ``other``.
        known: Says whether a failure is known from a baseline.
    """
    tests = [_test(check, inconclusive, known) for check in run.checks]
    fallen = [_fallen(test) for test in fell_outside(run)]
    tests += fallen
    counts = Counter(test["status"] for test in tests)
    stop = _milliseconds(run.provenance.get("created", ""))
    duration = sum(test["duration"] for test in tests)
    document = {
        "reportFormat": "CTRF",
        "specVersion": "0.0.0",
        "generatedBy": "pytest-bnn",
        "results": {
            "tool": {"name": "pytest-bnn"}
            | ({"version": run.provenance["pytest-bnn"]} if "pytest-bnn" in run.provenance else {}),
            "summary": {
                "tests": len(tests),
                **{status: counts[status] for status in _STATUSES},
                "suites": len({(check.subject, check.key) for check in run.checks})
                + len({test["filePath"] for test in fallen}),
                "start": max(0, stop - duration),
                "stop": stop,
            },
            "tests": tests,
            "environment": {"reportName": wording.clean(run.title) or "Audit"},
            "extra": {"verdict": run.verdict.value},
        },
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _test(check: Evidence, inconclusive: Inconclusive, known: Known) -> dict[str, Any]:
    file = check.test.partition("::")[0]
    told, is_known = check.verdict is not Verdict.PASS, known(check)
    said = {
        "name": check.id,
        "status": "other" if is_known else _status(check, inconclusive),
        "duration": round(1000 * check.seconds) if check.seconds == check.seconds else 0,
        "suite": [file, check.subject] if file else [check.subject],
        "message": check.headline,
        **({"trace": check.explain()} if told else {}),
        "rawStatus": word(check.verdict) + (" (expected)" if check.expected else " (known)" if is_known else ""),
        "tags": [check.stage],
        **({"filePath": file} if file else {}),
        "extra": {"claim": check.claim, **({"test": check.test} if check.test else {})},
    }
    cleaned: dict[str, Any] = _cleaned(said)
    return cleaned


def _fallen(test: TestOutcome) -> dict[str, Any]:
    file, _, name = test.test.partition("::")
    said = {
        "name": name or file,
        "status": "failed",
        "duration": 0,
        "suite": [file],
        "message": test.reason,
        "rawStatus": test.outcome,
        "filePath": file,
        "extra": {"test": test.test},
    }
    cleaned: dict[str, Any] = _cleaned(said)
    return cleaned


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return wording.clean(value)
    if isinstance(value, dict):
        return {name: _cleaned(one) for name, one in value.items()}
    return [_cleaned(one) for one in value] if isinstance(value, list) else value


def _status(check: Evidence, inconclusive: Inconclusive) -> str:
    if check.verdict in (Verdict.PASS, Verdict.WARN):
        return "passed"
    if check.verdict is Verdict.NOT_APPLICABLE:
        return "skipped"
    undecided = check.verdict is Verdict.INCONCLUSIVE and inconclusive == "warn"
    return "other" if check.expected or undecided else "failed"


def _milliseconds(created: str) -> int:
    """Return when a run was made, in milliseconds since 1970; 0 where it does not say."""
    try:
        moment = datetime.datetime.strptime(created, _CREATED)
    except ValueError:
        return 0
    return round(1000 * moment.replace(tzinfo=datetime.UTC).timestamp())
