"""The top of a report says what was judged, what was not, what was accepted and loosened, and how the session went."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pytest_bnn.records.charts import PredictionSummary, Score, ScoreRow, ScoreTable
from pytest_bnn.records.evidence import Acceptance, Evidence, LayerFinding, Measurement, Verdict
from pytest_bnn.records.run import (
    AuditRun,
    Change,
    FileDigest,
    LayerRow,
    SessionRecord,
    SubjectRecord,
    TestOutcome,
)
from pytest_bnn.report import headline, render_html, render_markdown
from tests.unit.test_report import Page, hostile_run, prediction


def claim(id: str, verdict: Verdict = Verdict.PASS, subject: str = "net", **more: object) -> Evidence:
    made = Evidence(
        id=id, subject=subject, stage="converted", verdict=verdict, claim=f"Claim of {id}.", headline=f"what {id} found"
    )
    return replace(made, **more)  # type: ignore[arg-type]


def lacking(id: str, *missing: str, subject: str = "net") -> Evidence:
    return claim(id, Verdict.NOT_APPLICABLE, subject, missing=missing)


def tone(run: AuditRun) -> str:
    found = re.search(r'<section class="banner v-([a-z_]+)"', render_html(run))
    assert found is not None
    return found[1]


def words(run: AuditRun) -> str:
    return Page(render_html(run)).text


THREE = tuple(claim(id) for id in ("kl.present", "noise.varies", "layers.replaced"))
NINE = (
    *(lacking(id, "loss") for id in ("kl.loss", "gradient.samples", "loss.data")),
    *(lacking(id, "teacher") for id in ("mean.equals_teacher", "teacher.agreement", "teacher.tensors")),
    *(lacking(id, "teacher", "images") for id in ("noise.spread", "predictions.rows")),
    lacking("slices.scores", "slices"),
)


def test_from_three_subjects_on_markdown_has_a_line_for_each() -> None:
    """Columns for thirty subjects would be read by nobody; what does not hold is named in the subject's line."""
    names = [f"net {number}" for number in range(3)]
    checks = (
        *(claim("kl.present", subject=name) for name in names),
        claim("kl.loss", Verdict.FAIL, "net 0"),
        lacking("kl.loss", "loss", subject="net 1"),
        claim("noise.varies", Verdict.WARN, "net 0"),
        claim("noise.varies", subject="net 1", accepted=(Acceptance(path="a", reason="so"),)),
    )
    told = render_markdown(AuditRun(checks=checks))
    rows = [line for line in told.splitlines() if line.startswith("| net ")]
    stage = "<br><sub>converted</sub>"
    assert rows == [
        f"| net 0{stage} | ✕ **fail** | 1 of 3 | ✕ **fail**: <code>kl.loss</code><br>"
        "! warn: <code>noise.varies</code> |",
        f"| net 1{stage} | ○ not judged | 2 of 3 | ○ not judged: <code>kl.loss</code><br>"
        "✓ pass: <code>noise.varies</code> (1 accepted) |",
        f"| net 2{stage} | ✓ pass | 1 of 1 | not run: <code>kl.loss</code>, <code>noise.varies</code> |",
    ]
    assert "- <code>kl.present</code>: Claim of <code>kl.present</code>." in told
    two = [check for check in checks if check.subject != "net 2"]
    assert "| Claim | net 0<br>" in render_markdown(AuditRun(checks=tuple(two)))


# What was not judged.


def test_the_headline_counts_what_was_judged_and_what_was_not() -> None:
    """Three of twelve hold: that is no "all claims hold", and it is not green."""
    run = AuditRun(checks=(*THREE, *NINE))
    assert headline(run) == "3 of 12 claims were judged, and hold"
    assert tone(run) == "warn"
    for text in (words(run), render_markdown(run)):
        assert "3 of 12 claims were judged, and hold" in text
        assert "All" not in text.split("Claim")[0]


