"""A baseline knows failures one by one as the comparison at the end does, is small, and is written whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_bnn.errors import InputError
from pytest_bnn.records import baseline
from pytest_bnn.records.baseline import Baseline, slim, updated
from pytest_bnn.records.charts import Chart
from pytest_bnn.records.compare import compare
from pytest_bnn.records.evidence import Evidence, LayerFinding, Threshold, Verdict
from pytest_bnn.records.recorder import Recorder, recording
from pytest_bnn.records.run import AuditRun, LayerRow, SessionRecord, SubjectRecord


def evidence(verdict: str = "fail", id: str = "kl.loss", subject: str = "net", **more: Any) -> Evidence:
    stage = more.pop("stage", "converted")
    return Evidence(
        id=id, subject=subject, stage=stage, verdict=Verdict(verdict), claim="c", headline=f"it is {verdict}", **more
    )


def observed(value: int) -> Evidence:
    return evidence(threshold=Threshold(quantity="q", observed=value, relation="<=", allowed=0))


@pytest.mark.parametrize(
    ("before", "now", "known"),
    [
        ([evidence()], evidence(), True),
        ([evidence("error")], evidence(), True),
        ([evidence("pass")], evidence(), False),
        ([evidence("warn")], evidence(), False),
        ([evidence("inconclusive")], evidence(), False),
        ([], evidence(), False),
        ([evidence(id="kl.present")], evidence(), False),
        ([evidence(subject="other")], evidence(), False),
        ([evidence(stage="finetuned")], evidence(), True),
        ([evidence(expected=True)], evidence(), False),
        ([observed(2)], observed(2), True),
        ([observed(2)], observed(3), False),
        ([evidence("pass", key="a"), evidence(key="b")], evidence(key="a"), False),
        ([evidence("pass", key="a"), evidence(key="b")], evidence(key="b"), True),
        ([evidence("pass", test="a"), evidence(test="b")], evidence(), False),
        ([evidence()], evidence("pass"), False),
    ],
)
def test_a_plain_assert_fails_unless_the_failure_is_known(before: list[Evidence], now: Evidence, known: bool) -> None:
    """The test "a" runs; what is known there and in the comparison afterwards is the same."""
    recorder = Recorder(baseline=Baseline(AuditRun(checks=tuple(before))), test="a")
    fails = now.verdict is not Verdict.PASS and not known
    with recording(recorder):
        assert recorder.knows(now) is known
        assert now.fails() is fails
        if fails:
            with pytest.raises(AssertionError, match=r"kl\.loss fail"):
                AuditRun(checks=(now,)).raise_for_failures()
        else:
            assert now.raise_if_failed() is now
            AuditRun(checks=(now,)).raise_for_failures()
    if now.verdict is not Verdict.PASS:
        with pytest.raises(AssertionError):
            now.raise_if_failed()


def test_an_undecided_claim_follows_the_policy_in_force() -> None:
    undecided = evidence("inconclusive")
    assert undecided.fails()
    with recording(Recorder(inconclusive="warn")):
        assert not undecided.fails()
        assert undecided.fails(inconclusive="fail")


FULL = AuditRun(
    checks=(
        evidence(
            seconds=2.5,
            charts=(Chart(title="t", x_name="x", y_name="y", lines=()),),
            layers=(
                LayerFinding(path="a", kind="Linear", ok=True, finding="fine"),
                LayerFinding(path="b", kind="Linear", ok=False, finding="not"),
            ),
        ),
        evidence("pass", id="kl.present"),
    ),
    subjects=(
        SubjectRecord(
            name="net",
            stage="converted",
            model="Net",
            teacher=None,
            images=8,
            sha256="5",
            layers=(LayerRow(path="a", kind="Linear", shape="2", weights=4, bayesian=True),),
        ),
    ),
    session=SessionRecord(exit_status=1, total=3),
)


def test_a_baseline_holds_what_a_comparison_needs_and_no_more() -> None:
    small = slim(FULL)
    assert compare(small, FULL) == replace(compare(FULL, FULL), rows=compare(small, FULL).rows)
    assert [row.state for row in compare(small, FULL).rows] == ["known", "unchanged"]
    assert [layer.path for layer in small.checks[0].layers] == ["b"]
    assert (small.checks[0].charts, small.checks[0].seconds, small.subjects[0].layers) == ((), 0.0, ())
    assert small.session is None
    assert AuditRun.from_json(small.to_json()) == small


def test_an_update_holds_what_is_found_now() -> None:
    assert updated(FULL, AuditRun(checks=(evidence("pass"),))).checks == (evidence("pass"),)
    assert updated(None, FULL) == slim(FULL)


def test_an_update_by_a_run_that_was_cut_keeps_the_rest() -> None:
    """``-k one --bnn-update-baseline`` must not forget the other tests."""
    now = AuditRun(checks=(evidence("pass"),), cut=("1 of 2 tests was deselected by -k one",))
    after = updated(slim(FULL), now)
    assert {check.id: check.verdict for check in after.checks} == {"kl.loss": "pass", "kl.present": "pass"}
    assert after.subjects == slim(FULL).subjects
    assert after.cut == ()


def test_what_is_kept_follows_its_subject_to_its_new_name() -> None:
    now = AuditRun(checks=(evidence("pass", subject="new"),), cut=("-k one",))
    assert {check.subject for check in updated(slim(FULL), now).checks} == {"new"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "b.json"
    baseline.write(slim(FULL), path, "--baseline")
    assert baseline.read(path, "--baseline", "--update") == slim(FULL)
    assert [one.name for one in path.parent.iterdir()] == ["b.json"]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.json"
    baseline.write(AuditRun(), path, "--baseline")
    old = path.read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        baseline.write(FULL, path, "--baseline")
    assert path.read_text() == old
    assert [one.name for one in tmp_path.iterdir()] == ["b.json"]


def test_a_link_stays_and_permissions_are_kept(tmp_path: Path) -> None:
    """As of a report: a baseline may be a link into another checkout, and be readable by its group alone."""
    place, link = tmp_path / "place.json", tmp_path / "b.json"
    place.write_text("{}")
    place.chmod(0o640)
    link.symlink_to("place.json")
    baseline.write(FULL, link, "--baseline")
    assert link.is_symlink()
    assert place.stat().st_mode & 0o777 == 0o640
    assert baseline.read(place, "--baseline", "--update") == FULL


def test_a_place_that_cannot_hold_a_baseline_is_refused_before_the_run(tmp_path: Path) -> None:
    """Not after an audit of ten minutes."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "b.json"):
        with pytest.raises(InputError, match=r"--baseline: .* cannot be written"):
            baseline.require_writable(path, "--baseline")
    baseline.require_writable(tmp_path / "new" / "b.json", "--baseline")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"there is no baseline 'b\.json'\. Make it from what is found now: add --bnn-update-baseline"),
        ("{", r"--bnn-baseline 'b\.json': the audit is not JSON"),
        ("{}", "it has no schema_version"),
        (
            '{"schema_version": "2.0"}',
            "Move it away and make it anew with --bnn-update-baseline",
        ),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_baseline_that_cannot_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("b.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said):
        baseline.read("b.json", "--bnn-baseline", "--bnn-update-baseline")
