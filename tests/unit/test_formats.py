"""What other tools read of a run: CTRF, GitHub's annotations and the summary of a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn.errors import InputError
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.run import AuditRun, SessionRecord, TestOutcome
from pytest_bnn.report import outputs
from pytest_bnn.report.ctrf import render_ctrf
from pytest_bnn.report.github import annotation_lines, summary


def evidence(verdict: Verdict = Verdict.FAIL, **more: Any) -> Evidence:
    said: dict[str, Any] = {
        "id": "kl.loss",
        "subject": "net",
        "stage": "converted",
        "verdict": verdict,
        "claim": "The weight is right.",
        "headline": "the weight is 0.5",
        "seconds": 1.25,
        **more,
    }
    return Evidence(**said)


def test_ctrf_has_a_test_for_each_claim() -> None:
    """Statuses, the five counts and the times that CTRF's schema requires, and nothing that it does not know."""
    checks = (
        *(evidence(verdict, test="tests/test_a.py::test_it") for verdict in Verdict),
        evidence(expected=True),
    )
    run = AuditRun(checks=checks, provenance={"created": "2024-05-01 00:00:10 UTC", "pytest-bnn": "0.2"})
    found = json.loads(render_ctrf(run))
    assert (found["reportFormat"], found["specVersion"]) == ("CTRF", "0.0.0")
    results = found["results"]
    assert results["tool"] == {"name": "pytest-bnn", "version": "0.2"}
    statuses = {test["rawStatus"]: test["status"] for test in results["tests"]}
    assert statuses == {
        "pass": "passed", "warn": "passed", "fail": "failed", "error": "failed", "inconclusive": "failed",
        "not applicable": "skipped", "fail (expected)": "other",
    }  # fmt: skip
    summary = results["summary"]
    assert summary["stop"] == 1714521610000  # date -d '2024-05-01 00:00:10 UTC' +%s
    assert summary["start"] == summary["stop"] - 7 * 1250
    counted = {name: summary[name] for name in ("tests", "passed", "failed", "skipped", "pending", "other")}
    assert counted == {"tests": 7, "passed": 2, "failed": 3, "skipped": 1, "pending": 0, "other": 1}
    failed = results["tests"][2]
    assert (failed["name"], failed["suite"], failed["duration"]) == ("kl.loss", ["tests/test_a.py", "net"], 1250)
    assert failed["message"] == "the weight is 0.5"
    assert failed["trace"] == checks[2].explain()
    assert "trace" not in results["tests"][0]
    known = {"name", "status", "duration", "suite", "message", "trace", "rawStatus", "tags", "filePath", "extra"}
    assert {name for test in results["tests"] for name in test} <= known
    decided = json.loads(render_ctrf(run, inconclusive="warn"))["results"]["summary"]
    assert (decided["failed"], decided["other"]) == (2, 2)


def test_ctrf_has_what_made_the_session_fail() -> None:
    """A session that fails must not be a file without a failure; a claim's own test is there already."""
    tests = (
        TestOutcome(test="t/test_a.py::test_it", outcome="failed", reason="AssertionError: kl.loss fail"),
        TestOutcome(test="t/test_a.py::T::test_dies[1]", outcome="error", reason="RuntimeError: boom"),
        TestOutcome(test="t/test_b.py", outcome="error", reason="SyntaxError: no"),
        TestOutcome(test="t/test_a.py::test_warned", outcome="failed", reason="KeyError: 1"),
        TestOutcome(test="t/test_a.py::test_skipped", outcome="skipped"),
    )
    run = AuditRun(
        checks=(
            evidence(test="t/test_a.py::test_it"),
            evidence(Verdict.WARN, test="t/test_a.py::test_warned"),
            evidence(expected=True, test="t/test_a.py::T::test_dies[1]"),
        ),
        session=SessionRecord(exit_status=1, total=5, deselected=0, tests=tests),
    )
    results = json.loads(render_ctrf(run))["results"]
    assert [(t["name"], t["status"], t["rawStatus"]) for t in results["tests"][3:]] == [
        ("T::test_dies[1]", "failed", "error"), ("t/test_b.py", "failed", "error"), ("test_warned", "failed", "failed")
    ]  # fmt: skip
    assert results["tests"][3]["message"] == "RuntimeError: boom"
    assert (results["summary"]["failed"], results["summary"]["tests"]) == (4, 6)
    assert "1 of 5 tests failed on a claim; 3 of 5 tests failed before or outside a claim" in summary(run)