def test_each_claim_that_was_not_judged_has_the_option_that_would_judge_it() -> None:
    text = words(AuditRun(checks=(*THREE, *NINE)))
    assert re.search(r"--loss \(in Python loss= \) would judge kl\.loss , gradient\.samples , loss\.data", text)
    assert re.search(r"--teacher and --data \(in Python teacher= , images= \) would judge noise\.spread", text)
    told = render_markdown(AuditRun(checks=(*THREE, *NINE))).replace("\\", "")
    assert "- <code>--loss</code> (in Python <code>loss=</code>) would judge <code>kl.loss</code>," in told


def test_not_applicable_is_another_word_and_colour_than_not_judged() -> None:
    run = AuditRun(checks=(claim("kl.present"), claim("estimator.flipout", Verdict.NOT_APPLICABLE)))
    assert headline(run) == "The one claim holds"
    assert tone(run) == "pass"
    both = AuditRun(checks=(*run.checks, lacking("kl.loss", "loss")))
    assert headline(both) == "1 of 2 claims was judged, and holds"
    page = render_html(both)
    badges = dict(re.findall(r'class="badge v-([a-z_]+)".*?class="word">([a-z ]+)<', page, re.DOTALL))
    assert badges["not_applicable"] == "not applicable"
    assert badges["not_judged"] == "not judged"


@pytest.mark.parametrize(
    ("checks", "said", "coloured"),
    [
        ((lacking("kl.loss", "loss"), lacking("a.b", "teacher")), "None of 2 claims was judged", "warn"),
        ((claim("a.b", Verdict.FAIL), claim("a.c")), "1 of 2 claims failed", "fail"),
        ((claim("a.b", Verdict.FAIL), claim("a.c"), lacking("a.d", "loss")),
         "1 of 2 judged claims failed; 1 more was not judged", "fail"),
        ((claim("a.b", Verdict.WARN), claim("a.c"), lacking("a.d", "loss")),
         "2 of 3 claims were judged, and hold, 1 with a warning", "warn"),
        ((claim("a.b", Verdict.INCONCLUSIVE), claim("a.c", Verdict.ERROR)),
         "1 of 2 claims could not be checked, 1 is undecided", "error"),
        ((), "No claim was checked", "not_applicable"),
    ],
)  # fmt: skip
def test_sentences_by_hand(checks: tuple[Evidence, ...], said: str, coloured: str) -> None:
    run = AuditRun(checks=checks)
    assert headline(run) == said
    assert tone(run) == coloured


def test_what_lacks_something_in_some_subjects_names_them() -> None:
    run = AuditRun(checks=(lacking("a.b", "loss", subject="x"), claim("a.b", subject="y")))
    assert "would judge a.b of x" in words(run)


# What was expected.


def test_an_expected_failure_stands_apart_and_outside_of_the_count() -> None:
    expected = claim("layers.replaced", Verdict.FAIL, "plain", expected=True, test="test_a.py::test_refuses")
    run = AuditRun(checks=(claim("layers.replaced"), claim("kl.present"), expected))
    assert headline(run) == "All 2 claims hold"
    assert tone(run) == "pass"
    text = words(run)
    assert "1 failed as expected" in text
    assert "The test test_a.py::test_refuses expects this failure" in text
    assert "1 failed as expected, not counted" in render_markdown(run)
    assert '<ol class="loud">' not in render_html(run)


def test_an_expected_failure_does_not_hide_a_real_one() -> None:
    real = claim("kl.present", Verdict.FAIL)
    run = AuditRun(checks=(replace(real, expected=True), real))
    assert headline(run) == "The one claim failed"
    assert tone(run) == "fail"


# What was accepted.


def test_accepted_parts_are_counted_named_and_have_their_reason() -> None:
    """Eighty of a hundred weights are deterministic: "100 %" is not what a reader has to hear of it."""
    accepted = claim(
        "layers.replaced", accepted=(Acceptance(path="classifier.3", reason="latency budget", weights=80),)
    )
    rows = tuple(
        LayerRow(path=path, kind="Linear", shape="", weights=weights, bayesian=path == "a")
        for path, weights in (("a", 20), ("classifier.3", 80))
    )
    described = SubjectRecord(name="net", stage="converted", model="Net", teacher=None, images=0, layers=rows)
    run = AuditRun(checks=(accepted,), subjects=(described,))
    assert re.search(r"pass 1 accepted", words(run))
    for text in (words(run), render_markdown(run)):
        plain = re.sub(r"<[^>]+>|\s", " ", text)
        assert re.search(r"classifier\.3\s*: latency budget \(80 weights, 80\.0 % of the model\)", plain), plain[:500]
    assert "pass (1 accepted)" in render_markdown(run)


