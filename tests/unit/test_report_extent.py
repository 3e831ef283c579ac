"""A large run gives a short page: what is most severe in full, a line for the rest, and where all of it is."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report import made_up
from pytest_bnn.records.evidence import Verdict
from pytest_bnn.records.run import AuditRun
from pytest_bnn.report import render_html
from pytest_bnn.report.extent import _shared
from pytest_bnn.report.files import write_report
from pytest_bnn.report.policy import footer, policy
from tests.unit.test_report import HOSTILE, Page, evidence, hostile_run


@pytest.fixture(scope="module")
def large() -> str:
    return render_html(made_up(40, 25))


@pytest.mark.parametrize(("subjects", "checks"), [(40, 25), (100, 10)])
def test_a_thousand_verdicts_fit_in_two_megabytes(subjects: int, checks: int) -> None:
    run = made_up(subjects, checks)
    assert len(run.checks) == 1000
    text = render_html(run, "the JSON")
    assert len(text.encode()) <= 2_000_000
    page = Page(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert {one[1:] for one in page.references if one.startswith("#")} <= set(page.ids)


def test_when_everything_fails_it_fits_too() -> None:
    run = made_up(40, 25)
    run = replace(run, checks=tuple(replace(check, verdict=Verdict.FAIL) for check in run.checks))
    text = render_html(run, "the JSON")
    assert len(text.encode()) <= 2_000_000
    assert text.count('<article class="card v-fail"') == 20
    assert text.count('<article class="card brief v-fail"') == 980


def test_every_verdict_stands_on_the_short_page_and_a_claim_only_once(large: str) -> None:
    run = made_up(40, 25)
    cards = re.findall(r'<article class="card (?:brief )?v-(\w+)" id="c(\d+)"', large)
    assert {int(number): verdict for verdict, number in cards} == {
        number: check.verdict.value for number, check in enumerate(run.checks, start=1)
    }
    briefs = "".join(re.findall(r'<article class="card brief.*?</article>', large, re.DOTALL))
    assert "The claim number" not in briefs
    assert "A note about the data" not in briefs


def test_the_most_severe_are_in_full(large: str) -> None:
    shown = re.findall(r'<article class="card v-(\w+)"', large)
    assert set(shown) == {"fail"}
    assert len(shown) == 20


def test_a_short_page_says_what_it_leaves_out_and_where_it_is(large: str) -> None:
    text = Page(large).text
    for words in (
        "This page is short, since it holds 1,000 verdicts: 20 of them are shown in full",
        "the JSON of this audit",
        "7 more are in the JSON of this audit",
        "8 predictions: not shown, since there are many subjects",
        "3 charts of reliability and uncertainty: not drawn",
        "the 21 layers one by one are in the JSON",
        "40 recorded steps, loss from 3 to 0.075",
    ):
        assert words in text, words


def test_what_is_deterministic_stays_on_the_map_of_a_short_page(large: str) -> None:
    found = re.findall(r'<table class="layers">.*?</table>', large, re.DOTALL)
    assert len(found) == 40
    assert all(("✕ deterministic" in one) != ("✓ accepted" in one) for one in found)


def test_an_audit_of_two_subjects_is_whole() -> None:
    text = render_html(made_up(2, 28))
    assert "This page is short" not in text
    assert "card brief" not in text
    assert text.count('<figure class="prediction">') == 16
    assert text.count("<code>downsample.0</code>") == 2 * 3


@pytest.mark.parametrize(
    ("sizes", "most", "room", "shown"),
    [
        ([[1] * 8, [1] * 8], 32, 100, [8, 8]),
        ([[1] * 8] * 3, 7, 100, [3, 2, 2]),
        ([[1] * 8, [], [1]], 32, 100, [8, 0, 1]),
        ([[60, 60], [60, 10]], 32, 100, [1, 0]),
        ([], 32, 100, []),
    ],
)
def test_pictures_are_shared_out_evenly(sizes: list[list[int]], most: int, room: int, shown: list[int]) -> None:
    assert _shared(sizes, most, room) == shown


def test_the_policy_names_the_styles_and_the_script_by_their_hashes() -> None:
    """As a browser computes them: SHA-256 of the text between the tags, which CSP asks for in base64."""
    text = render_html(AuditRun(checks=(evidence(),)))
    [told] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    told = told.replace("&#39;", "'")
    parts = dict(part.split(" ", 1) for part in told.split("; "))
    assert parts["default-src"] == "'none'"
    for kind, pattern in (("style-src", r"<style>(.*?)</style>"), ("script-src", r"<script>(.*?)</script>")):
        hashes = [
            base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in re.findall(pattern, text, re.S)
        ]
        assert parts[kind].split() == [f"'sha256-{one}'" for one in hashes]
    assert not re.search(r"<[a-z][^>]* style=", text)
    assert "unsafe" not in policy([""], [""])


def test_the_foot_of_printed_pages_has_title_date_digest_and_page(tmp_path: Path) -> None:
    run = AuditRun(title="Audit of a net", provenance={"created": "2026-01-02 03:04:05 UTC"})
    page, data = write_report(run, tmp_path / "audit.html")
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    [foot] = re.findall(r"<style>(@page .*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)
    for words in ("Audit of a net", "2026-01-02 03:04:05 UTC", digest[:16], "counter(page)", "counter(pages)"):
        assert words in foot
    assert page.read_text(encoding="utf-8") == render_html(run)


@pytest.mark.parametrize(
    "title", [HOSTILE, '"; } body { display: none } a { content: "', "a\\", "\n</style>", "über ∞"]
)
def test_a_title_stays_a_string_of_the_style(title: str) -> None:
    foot = footer(AuditRun(title=title, provenance={"created": title}), "")
    assert foot.count("{") == foot.count("}") == 4
    assert foot.count('"') == 6 + 2
    assert not set(foot) & set("<>&'|`")
    assert foot.isascii()


def test_a_hostile_run_has_the_policy_of_any_other() -> None:
    text = render_html(hostile_run())
    assert text.count("<script>") == 1
    assert text.count("<style>") == 2
