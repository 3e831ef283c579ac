"""What audits were made with stands in their rows, and where it is not the same in all, the index says so."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from pytest_bnn.commands import merge
from pytest_bnn.records.collection import Collection, collect
from pytest_bnn.records.evidence import Evidence, Verdict
from pytest_bnn.records.made_with import PARTS, differing, recorded
from pytest_bnn.records.run import AuditRun, Change, SubjectRecord
from pytest_bnn.report import collection as index
from pytest_bnn.report.standing import Standing
from tests.unit.test_report import Page


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run(name: str, verdict: Verdict = Verdict.PASS, data: str = "", **provenance: str) -> AuditRun:
    claim = Evidence(id="kl.present", subject=name, stage="unknown", verdict=verdict, claim="It is.", headline="found")
    subject = SubjectRecord(name=name, stage="unknown", model="N", teacher=None, images=1, data_sha256=data)
    return AuditRun(checks=(claim,), subjects=(subject,), provenance=provenance)


def part(name: str, **other: str) -> AuditRun:
    """Return an audit of a series, made with something else where that is said."""
    shared = {of: digest(other.get(of, "the same")) for of in PARTS}
    given = recorded({**shared, **{of: "" for of, said in other.items() if not said}})
    return replace(run(name), provenance=given)


def of(*runs: AuditRun) -> Collection:
    return collect((f"{number}.json", "", one) for number, one in enumerate(runs))


def test_the_same_says_nothing() -> None:
    found = of(part("a"), part("b"), part("c", teacher="", data=""), part("d", teacher="", data=""))
    assert differing(of(*[part(name) for name in "abc"]).rows) == []
    assert index.tone(of(part("a"), part("b"))) is Standing.PASS
    assert len(differing(found.rows)) == 2  # data and teacher, and nothing else
    assert Collection.from_json(found.to_json()) == found


@pytest.mark.parametrize("what", PARTS)
def test_each_difference_is_named_with_its_digests(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On the page and in the output; the verdict stays that of the audits."""
    odd = [part(f"odd {number}", **{what: "another"}) for number in range(5)]
    found = of(*[part(f"usual {number}") for number in range(6)], *odd)
    words = (
        f"not all were made with the same {what}: 6 with {digest('the same')[:12]}, 5 with {digest('another')[:12]} "
        "(odd 0, odd 1, odd 2 and 2 more)"
    )
    assert differing(found.rows) == [words]
    assert index.remarks(found) == [words]
    assert index.tone(found) is Standing.WARN
    assert found.verdict is Verdict.PASS
    assert words[1:] in Page(index.render(found)).text
    merge.tell(found)
    assert capsys.readouterr().out == f"All 11 models pass\n  {words}\n"
    merge.tell(found, quiet=True)
    assert capsys.readouterr().out == "All 11 models pass\n"


def test_three_kinds_and_what_is_not_on_record() -> None:
    """The most common first; a teacher that was not given is a difference."""
    found = of(part("a"), part("b"), part("c", teacher=""), part("d", teacher="x", data="y"))
    data, teacher = differing(found.rows)
    assert data.startswith("not all were made with the same data: 3 with ")
    assert "1 without any that is on record (c)" in teacher
    assert f"1 with {digest('x')[:12]} (d)" in teacher


def test_audits_that_were_made_one_by_one() -> None:
    """Their own records say what was changed, on which examples and with which versions; it is no reason for amber."""
    plain = run("a", data=digest("d"), torch="2.6", seed="0")
    assert differing(of(plain, replace(plain), run("b", data=digest("d"), torch="2.6", seed="0")).rows) == []
    changed = Change(name="samples", value="9", default="64", source="--samples")
    for other, what in (
        (run("b", data=digest("e"), torch="2.6", seed="0"), "data"),
        (run("b", data=digest("d"), torch="2.7", seed="0"), "versions"),
        (run("b", data=digest("d"), torch="2.6", seed="1"), "settings"),
        (replace(plain, changed=(changed,)), "settings"),
        (replace(plain, cut=("2 of 28 checks, by --checks",)), "settings"),
    ):
        (said,) = differing(of(plain, other).rows)
        assert said.startswith(f"not all were made with the same {what}: 1 with ")
    assert index.tone(of(plain, run("b", data=digest("e"), torch="2.6", seed="0"))) is Standing.PASS


def test_how_many_processes_audited_makes_no_difference() -> None:
    changed = Change(name="jobs", value="2", default="0", source="--jobs")
    rows = of(run("a", seed="0"), replace(run("b", seed="0"), changed=(changed,))).rows
    assert rows[0].made_with["settings"] == rows[1].made_with["settings"]
    assert differing(rows) == []


def test_a_series_and_an_audit_beside_it() -> None:
    """Their digests are of different things, and not held against each other."""
    found = of(part("a"), part("b"), run("alone", data=digest("the same")))
    (said,) = differing(found.rows)
    assert said.startswith("1 of 3 was not audited in a series of checkpoints: whether settings and data are those of")


def test_an_index_that_was_written_before() -> None:
    """It has no digests, and says nothing of them."""
    text = of(part("a"), part("b", data="x")).to_json()
    rows = Collection.from_json(text).rows
    assert differing([replace(row, made_with={}) for row in rows]) == []