# The session.


DIED = SessionRecord(
    exit_status=1, total=2,
    tests=(TestOutcome(test="t.py::test_dies", outcome="failed", reason="RuntimeError: boom"),
           TestOutcome(test="t.py::test_ok", outcome="passed")),
)  # fmt: skip


def test_a_test_that_died_is_said_and_not_green() -> None:
    run = AuditRun(checks=(claim("kl.present", test="t.py::test_ok"),), session=DIED)
    assert headline(run) == "The one claim holds, but 1 of 2 tests failed before or outside a claim"
    assert tone(run) == "fail"
    page = Page(render_html(run))
    assert "pytest ended with exit status 1: 1 of 2 tests failed before or outside a claim" in page.text
    assert "t.py::test_dies failed RuntimeError: boom" in page.text
    assert "exit status 1: 1 of 2 tests failed before or outside a claim" in render_markdown(run)


def test_a_test_that_failed_on_a_claim_is_told_from_one_that_died() -> None:
    run = AuditRun(checks=(claim("kl.present", Verdict.FAIL, test="t.py::test_dies"),), session=DIED)
    assert headline(run) == "The one claim failed"
    assert "1 of 2 tests failed on a claim" in words(run)
    assert "outside a claim" not in words(run)


@pytest.mark.parametrize(
    ("session", "said", "coloured"),
    [
        (SessionRecord(exit_status=0, total=4), "pytest ended with exit status 0: 4 tests passed", "pass"),
        (SessionRecord(exit_status=0, total=4, deselected=3), "exit status 0: 3 tests deselected", "pass"),
        (SessionRecord(exit_status=0, total=1, tests=(TestOutcome(test="t", outcome="xfailed"),)), "1 xfailed", "pass"),
        (SessionRecord(exit_status=2, total=3, tests=(TestOutcome(test="t", outcome="never run"),)),
         "exit status 2: 1 test was never run; pytest was interrupted", "fail"),
        (SessionRecord(exit_status=0, total=3, tests=(TestOutcome(test="t", outcome="never run"),)),
         "1 test was never run", "warn"),
        (SessionRecord(exit_status=3, total=1), "exit status 3: pytest broke internally", "fail"),
        (SessionRecord(exit_status=7, total=1), "pytest ended with exit status 7", "warn"),
    ],
)  # fmt: skip
def test_sessions_by_hand(session: SessionRecord, said: str, coloured: str) -> None:
    run = AuditRun(checks=(claim("kl.present"),), session=session)
    assert said in words(run)
    assert tone(run) == coloured


def test_what_was_cut_is_said_beside_the_verdict_and_not_green() -> None:
    run = AuditRun(checks=(claim("kl.present"),), cut=("27 of 28 checks were left out by --checks",))
    assert tone(run) == "warn"
    banner = re.search(r'<section class="banner.*?</section>', render_html(run), re.DOTALL)
    assert banner is not None
    assert '27 of 28 checks were left out by <code class="option">--checks</code>.' in banner[0]
    assert "27 of 28 checks were left out by" in render_markdown(run)


# What was changed.


