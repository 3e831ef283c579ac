"""The index of many audits agrees with the report of each: verdict, colour, what was not judged, cut or accepted."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from pytest_bnn.commands import merge
from pytest_bnn.records.charts import PredictionSummary, Score, ScoreRow, ScoreTable
from pytest_bnn.records.collection import SIGMA, Collection, collect
from pytest_bnn.records.evidence import Acceptance, Certainty, Evidence, Threshold, Verdict
from pytest_bnn.records.run import AuditRun, LayerRow, SessionRecord, SubjectRecord
from pytest_bnn.report import collection as index
from pytest_bnn.report.standing import Standing
from tests.unit.test_report import Page


def claim(id: str, verdict: Verdict = Verdict.PASS, subject: str = "net", **more: object) -> Evidence:
    made = Evidence(
        id=id, subject=subject, stage="converted", verdict=verdict, claim=f"Claim of {id}.", headline=f"what {id} found"
    )
    return replace(made, **more)  # type: ignore[arg-type]


def of(*runs: AuditRun) -> Collection:
    return collect((f"{number}.json", f"{number}.html", run) for number, run in enumerate(runs))


def share(observed: float | int, quantity: str) -> Threshold:
    return Threshold(quantity=quantity, observed=observed, relation=">=", allowed=0.95)


PASS = AuditRun(checks=(claim("kl.present"),))
UNJUDGED = AuditRun(checks=(claim("kl.present"), claim("kl.loss", Verdict.NOT_APPLICABLE, missing=("loss",))))


@pytest.mark.parametrize(
    ("runs", "said", "tone"),
    [
        ((PASS,), "The one model passes", Standing.PASS),
        ((PASS, PASS), "All 2 models pass", Standing.PASS),
        ((PASS, UNJUDGED), "All 2 models pass", Standing.WARN),
        ((PASS, replace(PASS, cut=("2 of 28 checks, by --checks",))), "All 2 models pass", Standing.WARN),
        ((PASS, replace(PASS, session=SessionRecord(exit_status=1, total=2))), "All 2 models pass", Standing.WARN),
        (
            (PASS, AuditRun(checks=(claim("kl.loss", Verdict.FAIL),)), AuditRun(checks=(claim("a.b", Verdict.WARN),))),
            "1 of 3 models fails, 1 passes with a warning, 1 passes",
            Standing.FAIL,
        ),
        (
            (PASS, AuditRun(checks=(claim("kl.loss", Verdict.FAIL, expected=True),))),
            "1 of 2 models passes, 1 was not judged",
            Standing.PASS,
        ),
        ((), "There is no audit here", Standing.NOT_APPLICABLE),
    ],
)
def test_sentence_and_colour(runs: tuple[AuditRun, ...], said: str, tone: Standing) -> None:
    """Green only where all that could be judged was, nothing was cut, and no test session went wrong."""
    found = of(*runs)
    assert (index.sentence(found), index.tone(found)) == (said, tone)
    page = index.render(found)
    assert f'<section class="banner v-{tone.value}"' in page
    assert said in Page(page).text


def test_a_row_says_what_was_not_judged_accepted_and_cut() -> None:
    accepted = (Acceptance(path="head", reason="latency", weights=9),)
    layer = LayerRow(
        path="stem", kind="Linear", shape="2x2", weights=4, bayesian=False, sigma_over_mu=None, kl=None, accepted="why"
    )
    subject = SubjectRecord(name="net", stage="converted", model="N", teacher=None, images=3, layers=(layer,))
    run = replace(UNJUDGED, checks=(*UNJUDGED.checks, claim("layers.replaced", accepted=accepted)), subjects=(subject,))
    found = of(replace(run, cut=("2 of 28 checks, by --checks",)), PASS)
    text = Page(index.render(found)).text
    assert "1 not judged" in text
    assert "2 accepted" in text
    assert "claims that were not judged in 1 model" in text
    assert "Cut: 2 of 28 checks, by --checks (1 of 2 models)" in text


def test_a_warning_is_not_told_as_a_claim_that_does_not_hold() -> None:
    """Each claim has the symbol of its own verdict, once, however often it was judged."""
    run = AuditRun(checks=(claim("a.b", Verdict.WARN), claim("kl.loss"), claim("kl.loss", Verdict.FAIL)))
    row = of(run).rows[0]
    assert index.problems(row) == [("kl.loss", Standing.FAIL), ("a.b", Standing.WARN)]
    assert row.counts == {"fail": 1, "warn": 1}
    page = index.render(of(run))
    assert re.search(r'v-warn"><span class="symbol" aria-hidden="true">!</span>.*?<code>a\.b</code>', page)
    assert "What kl.loss found." in Page(page).text


def test_an_index_that_was_written_before_has_no_severities() -> None:
    row = replace(of(AuditRun(checks=(claim("kl.loss", Verdict.FAIL),))).rows[0], severities=())
    assert index.problems(row) == [("kl.loss", Standing.FAIL)]


def test_a_figure_is_of_its_own_quantity() -> None:
    """A model whose outputs are NaN has no agreement of 32: that many passes were NaN."""
    good = AuditRun(
        checks=(
            claim("teacher.agreement", threshold=share(0.97, "certain share of the images")),
            claim("noise.spread", threshold=share(0.05, "spread of the outputs")),
        )
    )
    broken = AuditRun(
        checks=(
            claim("teacher.agreement", Verdict.FAIL, threshold=share(32, "passes with NaN or infinity")),
            claim("noise.spread", Verdict.FAIL, threshold=share(34, "passes with NaN or infinity")),
        )
    )
    found = of(good, broken)
    assert found.figures == ("agreement", "spread")
    assert [row.figures for row in found.rows] == [(None, None), (0.97, 0.05)]


def test_numbers_that_are_none_or_huge() -> None:
    """They are written, read again, and shown."""
    certain = Certainty(alpha=math.nan, beta=0.0, statistic="s")
    layers = tuple(
        LayerRow(path=f"l{at}", kind="Linear", shape="1", weights=1, bayesian=True, sigma_over_mu=wide, kl=1e308)
        for at, wide in enumerate((0.1, math.nan, 0.2))
    )
    runs = [
        AuditRun(
            checks=(claim("noise.spread", certainty=certain, threshold=share(value, "spread of the outputs")),),
            subjects=(
                SubjectRecord(
                    name="net",
                    stage="converted",
                    model="N",
                    teacher=None,
                    images=3,
                    layers=layers,
                    prediction_summary=PredictionSummary(
                        passes=2,
                        examples=3,
                        scores=ScoreTable(
                            predictors=("BNN",),
                            rows=(ScoreRow(name="accuracy", scores=(Score(value=-value),)),),
                            note="",
                        ),
                    ),
                ),
            ),
        )
        for value in (-1e308, 1e308, math.inf, math.nan)
    ]
    found = of(*runs)
    assert Collection.from_json(found.to_json()).to_json() == found.to_json()
    page = index.render(found)
    assert not re.search(r'cx="(nan|inf)', page)
    assert "NaN" in Page(page).text
    assert "1\N{MULTIPLICATION SIGN}10³⁰⁸" in Page(page).text
    sigma = found.rows[0].figures[found.figures.index(SIGMA)]
    assert sigma is not None
    assert math.isnan(sigma)


def test_names_are_data(capsys: pytest.CaptureFixture[str]) -> None:
    name = "<script>alert(1)</script>\x1b[31m\u202e" + 40 * "long"
    found = of(AuditRun(checks=(claim("kl.loss", Verdict.FAIL, name),)))
    page = index.render(found)
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    merge.tell(found)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2


def test_each_figure_is_explained() -> None:
    """The legend has a meaning for every column there can be, and none for those that are not there."""
    names = tuple(index._MEANINGS)
    row = replace(of(PASS).rows[0], figures=tuple(0.1 for _ in names))
    text = Page(index.render(replace(of(PASS), rows=(row,), figures=names))).text
    for name, meaning in index._MEANINGS.items():
        assert name[1:] in text
        assert meaning in text
    assert "Brier" not in Page(index.render(of(PASS))).text
