"""Two audits side by side: what is new or worse fails, what was known does not, and nothing gets lost in silence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_bnn.records.compare import STATES, Comparison, compare
from pytest_bnn.records.evidence import (
    SEVERITY,
    Acceptance,
    Certainty,
    Evidence,
    LayerFinding,
    Threshold,
    Verdict,
    is_failure,
)
from pytest_bnn.records.run import AuditRun, Change, SubjectRecord


def evidence(verdict: str = "pass", id: str = "kl.loss", subject: str = "net", **more: Any) -> Evidence:
    stage = more.pop("stage", "converted")
    return Evidence(
        id=id,
        subject=subject,
        stage=stage,
        verdict=Verdict(verdict),
        claim="It holds.",
        headline=f"it is {verdict}",
        **more,
    )


def run(*checks: Evidence, **more: Any) -> AuditRun:
    return AuditRun(checks=checks, **more)


def record(name: str = "net", **more: Any) -> SubjectRecord:
    return SubjectRecord(name=name, stage="converted", model="Net", teacher=None, **{"images": 8, **more})


def fail(observed: Any, relation: Any = "<=", allowed: Any = 1.0, bounds: Any = None, **more: Any) -> Evidence:
    certainty = (
        None if bounds is None else Certainty(alpha=1e-7, beta=1e-4, statistic="s", low=bounds[0], high=bounds[1])
    )
    threshold = Threshold(quantity="q", observed=observed, relation=relation, allowed=allowed)
    return evidence(more.pop("verdict", "fail"), threshold=threshold, certainty=certainty, **more)


def only(comparison: Comparison) -> tuple[str, bool]:
    (row,) = comparison.rows
    return row.state, row.fails


@pytest.mark.parametrize(
    ("before", "now", "state", "fails"),
    [
        ("pass", "pass", "unchanged", False),
        ("pass", "warn", "new", False),
        ("pass", "inconclusive", "new", True),
        ("pass", "fail", "new", True),
        ("pass", "error", "new", True),
        ("pass", "not_applicable", "new", True),
        ("warn", "pass", "better", False),
        ("warn", "warn", "unchanged", False),
        ("warn", "fail", "new", True),
        ("warn", "not_applicable", "new", True),
        ("inconclusive", "pass", "fixed", False),
        ("inconclusive", "inconclusive", "known", False),
        ("inconclusive", "fail", "new", True),
        ("fail", "pass", "fixed", False),
        ("fail", "warn", "fixed", False),
        ("fail", "inconclusive", "better", False),
        ("fail", "fail", "known", False),
        ("fail", "error", "new", True),
        ("fail", "not_applicable", "new", True),
        ("error", "fail", "better", False),
        ("error", "error", "known", False),
        ("error", "pass", "fixed", False),
        ("error", "not_applicable", "added", False),
        ("not_applicable", "pass", "added", False),
        ("not_applicable", "not_applicable", "unchanged", False),
        ("not_applicable", "fail", "new", True),
        ("not_applicable", "warn", "new", False),
        (None, "pass", "added", False),
        (None, "not_applicable", "added", False),
        (None, "fail", "new", True),
        (None, "inconclusive", "new", True),
        ("pass", None, "new", True),
        ("fail", None, "new", True),
        ("warn", None, "new", True),
        ("error", None, "gone", False),
        ("not_applicable", None, "gone", False),
    ],
)
def test_each_pair_of_verdicts(before: str | None, now: str | None, state: str, fails: bool) -> None:
    """A claim that was judged and is not any more is as bad as one that fails."""
    sides = [run(*(() if word is None else (evidence(word),))) for word in (before, now)]
    assert only(compare(*sides)) == (state, fails)


def test_an_undecided_claim_fails_only_where_undecided_claims_do() -> None:
    before, now = run(evidence("pass")), run(evidence("inconclusive"))
    assert only(compare(before, now, inconclusive="warn")) == ("new", False)


def test_a_claim_that_is_not_judged_any_more_says_so() -> None:
    """The words that stood where its verdict was, where there are some."""
    before = run(evidence("pass"))
    (row,) = compare(before, run(replace(evidence("not_applicable"), headline="no loss was given"))).rows
    assert row.notes == ("It is not judged any more: no loss was given",)
    (row,) = compare(before, run()).rows
    assert "not judged any more" in row.notes[0]


def test_what_was_left_out_on_purpose_is_not_missed() -> None:
    """Unless the earlier run was cut in the same way, and judged it all the same."""
    before, cut = run(evidence("pass")), ("only the checks mean.is_function",)
    assert only(compare(before, run(cut=cut))) == ("gone", False)
    assert only(compare(replace(before, cut=cut), run(cut=cut))) == ("new", True)


def test_a_cut_run_still_misses_what_it_runs_and_cannot_judge() -> None:
    before, now = run(evidence("pass")), run(evidence("not_applicable"), cut=("-k net",))
    assert only(compare(before, now)) == ("new", True)


BOTH = (2.0, 4.0)


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [
        # Inside the interval is no change, outside of it is one, on the side that the relation makes bad.
        (fail(3.0, bounds=BOTH), fail(3.9, bounds=(2.9, 4.9)), "known"),
        (fail(3.0, bounds=BOTH), fail(4.1, bounds=(3.1, 5.1)), "worse"),
        (fail(3.0, bounds=BOTH), fail(1.9, bounds=(1.1, 2.9)), "better"),
        (fail(0.5, ">=", 0.9, bounds=(0.4, 0.6)), fail(0.41, ">=", 0.9, bounds=(0.3, 0.5)), "known"),
        (fail(0.5, ">=", 0.9, bounds=(0.4, 0.6)), fail(0.39, ">=", 0.9, bounds=(0.3, 0.5)), "worse"),
        (fail(0.5, ">=", 0.9, bounds=(0.4, 0.6)), fail(0.61, ">=", 0.9, bounds=(0.5, 0.7)), "better"),
        # One bound: the other is as far away, and the new bound has to be beyond it.
        (fail(3.0, bounds=(2.0, None)), fail(4.5, bounds=(3.5, None)), "known"),
        (fail(3.0, bounds=(2.0, None)), fail(9.0, bounds=(8.0, None)), "worse"),
        (fail(3.0, bounds=(2.0, None)), fail(9.0), "known"),
        (fail(3.0, bounds=(2.0, None)), fail(1.5, bounds=(1.2, None)), "better"),
        (fail(0.5, ">=", 0.9, bounds=(None, 0.6)), fail(0.35, ">=", 0.9, bounds=(None, 0.45)), "known"),
        (fail(0.5, ">=", 0.9, bounds=(None, 0.6)), fail(0.2, ">=", 0.9, bounds=(None, 0.3)), "worse"),
        (fail(0.5, ">=", 0.9, bounds=(None, 0.6)), fail(0.7, ">=", 0.9, bounds=(None, 0.8)), "better"),
        # An interval that does not hold the observed value is that of something else: nothing is known.
        (fail(3.0, bounds=(5.0, 9.0)), fail(99.0, bounds=(90.0, 99.5)), "known"),
        # Exact claims: whole numbers exactly, others beyond their last digits.
        (fail(2, "==", 0), fail(3, "==", 0), "worse"),
        (fail(2, "==", 0), fail(1, "==", 0), "better"),
        (fail(2, "==", 0), fail(2, "==", 0), "known"),
        (fail(0.5, "==", 1.0), fail(1.5, "==", 1.0), "known"),
        (fail(0.5, "==", 1.0), fail(1.8, "==", 1.0), "worse"),
        (fail(1.5), fail(1.501), "known"),
        (fail(1.5), fail(1.6), "worse"),
        (fail(1.6), fail(1.5), "better"),
        (fail(1.5, seed=0, samples=9), fail(1.6, seed=1, samples=9), "known"),
        (fail(1.5), fail(math.inf), "worse"),
        (fail(math.inf), fail(math.inf), "known"),
        (fail(math.nan), fail(math.nan), "known"),
        (fail("a", "==", "b"), fail("c", "==", "b"), "known"),
        (fail(True, "==", False), fail(True, "==", False), "known"),
        (fail(1.5), replace(fail(99.0), threshold=None), "known"),
    ],
)
def test_a_known_failure_gets_worse_beyond_its_certainty_alone(before: Evidence, now: Evidence, state: str) -> None:
    assert only(compare(run(before), run(now))) == (state, state == "worse")


def at_fault(*paths: str, fine: tuple[str, ...] = ()) -> Evidence:
    layers = [LayerFinding(path=path, kind="Linear", ok=False, finding="still nn.Linear") for path in paths]
    layers += [LayerFinding(path=path, kind="Linear", ok=True, finding="Bayesian") for path in fine]
    return evidence("fail", layers=tuple(layers))


@pytest.mark.parametrize(
    ("before", "now", "state"),
    [
        (at_fault("a", fine=("b",)), at_fault("a", fine=("b",)), "known"),
        (at_fault("a", fine=("b",)), at_fault("b", fine=("a",)), "worse"),
        (at_fault("a"), at_fault("a", "b"), "worse"),
        (at_fault("a", "b"), at_fault("a", fine=("b",)), "better"),
        (at_fault("a", "b.c"), at_fault("module.a", "module.b.c"), "known"),
        (at_fault("module.a"), at_fault("a"), "known"),
        (at_fault("a"), at_fault("module.a", "module.b"), "worse"),
        (at_fault("a"), at_fault(), "known"),
    ],
)
def test_another_layer_at_fault_is_worse(before: Evidence, now: Evidence, state: str) -> None:
    """A known failure must not hide one in another layer; a wrapper around the network is no new fault."""
    assert only(compare(run(before), run(now))) == (state, state == "worse")


def test_layers_of_a_claim_by_sampling_may_come_and_go() -> None:
    """Their own certainty is not known: the claim's number decides."""
    before = replace(fail(3.0, bounds=BOTH), layers=at_fault("a").layers)
    assert only(compare(run(before), run(replace(before, layers=at_fault("b").layers)))) == ("known", False)