def test_changed_settings_stand_in_a_table_beside_the_verdict() -> None:
    change = Change(name="min_agreement", value="0.5", default="0.95", source="PYTEST_BNN_MIN_AGREEMENT")
    one = Change(name="kl.loss.num_batches", value="9", default="none", source="the marker bnn", tests=("t.py::a",))
    run = AuditRun(
        checks=(claim("kl.present"),),
        changed=(change, one),
        provenance={"repeat": "pytest --bnn-min-agreement 0.5", "command": "pytest"},
    )
    page = render_html(run)
    text = Page(page).text
    assert "min_agreement PYTEST_BNN_MIN_AGREEMENT 0.5 0.95" in text
    assert "kl.loss.num_batches the marker bnn, in t.py::a 9 none" in text
    assert page.index('id="changed-h"') < page.index('id="claims"')
    assert re.search(r'<pre class="command"[^>]*>pytest --bnn-min-agreement 0.5</pre>', page)
    assert page.count("pytest --bnn-min-agreement 0.5") == 1, "it stands under 'Repeat it' alone"
    told = render_markdown(run).replace("\\", "")
    assert "| <code>min_agreement</code> | 0.5 | 0.95 | PYTEST_BNN_MIN_AGREEMENT |" in told
    assert "The command that repeats it" in text
    without = Page(render_html(replace(run, provenance={}))).text
    assert "How to repeat it" in without
    assert "this command" not in without, "there is none"


def test_settings_of_older_audits_are_read_from_their_provenance() -> None:
    run = AuditRun(checks=(claim("kl.present"),), provenance={"set min_agreement": "0.5 (--bnn-min-agreement)"})
    assert "min_agreement --bnn-min-agreement 0.5" in words(run)
    assert "every setting is at its default" in words(AuditRun(checks=(claim("kl.present"),)))


# How good, and which one.


def scored(name: str, accuracy: float = 0.75) -> SubjectRecord:
    def row(of: str, *values: float) -> ScoreRow:
        return ScoreRow(name=of, scores=tuple(Score(value=v, low=v - 0.05, high=v + 0.05) for v in values))

    table = ScoreTable(
        predictors=("teacher", "one pass", "BNN"),
        rows=(
            row("accuracy", 0.8, 0.7, accuracy),
            row("Brier score", 0.3, 0.4, 0.35),
            ScoreRow(name="best temperature", scores=(Score(value=1.1), None, Score(value=0.9))),
        ),
        note="",
    )
    return SubjectRecord(
        name=name, stage="converted", model="Net", teacher="Net", images=9, sha256="ab" * 32, data_sha256="cd" * 32,
        sources={"model": "my_net:bayesian"}, files=(FileDigest(path="w.pt", sha256="ef" * 32, bytes=12),),
        prediction_summary=PredictionSummary(passes=8, examples=40, scores=table),
    )  # fmt: skip


def first_screen(run: AuditRun) -> str:
    page = render_html(run)
    return Page(page[page.index('<div class="first">') : page.index('<section id="claims">')]).text


def test_quality_stands_at_the_top_beside_the_teachers() -> None:
    text = first_screen(AuditRun(checks=(claim("kl.present"),), subjects=(scored("net"),)))
    assert "Predictor Accuracy Brier score Temperature" in text
    lines = ("BNN 0.750 0.700–0.800 0.350 0.300–0.400 0.900", "teacher 0.800 0.750–0.850 0.300", "one pass 0.700")  # noqa: RUF001
    assert text.index(lines[0]) < text.index(lines[1]) < text.index(lines[2])
    assert "On 40 labelled examples." in text
    told = render_markdown(AuditRun(checks=(claim("kl.present"),), subjects=(scored("net"),)))
    assert "| BNN | 0.750 (0.700–0.800) |" in told  # noqa: RUF001


def test_from_three_subjects_on_each_has_one_line() -> None:
    run = AuditRun(subjects=tuple(scored(name, 0.5 + at / 10) for at, name in enumerate("abc")))
    text = first_screen(run)
    assert "a 0.500 (0.800) 0.350 (0.300)" in text
    assert "c 0.700 (0.800) 0.350 (0.300)" in text
    assert "one pass" not in text


