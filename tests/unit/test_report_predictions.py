"""The report's section on predictions: whole, escaped, and with the numbers of each chart beside it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import cycle

import pytest

from pytest_bnn.records.charts import (
    Chart,
    ChartBand,
    ChartCounts,
    ChartLine,
    Mistake,
    PredictionSummary,
    Ridge,
    Ridges,
    Score,
    ScoreRow,
    ScoreTable,
)
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import render_html
from pytest_bnn.report.curves import curves, keys, ridges
from pytest_bnn.report.tables import chart_tables, difference, ridge_table, score
from tests.unit.test_report import HOSTILE, Page, evidence, png, subject

LEVELS = (0.0, 1.0, 2.0, 3.0)


def severity(name: str = "noise", other: str = "blur") -> Chart:
    lines = (
        ChartLine(name=name, x=LEVELS, y=(0.02, 0.1, 0.3, 0.6)),
        ChartLine(name=other, x=LEVELS, y=(0.02, 0.05, 0.1, 0.2)),
    )
    return Chart(title="Error under growing corruption", x_name="severity", y_name="share wrong", lines=lines)


def coverage() -> Chart:
    line = ChartLine(
        name="BNN", whose="model", x=(0.5, 0.8, 0.95), y=(0.45, 0.7, 0.9), low=(0.4, 0.6, 0.8), high=(0.5, 0.8, 0.95)
    )
    return Chart(title="Coverage", x_name="nominal", y_name="observed", lines=(line,), diagonal="as nominal")


def pit() -> Chart:
    places = (0.0, 0.5, 1.0)
    return Chart(
        title="PIT",
        x_name="PIT value",
        y_name="share below",
        lines=(ChartLine(name="BNN", whose="model", x=places, y=(0.0, 0.4, 1.0), steps=True),),
        band=ChartBand(name="95 % band", x=places, low=(0.0, 0.3, 1.0), high=(0.0, 0.7, 1.0)),
        x_ends=(0.0, 1.0),
        y_ends=(0.0, 1.0),
    )


def reliability(name: str = "BNN") -> Chart:
    lines = (
        ChartLine(name="teacher", whose="teacher", x=(0.2, 0.9), y=(0.3, 0.8)),
        ChartLine(name=name, whose="model", x=(0.2, 0.5, 1.0), y=(0.2, 0.6, 0.9)),
    )
    return Chart(
        title="Reliability",
        x_name="probability",
        y_name="share right",
        lines=lines,
        counts=ChartCounts(name="examples", edges=(0.0, 0.5, 1.0), counts=(30, 70)),
        diagonal="as said",
        caption="A caption.",
    )


def spread(name: str = "far") -> Ridges:
    rows = (
        Ridge(name="data", counts=(8, 2), mean=0.2, median=0.1),
        Ridge(name=name, counts=(1, 9), mean=1.2, median=1.3, inside=False),
    )
    return Ridges(title="Entropy by set", x_name="entropy, nats", edges=(0.0, 1.0, 2.0), rows=rows)


def predictive(name: str = "a") -> PredictionSummary:
    scores = (Score(value=0.7, low=0.65, high=0.75), Score(value=0.75, low=0.7, high=0.8))
    return PredictionSummary(
        passes=8,
        examples=100,
        left_out=2,
        scores=ScoreTable(
            predictors=("teacher", "BNN"),
            rows=(
                ScoreRow(name="accuracy", scores=scores, difference=Score(value=0.05, low=-0.01, high=0.11)),
                ScoreRow(name="best temperature", scores=(None, Score(value=1.5))),
            ),
            note="A note.",
        ),
        charts=(reliability(), replace(severity(), title="Risk")),
        ridges=(spread(),),
        errors=30,
        mistakes=(
            Mistake(index=17, image=png(), label=name, predicted="b", confidence=0.98, of_label=0.01, teacher="b"),
            Mistake(index=4, image="", label=name, predicted="c", confidence=0.9, of_label=0.05),
        ),
    )


def run() -> AuditRun:
    checks = (evidence(), replace(evidence("uncertainty.shift"), charts=(severity(), coverage(), pit())))
    return AuditRun(checks=checks, subjects=(replace(subject(images=1, steps=2), prediction_summary=predictive()),))


def section(text: str) -> str:
    found = re.search(r'<section id="predictions">.*?(?=<section id="subjects">)', text, re.DOTALL)
    assert found is not None
    return found[0]


def test_the_section_is_whole_and_needs_no_script() -> None:
    text = render_html(run())
    page = Page(text)
    assert not page.open
    assert "script" not in Page(section(text)).names()
    assert len(page.ids) == len(set(page.ids))
    assert {one[1:] for one in page.references if one.startswith("#")} <= set(page.ids)
    said = Page(section(text)).text
    for words in (
        "100 labelled examples, the mean of 8 passes",
        "2 left out",
        "0.700 (0.650 to 0.750)",
        "+0.0500 (\N{MINUS SIGN}0.0100 to +0.1100)",
        "A note.",
        "A caption.",
        "2 of 30 wrong predictions",
        "98.0",
    ):
        assert words in said, words
    assert "no image" in said


def test_every_chart_has_its_numbers_as_a_table_and_a_text_for_who_cannot_see_it() -> None:
    found = section(render_html(run()))
    figures = re.findall(r'<figure class="plot">.*?</figure>', found, re.DOTALL)
    assert len(figures) == 2 + 1 + 3
    for figure in figures:
        [drawing] = re.findall(r'<svg[^>]*role="img"[^>]*>(.*?)</svg>', figure, re.DOTALL)
        assert re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", drawing)
        assert figure.count("<table>") >= 1
        assert figure.count("<caption>") == figure.count("<table>")
        assert '<th scope="row">' in figure
    assert found.count('role="img"') == len(figures)


def test_tables_hold_what_is_drawn() -> None:
    lines, counts = chart_tables(reliability())[:2], chart_tables(reliability())[2]
    assert [table.heads for table in lines] == [("probability", "teacher"), ("probability", "BNN")]
    assert lines[1].rows == (("0.2", "0.2"), ("0.5", "0.6"), ("1", "0.9"))
    assert counts.rows == (("0 to 0.5", "30"), ("0.5 to 1", "70"))
    [together] = chart_tables(severity())
    assert together.heads == ("severity", "noise", "blur")
    assert together.rows[2] == ("2", "0.3", "0.1")
    [bounded] = chart_tables(coverage())
    assert bounded.rows[0] == ("0.5", "0.45 (0.4 to 0.5)")
    assert chart_tables(pit())[1].rows[1] == ("0.5", "0.3", "0.7")
    table = ridge_table(spread())
    assert table.heads == ("entropy, nats", "data", "far")
    assert table.rows == (
        ("mean", "0.2", "1.2"), ("median", "0.1", "1.3"), ("examples", "10", "10"), ("0 to 1", "8", "1"),
        ("1 to 2", "2", "9"),
    )  # fmt: skip


def test_scores_are_written_with_as_many_decimals_each() -> None:
    assert score(Score(value=0.5, low=0.4, high=0.61234)) == ("0.500", "0.400 to 0.612")
    assert score(Score(value=math.inf)) == ("∞", "")
    assert score(Score(value=-1e-9)) == ("0.000", "")
    assert score(None) == ("\N{EN DASH}", "")
    assert difference(Score(value=-0.00123)) == ("\N{MINUS SIGN}0.0012", "")


def named(name: str) -> AuditRun:
    """A run in which every text of the section is the same."""
    chart = replace(
        reliability(name), title=name, x_name=name, y_name=name, diagonal=name, caption=name,
        counts=ChartCounts(name=name, edges=(0.0, 1.0), counts=(1,)),
        band=ChartBand(name=name, x=(0.0, 1.0), low=(0.0, 0.0), high=(1.0, 1.0)),
    )  # fmt: skip
    found = replace(
        predictive(name),
        charts=(chart, severity(name, name)),
        ridges=(replace(spread(name), title=name, x_name=name, caption=name),),
        scores=ScoreTable(predictors=(name,), rows=(ScoreRow(name=name, scores=(None,)),), note=name),
        mistakes=(Mistake(index=0, image=name, label=name, predicted=name, confidence=1, of_label=0, teacher=name),),
    )
    return AuditRun(subjects=(replace(subject(images=0), prediction_summary=found),))


@pytest.mark.parametrize("name", [HOSTILE, "<b>", "a & b", '"quoted"', "<svg onload=x>"])
def test_names_from_outside_stay_text(name: str) -> None:
    """Classes, corruptions, sets and predictors are called as users call them."""
    page, plain = Page(render_html(named(name))), Page(render_html(named("plain")))
    assert not page.open
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements], "text became an element"
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert " ".join(name.split()) in page.text
    assert all(reference.startswith("#") for reference in page.references)


def test_charts_of_a_check_lead_to_its_evidence_and_back() -> None:
    text = render_html(run())
    assert '<a href="#c2">Evidence of <code>uncertainty.shift</code></a>' in section(text)
    assert '<a href="#c2-charts">3 charts</a>' in text
    assert 'id="c2-charts"' in section(text)
    without = AuditRun(checks=(evidence("uncertainty.shift", verdict=Verdict.WARN),))
    assert 'id="predictions"' not in render_html(without)
    assert "#predictions" not in render_html(without)


def test_charts_of_a_check_are_shown_without_a_described_subject() -> None:
    """As in a test session, where plain assert_* describe none."""
    checks = (replace(evidence(), charts=(severity(),)),)
    assert "Error under growing corruption" in section(render_html(AuditRun(checks=checks)))


def test_what_is_missing_is_said() -> None:
    found = PredictionSummary(passes=8, missing="no labels <b>were</b> given", ridges=(spread(),))
    said = Page(section(render_html(AuditRun(subjects=(replace(subject(), prediction_summary=found),))))).text
    assert "What takes labels is not shown: no labels <b>were</b> given." in said
    assert "Scores" not in said
    assert "Entropy by set" in said


def test_the_page_survives_its_json() -> None:
    assert render_html(AuditRun.from_json(run().to_json())) == render_html(run())


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -3.0])
def test_odd_numbers_and_uneven_lines_break_nothing(odd: float) -> None:
    values = (0.5, odd, 0.7)
    chart = Chart(
        title="t", x_name="x", y_name="y",
        lines=(
            ChartLine(name="a", x=(odd, 1.0, odd), y=values, low=values, high=(odd,)),
            ChartLine(name="b", x=(0.0, 1.0, 2.0), y=values, steps=True),
            ChartLine(name="c", x=(0.0,), y=()),
            ChartLine(name="d", x=(), y=()),
        ),
        band=ChartBand(name="band", x=(0.0, odd), low=values, high=values),
        counts=ChartCounts(name="n", edges=(0.0, odd, 1.0), counts=(0, 3, -1)),
        diagonal="d", x_ends=(0.0, odd), y_ends=(odd, odd),
    )  # fmt: skip
    row = Ridge(name="r", counts=(1, 0, 5), mean=odd, median=odd)
    found = PredictionSummary(
        passes=1, examples=3, charts=(chart, replace(chart, lines=(), band=None, x_ends=None, y_ends=None)),
        ridges=(Ridges(title="t", x_name="x", edges=(odd, 1.0), rows=(row, replace(row, counts=()))),),
        scores=ScoreTable(predictors=("p",), note="",
                          rows=(ScoreRow(name="s", scores=(Score(value=odd, low=odd, high=odd), None)),)),
        mistakes=(Mistake(index=0, image="", label="", predicted="", confidence=odd, of_label=odd),),
    )  # fmt: skip
    page = Page(render_html(AuditRun(subjects=(replace(subject(images=0, steps=0), prediction_summary=found),))))
    assert not page.open
    for _, attributes in page.elements:
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points", "d"):
            assert not re.search(r"(?i)nan|inf", attributes.get(key) or ""), (key, attributes)


def test_no_value_interrupts_a_line_and_steps_hold() -> None:
    broken = Chart(
        title="t", x_name="x", y_name="y", lines=(ChartLine(name="a", x=LEVELS, y=(1.0, math.nan, 2.0, 3.0)),)
    )
    assert curves(broken).count("<polyline") == 2
    [points] = re.findall(r'<polyline points="([^"]+)"', curves(pit()))
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[0] == heights[1] > heights[2] == heights[3] > heights[4], "a value holds up to the next place"


def test_lines_that_are_nobodys_look_different_each() -> None:
    names = "noise", "blur", "contrast", "rotation", "fog", "shift"
    chart = Chart(
        title="t", x_name="x", y_name="y", lines=tuple(ChartLine(name=name, x=LEVELS, y=LEVELS) for name in names)
    )
    looks = [match for key in keys(chart) for match in re.findall(r"k-\d", key.drawing)]
    assert len(set(looks)) == len(names)
    assert [key.name for key in keys(chart)] == list(names)


def test_places_on_the_axes_by_hand() -> None:
    """The corners of a chart from 0 to 1 are those of its field, the middle is half way."""
    line = ChartLine(name="a", whose="model", x=(0.0, 0.5, 1.0), y=(0.0, 0.5, 1.0))
    drawn = curves(Chart(title="t", x_name="x", y_name="y", lines=(line,), x_ends=(0.0, 1.0), y_ends=(0.0, 1.0)))
    [points] = re.findall(r'<polyline points="([^"]+)"', drawn)
    (left, bottom), middle, (right, top) = [tuple(map(float, point.split(","))) for point in points.split()]
    assert middle == pytest.approx(((left + right) / 2, (bottom + top) / 2), abs=0.02)
    assert right > left
    assert top < bottom, "upward is less in SVG"


def test_ridges_are_as_high_as_their_own_largest_bin() -> None:
    drawn = ridges(spread())
    tops = [
        min(float(part) for part in re.findall(r"L[\d.]+ ([\d.]+)", path))
        for path in re.findall(r'd="(M[^"]+Z)"', drawn)
    ]
    rows = [float(part) for part in re.findall(r'd="M[\d.]+ ([\d.]+)L', drawn)]
    heights = [bottom - top for bottom, top in zip(rows, tops, strict=True)]
    assert heights == pytest.approx([30.0, 30.0], abs=0.1)
    assert [look for look, _ in zip(re.findall(r"ridge (inside|outside)", drawn), cycle([0]), strict=False)] == [
        "inside", "outside",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("data", ", those of the data"),
        ("evaluation", "given for evaluation ( --evaluation )"),
        ("", "100 labelled examples,"),
    ],
)
def test_the_section_says_whose_examples_they_are(given: str, said: str) -> None:
    found = replace(predictive(), examples_of=given)  # type: ignore[arg-type]
    record = replace(run().subjects[0], prediction_summary=found)
    text = Page(section(render_html(replace(run(), subjects=(record,))))).text
    assert said in text
    assert ("those" in text.split("the mean of")[0]) == bool(given)


def test_errors_are_counted_with_their_passes() -> None:
    """A check may have looked at fewer passes and counted others."""
    assert "2 of 30 wrong predictions, by the mean of 8 passes" in Page(section(render_html(run()))).text


def test_each_score_says_whose_it_is() -> None:
    """Where the page is narrow the rows are stacked, and the head of the table is not there."""
    assert re.findall(r'data-of="([^"]*)"', section(render_html(run())))[:3] == ["teacher", "BNN", "BNN less teacher"]