def test_expected_failures_count_for_nothing() -> None:
    """A test that wants to see a failure is no fault; where it stops wanting it, the failure is new."""
    fails, wanted = evidence("fail"), evidence("fail", expected=True)
    assert only(compare(run(), run(wanted)))[1] is False
    assert only(compare(run(wanted), run(wanted))) == ("unchanged", False)
    assert only(compare(run(wanted), run(fails))) == ("new", True)
    assert only(compare(run(wanted), run())) == ("gone", False)
    assert only(compare(run(fails), run(wanted)))[1] is False


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (run(evidence(subject="old")), run(evidence(subject="new")), "'new' is taken to be what was called 'old'"),
        (
            run(evidence(stage="converted")),
            run(evidence(stage="finetuned")),
            "'net' was converted before and is finetuned",
        ),
        (
            run(
                evidence(subject="a"),
                evidence(subject="b"),
                subjects=(record("a", sha256="1"), record("b", sha256="2")),
            ),
            run(
                evidence(subject="a"),
                evidence(subject="c"),
                subjects=(record("a", sha256="1"), record("c", sha256="2")),
            ),
            "'c' is taken to be what was called 'b'",
        ),
        (run(evidence(key="t.py::x")), run(evidence(key="u.py::x")), ""),
    ],
)
def test_renamed_subjects_are_found_and_said(before: AuditRun, now: AuditRun, said: str) -> None:
    comparison = compare(before, now)
    assert {row.state for row in comparison.rows} == {"unchanged"}
    assert said in " ".join(comparison.warnings)