def test_a_regression_is_scored_by_what_its_claim_measured() -> None:
    """The names are those of the measurements of `regression.scores`, which its own tests compare with an oracle."""
    names = ("CRPS", "CRPS of the teacher", "CRPS of one pass", "root mean square error", "CRPS of the mean network",
             "root mean square error of the teacher", "difference")  # fmt: skip
    measured = tuple(Measurement(name=name, value=(at + 1) / 10) for at, name in enumerate(names))
    covered = (Measurement(name="coverage at 0.9", value=0.875), Measurement(name="mean", value=0.1))
    checks = (claim("regression.scores", measurements=measured), claim("regression.coverage", measurements=covered))
    bare = replace(scored("net"), prediction_summary=None)
    text = first_screen(AuditRun(checks=checks, subjects=(bare,)))
    assert "Predictor CRPS RMSE Within 90.0 %" in text.replace("\xa0", " ")
    for line in ("BNN 0.1 0.4 87.5 %", "teacher 0.2 0.6", "mean network 0.5", "one pass 0.3"):
        assert line in text.replace("\xa0", " ")
    assert "0.7" not in text


def test_why_nothing_is_scored_is_said() -> None:
    unlabelled = replace(scored("net"), prediction_summary=PredictionSummary(passes=8, missing="no labels were given"))
    assert "Not scored, no labels were given." in first_screen(AuditRun(subjects=(unlabelled,)))
    none = replace(scored("net"), prediction_summary=None)
    assert "Not scored, no claim about predictions was judged." in first_screen(AuditRun(subjects=(none,)))


def test_the_time_in_checks_stands_for_a_duration_that_was_not_recorded() -> None:
    run = AuditRun(checks=(claim("a.b", seconds=12.0), claim("a.c", seconds=21.0)))
    assert "Duration 33 s in checks" in first_screen(run)


def test_what_a_picture_was_chosen_for_is_said() -> None:
    one = prediction()
    text = words(AuditRun(subjects=(replace(scored("net"), predictions=(replace(one, why="wrong and sure of it"),)),)))
    assert "those on which BNN and teacher disagree, the surest errors" in text
    assert "chosen as wrong and sure of it" in text
    older = words(AuditRun(subjects=(replace(scored("net"), predictions=(one,)),)))
    assert "those whose mean prediction is the least certain, first" in older
    assert "chosen as" not in older


def test_identity_stands_at_the_top() -> None:
    """The file's own digest stands there whole, so that it can be compared."""
    said = {
        "commit": "abc123 + changes",
        "machine": "a CPU, 2 cores",
        "duration": "62 s",
        "torch": "2.9",
        "python": "3",
    }
    run = AuditRun(checks=(claim("kl.present"),), subjects=(scored("net"),), provenance=said)
    text = first_screen(run)
    for part in ("w.pt , 12 bytes sha256: " + "ef" * 32, "sha256: " + "ab" * 32, "sha256: " + "cd" * 32,
                 "model my_net:bayesian", "Commit abc123 + changes", "Machine a CPU, 2 cores", "Duration 62 s",
                 "Versions torch 2.9, python 3"):  # fmt: skip
        assert part.replace("sha256: ", "sha256:") in text, (part, text)
    told = render_markdown(run)
    assert f"File <code>w.pt</code>, SHA-256 <code>{'ef' * 32}</code>" in told
    assert "- Commit: abc123 + changes" in told


# Causes.


CHAIN = (
    claim("kl.present", Verdict.FAIL, headline="'net.0' has no gradient"),
    claim("noise.varies"),
    claim("kl.loss", Verdict.FAIL, explained_by="kl.present"),
    claim("gradient.samples", Verdict.ERROR, explained_by="kl.loss"),
    claim("kl.loss", Verdict.FAIL, "other", explained_by="kl.present"),
)


def test_what_another_failure_explains_stands_under_it() -> None:
    run = AuditRun(checks=CHAIN)
    assert headline(run) == "3 of 5 claims failed (1 of them because another did), 1 could not be checked"
    page = render_html(run)
    [listed] = re.findall(r'<ol class="loud">.*?</ol>', page, re.DOTALL)
    assert listed.count("<li") == 2, "one for each subject: nothing explains the other's"
    assert re.search(r'From this follow <a href="#c3"><code>kl\.loss</code></a>, <a href="#c4">', listed)
    order = [a["id"] for tag, a in Page(page).elements if tag == "article"]
    assert order == ["c1", "c3", "c4", "c2", "c5"]
    assert "follows from kl.present" in words(run)
    assert "From this follow <code>kl.loss</code>, <code>gradient.samples</code>" in render_markdown(run)