def test_ctrf_of_odd_text() -> None:
    """A lone surrogate cannot be written as UTF-8."""
    text = render_ctrf(AuditRun(checks=(evidence(subject="a\udcff", seconds=float("nan")),)))
    assert json.loads(text.encode("utf-8"))["results"]["tests"][0]["duration"] == 0


def test_an_annotation_is_escaped() -> None:
    """What GitHub splits at must not stand in a title, nor a line's end in the text."""
    check = evidence(subject="a:b,c%", headline="100 %\nmore", remedy="x", test="t::n")
    (line,) = annotation_lines(AuditRun(checks=(check,)), {"t::n": ("a,b.py", 7)})
    assert line == "::error file=a%2Cb.py,line=7,title=kl.loss%2C a%3Ab%2Cc%25::100 %25%0Amore%0AWhat to do: x"
    assert len(line.splitlines()) == 1
    assert line.count("::") == 2


def test_which_claims_are_annotated() -> None:
    """What failed and was not expected is an error; the undecided are what the policy makes of them."""
    checks = (*(evidence(verdict, id=verdict.value) for verdict in Verdict), evidence(expected=True, id="expected"))
    run = AuditRun(checks=checks)
    assert [line.split(",")[0] for line in annotation_lines(run, {})] == [
        "::error title=error%2C net::the weight is 0.5", "::error title=fail%2C net::the weight is 0.5",
        "::error title=inconclusive%2C net::the weight is 0.5", "::warning title=warn%2C net::the weight is 0.5",
    ]  # fmt: skip
    warned = annotation_lines(run, {}, inconclusive="warn")
    assert [line.split()[0] for line in warned] == ["::error", "::error", "::warning", "::warning"]
    assert "inconclusive" in warned[2]


def test_more_annotations_than_github_shows() -> None:
    """GitHub drops the eleventh without a word."""
    run = AuditRun(checks=tuple(evidence(subject=str(number)) for number in range(25)))
    lines = annotation_lines(run, {})
    assert len(lines) == 10
    assert lines[-1] == "::error title=pytest-bnn::16 more claims failed; the summary of the step has them all"


def test_a_summary_is_cut_before_github_refuses_it() -> None:
    """More than 1 MiB is no summary at all."""
    short = AuditRun(checks=(evidence(),))
    assert "the summary is cut" not in summary(short).lower()
    long = AuditRun(checks=tuple(evidence(subject="ü" * 3000 + str(number)) for number in range(300)))
    text = summary(long)
    assert len(text.encode("utf-8")) < 2**20
    assert text.endswith("The summary is cut here; the HTML report has all of it.\n")


def test_the_summary_of_a_step(tmp_path: Path) -> None:
    """It is appended, and a file that cannot be written is told and breaks nothing."""
    run, path = AuditRun(checks=(evidence(),)), tmp_path / "summary.md"
    path.write_text("before\n", encoding="utf-8")
    assert outputs.append_step_summary(run, {}) == ""
    assert outputs.append_step_summary(run, {"GITHUB_STEP_SUMMARY": str(path)}) == ""
    assert path.read_text(encoding="utf-8") == f"before\n{summary(run)}\n"
    assert "could not be written" in outputs.append_step_summary(run, {"GITHUB_STEP_SUMMARY": str(tmp_path)})


@pytest.mark.parametrize("name", ["ctrf.html", "ctrf", "folder.json", ""])
def test_a_path_that_cannot_hold_ctrf_is_refused(tmp_path: Path, name: str) -> None:
    """Before the audit, not after it."""
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"--ctrf is .*ends in \.json"):
        outputs.require_writable_json(tmp_path / name if name else "", "--ctrf")


def test_a_file_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CTRF in the place of the report's JSON, or of the baseline, would be neither."""
    monkeypatch.chdir(tmp_path)
    others = {"the report's JSON": tmp_path / "a.json", "the baseline": Path("b.json")}
    for name, words in (("a.json", "the report's JSON"), ("./b.json", "the baseline")):
        with pytest.raises(InputError, match=f"--ctrf is '{name}', which is {words}"):
            outputs.require_writable_json(name, "--ctrf", others)
    outputs.require_writable_json("c.json", "--ctrf", others)


def test_a_path_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub finds a file by its path from the root of the repository."""
    inner = tmp_path / "a" / "b.py"
    assert outputs.in_repository(inner, {"GITHUB_WORKSPACE": str(tmp_path)}) == "a/b.py"
    monkeypatch.chdir(tmp_path)
    assert outputs.in_repository(inner, {}) == "a/b.py"
    assert outputs.in_repository("/elsewhere/b.py", {"GITHUB_WORKSPACE": str(tmp_path)}) == "/elsewhere/b.py"