def test_subjects_of_one_name_are_told_apart_by_their_keys() -> None:
    before = run(evidence("fail", key="a.py::t"), evidence("pass", key="b.py::t"))
    now = run(evidence("pass", key="b.py::t"), evidence("fail", key="a.py::t"))
    assert sorted(row.state for row in compare(before, now).rows) == ["known", "unchanged"]


def test_where_two_could_be_the_renamed_one_none_is_taken() -> None:
    """To guess would hide a fault of the one behind the other's."""
    before, now = (
        run(evidence("fail", subject="a"), evidence(subject="b")),
        run(evidence("fail", subject="c"), evidence("fail", subject="d")),
    )
    assert [row.fails for row in compare(before, now).rows] == [True] * 4


SAMPLES = Change(name="samples", value="64", default="128", source="--samples")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (run(), run(changed=(SAMPLES,)), "samples was the default, and is 64 now."),
        (run(provenance={"set alpha": "0.1 (--alpha)"}), run(), "The setting alpha was 0.1, and is the default now."),
        (run(provenance={"seed": "0"}), run(provenance={"seed": "7"}), "The seed was 0, and is 7 now."),
        (run(provenance={"torch": "2.6.0"}), run(provenance={"torch": "2.7.0+cpu"}), "torch 2.6.0 (now 2.7.0+cpu)"),
        (
            run(evidence(), subjects=(record(data_sha256="a"),)),
            run(evidence(), subjects=(record(data_sha256="b"),)),
            "The data of 'net' are others than before.",
        ),
        (
            run(evidence(), subjects=(record(images=8),)),
            run(evidence(), subjects=(record(images=9),)),
            "was judged on 8 examples",
        ),
        (run(), run(cut=("only the checks kl.loss",)), "Left out now: only the checks kl.loss."),
    ],
)
def test_what_else_differs_is_said(before: AuditRun, now: AuditRun, said: str) -> None:
    assert any(said in warning for warning in compare(before, now).warnings)