@pytest.mark.parametrize(
    "checks",
    [
        (claim("a.b", Verdict.FAIL, explained_by="a.c"), claim("a.c", Verdict.FAIL, explained_by="a.b")),
        (claim("a.b", Verdict.FAIL, explained_by="a.b"),),
        (claim("a.b", Verdict.FAIL, explained_by="a.c"), claim("a.c")),
        (claim("a.b", Verdict.FAIL, explained_by="no.such"),),
        (claim("a.b", Verdict.FAIL, explained_by="a.c"), claim("a.c", Verdict.FAIL, expected=True)),
    ],
)
def test_a_cause_that_is_none_hides_nothing(checks: tuple[Evidence, ...]) -> None:
    """Circles, itself, a claim that holds, one that is not there: the failure stands for itself."""
    run = AuditRun(checks=checks)
    page = render_html(run)
    loud = sum(check.verdict is Verdict.FAIL and not check.expected for check in checks)
    assert page.count('class="big-symbol"') == 1
    [listed] = re.findall(r'<ol class="loud">.*?</ol>', page, re.DOTALL)
    assert listed.count("<li") == loud
    assert "follows from" not in words(run).lower()


def test_passed_claims_are_one_line_and_failed_ones_are_open() -> None:
    page = render_html(AuditRun(checks=(claim("a.b"), claim("a.c", Verdict.FAIL), claim("a.d", Verdict.WARN))))
    articles = dict(re.findall(r'<article class="card [^"]*" id="(c\d)".*?>\s*<(details|header)', page))
    assert articles == {"c1": "details", "c2": "header", "c3": "header"}


# Subjects.


def test_the_banner_names_subjects_and_leaves_none_out() -> None:
    checks = tuple(claim(f"a.n{at}", Verdict.FAIL, f"net {at}") for at in range(9))
    banner = re.search(r'<section class="banner.*?</section>', render_html(AuditRun(checks=checks)), re.DOTALL)
    assert banner is not None
    for at in range(9):
        assert f">net {at}<" in banner[0]
        assert f'href="#c{at + 1}"' in banner[0]


def test_from_three_subjects_on_a_line_of_the_matrix_is_a_subject() -> None:
    def of(count: int) -> str:
        checks = tuple(claim(id, Verdict.FAIL if at == 1 else Verdict.PASS, f"net {at}")
                       for at in range(count) for id in ("kl.present", "noise.varies"))  # fmt: skip
        return render_html(AuditRun(checks=(*checks, claim("a.b", subject="net 0"))))

    assert "by-subject" not in of(2).partition("</style>")[2]
    table = re.search(r'<table class="matrix by-subject">.*?</table>', of(4), re.DOTALL)
    assert table is not None
    page = Page(table[0])
    assert page.text.startswith("Subject Verdict kl.present noise.varies a.b net 0")
    assert [a["href"] for tag, a in page.elements if "sign" in (a.get("class") or "")][:4] == [
        "#c1",
        "#c2",
        "#c9",
        "#c3",
    ]
    assert re.search(r"net 1 converted ✕ fail ✕ fail ✕ fail not run", page.text)


def test_subjects_of_one_name_are_told_apart_by_their_key() -> None:
    run = AuditRun(checks=(claim("a.b", key="t.py::one"), claim("a.b", Verdict.FAIL, key="t.py::two")))
    assert headline(run) == "1 of 2 claims failed"
    assert "net t.py::two" in words(run)
    assert "t.py::one" not in words(AuditRun(checks=(claim("a.b", key="t.py::one"),))).split("Evidence")[0]


# Words.


def test_sentences_begin_with_a_capital_letter_and_names_are_code() -> None:
    found = LayerFinding(path="layer1.0.conv1", kind="Conv2d", ok=False, finding="no gradient")
    check = claim(
        "kl.present", Verdict.FAIL, layers=(found,),
        headline="the KL of 'layer1.0.conv1' and layer1.0 is gone, see kl.present; it's the teacher's `fc`",
        remedy="allow more passes (--samples); 'not a path' and e.g. v1.0 stay",
    )  # fmt: skip
    page = render_html(AuditRun(checks=(check,)))
    assert (
        '<p class="headline">The KL of <code>layer1.0.conv1</code> and <code>layer1.0</code> is gone, see '
        "<code>kl.present</code>; it&#39;s the teacher&#39;s <code>fc</code>.</p>"
    ) in page
    assert 'Allow more passes (<code class="option">--samples</code>); &#39;not a path&#39; and e.g. v1.0 stay.' in page
    told = render_markdown(AuditRun(checks=(check,)))
    assert "**The KL of <code>layer1.0.conv1</code> and" in told


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("nn.Linear is left", "nn.Linear is left"), ("bayesian-torch averages", "bayesian-torch averages"),
        ("the model", "The model"), ("8 passes", "8 passes"), ("", ""), ("a", "A"), ("x=1 is odd", "x=1 is odd"),
        ("Already", "Already"), ("kl.loss failed", "kl.loss failed"), ("mu has moved", "Mu has moved"),
    ],
)  # fmt: skip
def test_capital_letters_by_hand(text: str, written: str) -> None:
    from pytest_bnn.report.wording import capital

    assert capital(text) == written


def test_two_conventions_of_the_kl_are_explained() -> None:
    assert "Two conventions stand on this page" in words(AuditRun(checks=(claim("kl.present"),)))


def test_hostile_names_in_the_new_parts_stay_text() -> None:
    evil = hostile_run().title
    check = replace(
        hostile_run().checks[0], accepted=(Acceptance(path=evil, reason=evil),), test=evil, key=evil, explained_by=evil
    )
    subjects = (
        replace(hostile_run().subjects[0], data_sha256=evil, sources={evil: evil}, key=evil,
                files=(FileDigest(path=evil, sha256=evil, bytes=1),)),
    )  # fmt: skip
    run = AuditRun(
        checks=(check, lacking(evil, evil), replace(check, expected=True)),
        subjects=subjects,
        provenance={"commit": evil, "repeat": evil, "machine": evil, f"set {evil}": evil},
        changed=(Change(name=evil, value=evil, default=evil, source=evil, tests=(evil,)),),
        cut=(evil,),
        session=SessionRecord(exit_status=1, total=1, tests=(TestOutcome(test=evil, outcome="failed", reason=evil),)),
    )
    page = Page(render_html(run))
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert not page.open
    assert all(reference.startswith("#") for reference in page.references)
    told = render_markdown(run)
    assert "<script" not in told
    assert "http://" not in told
    assert not re.search(r"(?<!\\)[`\[\]]", told)


def test_an_audit_of_schema_1_3_still_renders() -> None:
    """What it lacks has defaults: nothing was not judged, nothing changed, no session."""
    old = AuditRun(checks=(claim("kl.present"), claim("kl.loss", Verdict.NOT_APPLICABLE)))
    text = old.to_json().replace('"schema_version": "1.4"', '"schema_version": "1.3"')
    for name in ("accepted", "missing", "explained_by", "test", "expected", "key", "changed", "cut", "session"):
        text = re.sub(rf',\n *"{name}": (\[\]|""|false|null)(?=[,\n])', "", text)
    assert '"missing"' not in text
    run = AuditRun.from_json(text)
    assert headline(run) == "The one claim holds"
    assert tone(run) == "pass"
    assert render_html(AuditRun.from_json(run.to_json())) == render_html(run)


# What a hostile reader tried.


def test_an_audit_that_was_cut_says_so_in_its_headline_and_does_not_claim_to_be_all() -> None:
    """Nothing was left unjudged of two claims that were asked for, and 26 others were not asked for."""
    run = AuditRun(checks=THREE, cut=("25 of 28 checks were left out by --checks",))
    assert headline(run) == "All 3 claims hold, but the audit was cut"
    assert tone(run) == "warn"
    assert "all that applies was judged" not in words(run)
    assert "Of the claims that were checked, none; others were cut." in words(run)
    failed = AuditRun(checks=(claim("kl.loss", Verdict.FAIL),), cut=run.cut)
    assert headline(failed) == "The one claim failed"