def test_what_differs_in_every_run_is_not_worth_a_word() -> None:
    before = run(
        provenance={"created": "2026-01-01 10:00:00 UTC", "command": "pytest a", "threads": "2", "commit": "abc"}
    )
    now = run(provenance={"created": "2026-01-02 10:00:00 UTC", "command": "pytest b", "threads": "8", "commit": "abd"})
    assert compare(before, now).warnings == ()


def test_a_stricter_threshold_and_accepted_parts_are_said_in_the_row() -> None:
    before = fail(0.93, ">=", 0.9, verdict="pass")
    now = fail(0.93, ">=", 0.95)
    (row,) = compare(run(before), run(now)).rows
    assert (row.state, row.notes) == ("new", ("Allowed is >= 0.95 now, and was >= 0.9.",))
    (row,) = compare(
        run(evidence("fail")), run(evidence("pass", accepted=(Acceptance(path="fc", reason="speed"),)))
    ).rows
    assert (row.state, row.notes) == ("fixed", ("Accepted since then: fc (speed).",))


def test_the_headline_counts_all_rows() -> None:
    before = run(
        *(evidence("pass", id=f"a.p{i}") for i in range(3)),
        evidence("fail", id="a.known"),
        evidence("fail", id="a.fixed"),
    )
    now = run(
        evidence("fail", id="a.p0"),
        evidence("warn", id="a.p1"),
        evidence("pass", id="a.p2"),
        evidence("fail", id="a.known"),
        evidence("pass", id="a.fixed"),
    )
    comparison = compare(before, now)
    assert comparison.headline == (
        "1 claim fails now and did not before; 1 has a new warning, 1 failed before and holds now, 1 fails as before, "
        "1 is as before"
    )
    assert [row.id for row in comparison.failing] == ["a.p0"]
    assert compare(now, now).headline.startswith("nothing is new or worse; ")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (("pass",), ("fail",), "1 claim fails now and did not before"),
        (("pass", "pass"), ("fail", "fail"), "2 claims fail now and did not before"),
        (("pass",), ("error",), "1 claim could not be judged for an error"),
        (("pass",), ("not_applicable",), "1 claim is not judged any more"),
        (("pass", "pass"), ("fail", "not_applicable"),
         "1 claim fails now and did not before, 1 is not judged any more"),
        (("pass", "pass"), ("warn", "warn"), "nothing is new or worse; 2 claims have a new warning"),
        (("warn", "pass"), ("pass", "pass"), "nothing is new or worse; 1 claim is better than before, 1 is as before"),
        (("pass",), ("inconclusive",), "nothing is new or worse; 1 claim is undecided now"),
        (("fail", "fail"), ("fail", "pass"),
         "nothing is new or worse; 1 claim failed before and holds now, 1 fails as before"),
        ((), ("pass",), "nothing is new or worse; 1 claim is in the later audit alone"),
        ((), (), "nothing is new or worse"),
    ],
)  # fmt: skip
def test_headlines_read_aloud(before: tuple[str, ...], now: tuple[str, ...], said: str) -> None:
    sides = [run(*(evidence(verdict, id=f"a.p{at}") for at, verdict in enumerate(side))) for side in (before, now)]
    assert compare(*sides, inconclusive="warn").headline == said