def test_a_session_of_tests_takes_up_single_claims() -> None:
    run = AuditRun(checks=THREE, session=SessionRecord(exit_status=0, total=3))
    assert "all that applies was judged" not in words(run)
    assert "all that applies was judged" in words(AuditRun(checks=THREE))


def test_expected_failures_alone_were_checked() -> None:
    """They are no "no claim was checked"."""
    run = AuditRun(checks=(claim("kl.loss", Verdict.FAIL, expected=True, test="t.py::test"),))
    assert headline(run) == "Nothing but 1 failure that was expected"
    assert tone(run) == "not_applicable"


def test_no_but_where_nothing_holds() -> None:
    run = AuditRun(session=SessionRecord(exit_status=5, total=0))
    assert headline(run) == "No claim was checked, and pytest ran no test"


def test_what_was_accepted_and_changed_is_counted_in_the_banner() -> None:
    """Once each, however often it was recorded."""
    change = Change(name="kl.loss.num_batches", value="22", default="none", source="--num-batches")
    accepted = (Acceptance(path="head", reason="latency", weights=9),)
    run = AuditRun(checks=(claim("layers.replaced", accepted=accepted),), changed=(change, change))
    banner = re.search(r'<section class="banner.*?</section>', render_html(run), re.S)
    assert banner is not None
    said = Page(banner[0]).text
    assert "1 part accepted" in said
    assert "1 setting changed" in said
    assert words(run).count("--num-batches") == 1
    assert render_markdown(run).count("--num-batches") == 1


def test_subjects_are_told_by_how_they_fared() -> None:
    run = AuditRun(
        checks=(
            claim("kl.loss", Verdict.FAIL, "bad"),
            claim("kl.loss", subject="good"),
            claim("kl.loss", subject="sound"),
            claim("kl.loss", Verdict.WARN, "odd"),
            lacking("kl.loss", "loss", subject="bare"),
        )
    )
    said = words(run)
    for part in ("1 subject fails: bad", "2 subjects pass: good , sound", "1 subject passes with a warning: odd",
                 "1 subject has claims that were not judged: bare"):  # fmt: skip
        assert part in said, said


def test_huge_names_and_headlines_leave_the_first_screen_to_others() -> None:
    long = "verylong" * 60
    run = AuditRun(
        checks=(
            claim("kl.loss", Verdict.FAIL, long, headline=f"layer {long} is bad"),
            claim("kl.loss", subject="other"),
        )
    )
    banner = re.search(r'<section class="banner.*?</section>', render_html(run), re.S)
    assert banner is not None
    shown = re.sub(r'title="[^"]*"', "", banner[0])
    assert long not in shown
    assert f'title="{long}"' in banner[0]


def test_huge_scores_are_powers_of_ten() -> None:
    huge = Score(value=1e308)
    table = ScoreTable(
        predictors=("BNN",), rows=(ScoreRow(name="Brier score", scores=(huge,)),), note="95 % intervals."
    )
    summary = PredictionSummary(passes=2, examples=3, scores=table)
    subject = SubjectRecord(
        name="net", stage="converted", model="N", teacher=None, images=3, prediction_summary=summary
    )
    text = words(AuditRun(checks=THREE, subjects=(subject,)))
    assert "1\N{MULTIPLICATION SIGN}10³⁰⁸" in text
    assert "000,000,000" not in text


def test_names_with_a_digit_are_code_and_words_are_not() -> None:
    layers = tuple(LayerFinding(path=path, kind="Linear", ok=False, finding="") for path in ("l1", "to_logits", "head"))
    run = AuditRun(
        checks=(claim("kl.loss", Verdict.FAIL, headline="noise in l1, to_logits and the head", layers=layers),)
    )
    page = render_html(run)
    assert "Noise in <code>l1</code>, <code>to_logits</code> and the head." in page


def test_settings_of_an_older_audit_without_a_source() -> None:
    run = AuditRun(checks=THREE, provenance={"set samples": "8 (environment)", "set alpha": "0.5"})
    told = render_markdown(run)
    assert "| <code>samples</code> | 8 |  | environment |" in told
    assert "| <code>alpha</code> | 0.5 |  |  |" in told