# Few names and few numbers, so that subjects, claims and values meet.
numbers = st.sampled_from([0, 1, 3, 0.5, 0.505, 2.0, math.inf, math.nan])
thresholds = st.builds(
    Threshold,
    quantity=st.sampled_from("qr"),
    observed=numbers,
    relation=st.sampled_from(["==", "<=", ">="]),
    allowed=numbers,
)
bounds = st.none() | st.sampled_from([0.0, 0.4, 2.5])
certainties = st.builds(
    Certainty, alpha=st.just(1e-7), beta=st.just(1e-4), statistic=st.just("s"), low=bounds, high=bounds
)
layers = st.lists(
    st.builds(
        LayerFinding,
        path=st.sampled_from(["a", "b", "m.a"]),
        kind=st.just("Linear"),
        ok=st.booleans(),
        finding=st.just(""),
    ),
    max_size=3,
).map(tuple)
evidences = st.builds(
    Evidence,
    id=st.sampled_from(["kl.loss", "noise.varies"]),
    subject=st.sampled_from(["net", "other", ""]),
    stage=st.sampled_from(["converted", "finetuned"]),
    verdict=st.sampled_from(Verdict),
    claim=st.just("It holds."),
    headline=st.just("so"),
    threshold=st.none() | thresholds,
    certainty=st.none() | certainties,
    layers=layers,
    expected=st.booleans(),
    key=st.sampled_from(["", "a.py::t"]),
)  # fmt: skip
audits = st.builds(AuditRun, checks=st.lists(evidences, max_size=6).map(tuple), cut=st.sampled_from([(), ("-k x",)]))


@given(audits)
def test_nothing_is_new_in_the_same_audit(audit: AuditRun) -> None:
    comparison = compare(audit, audit)
    assert {row.state for row in comparison.rows} <= {"known", "unchanged"}
    assert not comparison.failing
    assert comparison.warnings == ()


@given(audits, audits)
def test_every_piece_of_evidence_has_its_row(before: AuditRun, now: AuditRun) -> None:
    """Nothing is lost, nothing is shown twice, and rows that fail stand first."""
    comparison = compare(before, now)
    assert sorted(map(repr, before.checks)) == sorted(repr(row.before) for row in comparison.rows if row.before)
    assert sorted(map(repr, now.checks)) == sorted(repr(row.now) for row in comparison.rows if row.now)
    assert all(row.state in STATES for row in comparison.rows)
    flags = [row.fails for row in comparison.rows]
    assert flags == sorted(flags, reverse=True)


@given(audits, audits)
def test_a_row_fails_only_for_a_failure_or_a_lost_claim(before: AuditRun, now: AuditRun) -> None:
    for row in compare(before, now).rows:
        lost = row.now is None or row.now.verdict is Verdict.NOT_APPLICABLE
        assert not row.fails or lost or (row.now is not None and is_failure(row.now.verdict))
        assert not row.fails or row.state in ("new", "worse")


@given(audits)
def test_all_that_fails_is_new_where_nothing_was_known(audit: AuditRun) -> None:
    """An empty baseline forgives nothing; SEVERITY names every verdict."""
    failing = [check for check in audit.checks if is_failure(check.verdict) and not check.expected]
    assert len(compare(AuditRun(), audit).failing) == len(failing)
    assert set(SEVERITY) == set(Verdict)


def test_known_failures_are_no_green_page() -> None:
    """Nothing is new where everything failed before: that is no pass."""
    from dataclasses import replace as with_

    from pytest_bnn.report import comparison as report

    bad = AuditRun(
        checks=(
            Evidence(
                id="kl.loss", subject="net", stage="converted", verdict=Verdict.FAIL, claim="c", headline="h is bad"
            ),
        )
    )
    good = AuditRun(checks=(with_(bad.checks[0], verdict=Verdict.PASS),))
    for before, now, expected in ((bad, bad, "warn"), (good, bad, "fail"), (bad, good, "pass"), (good, good, "pass")):
        found = compare(before, now)
        assert report.tone(found).value == expected
        page = report.html(found, before, now)
        assert f'class="banner v-{expected}"' in page
        assert "unsafe-inline" not in page
    assert "Failed before, and still does." in report.html(compare(bad, bad), bad, bad)
