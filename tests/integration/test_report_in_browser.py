"""The page in a real browser: narrow, dark, without scripts, under its own content security policy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from pytest_bnn.records.collection import collect
from pytest_bnn.records.compare import compare
from pytest_bnn.records.evidence import Acceptance, Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.records.run import (
    AuditRun,
    Change,
    ClassShare,
    FileDigest,
    LayerRow,
    Prediction,
    SessionRecord,
    SubjectRecord,
    TestOutcome,
    TrainingStep,
)
from pytest_bnn.report import collection, comparison, render_html

WHEN = "runs where Debian's chromium and playwright are installed, as in .ci/run"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync"]  # fmt: skip
OPEN = "document.querySelectorAll('details').forEach(part => part.open = true)"
# One white pixel.
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg=="
)


def predictions() -> PredictionSummary:
    """Names as long as no page is wide."""
    name = "a name that is long, and longer " * 3
    wide = "W" * 80
    chart = Chart(
        title=name,
        x_name=name,
        y_name=name,
        caption=wide,
        lines=tuple(ChartLine(name=wide, x=(0.0, 1.0), y=(0.1, index / 9)) for index in range(8)),
        band=ChartBand(name=wide, x=(0.0, 1.0), low=(0.0, 0.1), high=(0.5, 1.0)),
        counts=ChartCounts(name=name, edges=(0.0, 0.5, 1.0), counts=(3, 9)),
        diagonal=wide,
    )
    row = ScoreRow(name=name, scores=(Score(value=0.5, low=0.4, high=0.6),) * 4, difference=Score(value=0.1))
    mistake = Mistake(index=3, image=PNG, label=wide, predicted=name, confidence=0.9, of_label=0.1, teacher=wide)
    return PredictionSummary(
        passes=8,
        examples=12,
        errors=3,
        scores=ScoreTable(predictors=(name, "one pass", wide, "BNN"), rows=(row, row), note=wide),
        charts=(chart, replace(chart, title=f"{name} again")),
        ridges=(
            Ridges(
                title=wide,
                x_name=name,
                edges=(0.0, 1.0, 2.0),
                rows=(Ridge(name=wide, counts=(1, 2), mean=1, median=1),),
            ),
        ),
        mistakes=(mistake,) * 3,
    )


def sample() -> AuditRun:
    path = "encoder.blocks." * 20 + "conv"
    checks = tuple(
        Evidence(
            id=f"family.check_{verdict.value}",
            subject=name,
            stage="converted",
            verdict=verdict,
            claim="A claim that takes a whole sentence to say.",
            headline="W" * 90,
            threshold=Threshold(quantity="q" * 60, observed=0.2, relation=">=", allowed=0.9, unit="nats"),
            measurements=(Measurement(name="m" * 60, value=1.5, unit="nats", note="n" * 90),),
            layers=(LayerFinding(path=path, kind="Conv2dReparameterization", ok=False, finding="a finding"),),
            remedy="Do this.",
        )
        for name in ("first", "second" * 12)
        for verdict in Verdict
    )
    share = ClassShare(name="a class with a long name, and another name for it", teacher=0.9, mean=0.8, low=0.1, high=1)
    subject = SubjectRecord(
        name="first",
        stage="converted",
        model="m" * 200,
        teacher="t",
        images=1,
        sha256="ab" * 32,
        layers=(LayerRow(path=path, kind="Conv2d", shape="64x3", weights=9, bayesian=True, sigma_over_mu=0.1, kl=1.0),),
        predictions=(
            Prediction(
                index=0, image=PNG, label="7", passes=3, entropy=0.1, mutual_information=0.01, classes=(share,) * 5
            ),
        ),
        training=tuple(
            TrainingStep(
                step=i, loss=1.0, data_term=0.5, kl=9.0, gradient_norm=2.0, learning_rate=0.1, top1="7", percent=80.0
            )
            for i in range(20)
        ),
        prediction_summary=predictions(),
    )
    return AuditRun(checks=checks, subjects=(subject,), provenance={"command": "x" * 300})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip(WHEN)
    playwright = pytest.importorskip("playwright.sync_api", reason=WHEN)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    file = tmp_path / "audit.html"
    file.write_text(render_html(sample()), encoding="utf-8")
    return file.as_uri()


@pytest.fixture
def many(tmp_path: Path) -> str:
    """Five subjects, all that stands at the top, and names without a place to break."""
    sampled = sample()
    subjects = tuple(
        replace(
            sampled.subjects[0],
            name=name,
            data_sha256="cd" * 32,
            sources={"model": "m" * 90},
            files=(FileDigest(path="w" * 90, sha256="ef" * 32, bytes=9),),
        )
        for name in ("first", "second" * 12, "third", "fourth", "fifth")
    )
    checks = tuple(
        replace(check, subject=subject.name, accepted=(Acceptance(path="a" * 90, reason="r" * 90),))
        for subject in subjects
        for check in sampled.checks[: len(Verdict)]
    )
    left_out = replace(checks[-1], id="a.b", verdict=Verdict.NOT_APPLICABLE, missing=("loss", "x" * 90))
    run = replace(
        sampled,
        checks=(*checks, left_out),
        subjects=subjects,
        changed=(Change(name="n" * 90, value="v" * 90, default="d" * 90, source="s" * 90, tests=("t" * 90,)),),
        cut=("c" * 90,),
        session=SessionRecord(
            exit_status=1, total=2, tests=(TestOutcome(test="t" * 90, outcome="failed", reason="r" * 90),)
        ),
        provenance={"machine": "m" * 90, "commit": "c" * 90},
    )
    file = tmp_path / "many.html"
    file.write_text(render_html(run), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_matrix_of_many_subjects_keeps_their_names_and_verdicts_in_sight(
    browser: Any, many: str, width: int
) -> None:
    """Scrolled to its end, with a mark for each claim that a finger can touch."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(many)
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelector('#claims .scroll').scrollLeft = 10000")
    for cell in ("th.who", "td.overall"):
        box = page.locator(f".by-subject tbody {cell}").first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    marks = page.locator(".by-subject a.sign")
    assert marks.count() == 5 * len(Verdict) + 1
    size = marks.first.bounding_box()
    assert min(size["width"], size["height"]) >= 24
    page.close()


def test_the_first_screen_answers_what_a_reviewer_asks(browser: Any, address: str) -> None:
    """Does it hold, what is not judged, accepted, loosened, how good is it, and which one is it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    for part in (".banner .sentence", "#unjudged-h", "#accepted-h", "#changed-h", "#quality-h"):
        box = page.locator(part).bounding_box()
        assert box["y"] + box["height"] <= 900, part
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_never_scrolls_sideways(browser: Any, address: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_browser_has_nothing_to_complain_about_and_loads_nothing(browser: Any, address: str) -> None:
    page = browser.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [address]
    page.evaluate(OPEN)
    assert page.evaluate("document.querySelector('img').naturalWidth") == 1, "the policy must let pictures in"
    page.close()


def test_everything_shows_without_scripts(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    for part in ("#claims", "#evidence", "#predictions", "#subjects", "#provenance"):
        assert page.locator(part).is_visible()
    cards = page.locator("article")
    assert cards.count() == 2 * len(Verdict)
    assert all(cards.nth(index).is_visible() for index in range(cards.count()))
    assert page.locator("svg[role=img]").count() > 2 * len(Verdict)
    page.locator("details:not([open]) summary").first.click()
    assert page.locator(".tools, .copy, .sort").count() == 0, "what scripts add is there with scripts only"
    page.locator("#predictions details.subject > summary").first.click()
    numbers = page.locator("#predictions figure").first.locator("details")
    assert not numbers.locator("table").first.is_visible()
    numbers.locator("summary").click()
    assert numbers.locator("table").first.is_visible()
    context.close()


def test_dark_scheme_changes_the_background_and_print_does_not(browser: Any, address: str) -> None:
    page = browser.new_page(color_scheme="light")
    page.goto(address)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="dark", media="print")
    printed = page.evaluate(background)
    assert light != dark
    assert printed == "rgb(255, 255, 255)"
    page.close()


VISIBLE = "[...document.querySelectorAll('article.card')].filter(card => card.checkVisibility()).map(card => card.id)"


def test_filters_and_search_show_what_was_asked_for(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address)
    cards = page.evaluate(VISIBLE)
    assert len(cards) == 2 * len(Verdict)
    for box in page.locator(".tools input[type=checkbox]").all():
        if box.get_attribute("value") != "fail":
            box.uncheck()
    assert page.locator(".tools output").text_content() == "2 of 12 shown"
    assert page.evaluate("document.querySelectorAll('article.card.v-fail:not([hidden])').length") == 2
    page.locator(".tools select").select_option(index=1)
    assert len(page.evaluate(VISIBLE)) == 1
    page.locator(".tools input[type=search]").fill("NO SUCH WORDS")
    assert page.evaluate(VISIBLE) == []
    page.locator(".tools input[type=search]").fill("check_FAIL claim")
    assert len(page.evaluate(VISIBLE)) == 1
    hidden = next(card for card in cards if card not in page.evaluate(VISIBLE))
    page.evaluate(f"location.hash = '{hidden}'")
    page.wait_for_function(f"document.getElementById('{hidden}').checkVisibility()")
    page.close()


def test_a_link_to_a_card_can_be_copied(browser: Any, address: str) -> None:
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address)
    page.locator("#c3 .copy").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#c3 .copy').textContent != 'Copy link'")
    assert page.evaluate("navigator.clipboard.readText()") == f"{address}#c3"
    context.close()


def test_tables_can_be_sorted_and_put_back(browser: Any, tmp_path: Path) -> None:
    sizes = {"a.one": 900, "a.two": 12_000, "b": 50, "c.one": 1_000_000}
    layers = tuple(
        LayerRow(
            path=path, kind="Linear", shape="2x2", weights=size, bayesian=True, sigma_over_mu=10.0 ** -(at % 3 * 5)
        )
        for at, (path, size) in enumerate(sizes.items())
    )
    record = SubjectRecord(name="net", stage="converted", model="m", teacher=None, images=0, layers=layers)
    file = tmp_path / "audit.html"
    file.write_text(render_html(AuditRun(subjects=(record,))), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate(OPEN)
    names = "rows => rows.filter(one => one.checkVisibility()).map(one => one.textContent)"
    before = page.locator(".layers tbody th").evaluate_all(names)
    assert before == ["a", "one", "two", "b", "c.one"]
    weights = page.locator(".layers thead th", has_text="Weights")
    weights.locator("button").click()
    assert page.locator(".layers tbody th").evaluate_all(names) == ["b", "one", "two", "c.one"]
    assert weights.get_attribute("aria-sort") == "ascending"
    weights.locator("button").click()
    assert page.locator(".layers tbody th").evaluate_all(names) == ["c.one", "two", "one", "b"]
    weights.locator("button").click()
    assert page.locator(".layers tbody th").evaluate_all(names) == before
    assert weights.get_attribute("aria-sort") is None
    page.locator(".layers thead th", has_text="|\u03bc|/\u03c3").locator("button").click()
    assert page.locator(".layers tbody th").evaluate_all(names)[-1] == "b", "1 and 1 and 10^5 and 10^10"
    page.close()


def test_a_table_of_scores_is_stacked_where_the_page_is_narrow(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 800})
    page.goto(address)
    page.evaluate(OPEN)
    table = page.locator("table.scores").first
    assert table.evaluate("table => table.scrollWidth <= table.closest('.scroll').clientWidth")
    assert table.evaluate("table => getComputedStyle(table.querySelector('td'), '::before').content") != '""'
    page.close()


@pytest.mark.nightly("axe takes seconds a page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("which", ["one", "many", "folded", "index", "compared"])
def test_axe_finds_nothing_that_keeps_people_out(
    browser: Any, address: str, many: str, tmp_path: Path, which: str, width: int, scheme: str
) -> None:
    """Names, roles, contrast and order, by the rules of WCAG 2.2 AA and axe's own advice."""
    reason = "runs where axe-playwright-python is installed too, as with the dependency group test"
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason)
    before = sample()
    if which in ("index", "compared"):
        now = replace(before, checks=tuple(replace(check, verdict=Verdict.PASS) for check in before.checks[1:]))
        text = (
            collection.render(collect((f"{at}.json", "", run) for at, run in enumerate((before, now))))
            if which == "index"
            else comparison.html(compare(before, now), before, now)
        )
        (tmp_path / "other.html").write_text(text, encoding="utf-8")
    # The page's own policy lets no other script run.
    context = browser.new_context(bypass_csp=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto({"one": address, "folded": address, "many": many}.get(which) or (tmp_path / "other.html").as_uri())
    if which != "folded":
        page.evaluate(OPEN)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == []
    context.close()


def wide(names: int) -> AuditRun:
    checks = tuple(
        Evidence(
            id=f"topic.check_{number}",
            subject=f"a network of some name {subject}",
            stage="converted",
            verdict=Verdict.PASS,
            claim="A claim that takes a whole sentence to say.",
            headline="it holds",
            measurements=tuple(Measurement(name="what was measured", value=0.123, note="n" * 60) for _ in range(3)),
        )
        for subject in range(names)
        for number in range(6)
    )
    layers = tuple(
        LayerRow(
            path=f"encoder.layers.{at}.attention.output.projection", kind="Conv2d (Reparameterization)",
            shape="512x512x3x3", weights=2_359_296, bayesian=True, sigma_over_mu=0.1, kl=1.489e7, noise=0.05,
        )
        for at in range(4)
    )  # fmt: skip
    records = tuple(
        SubjectRecord(
            name=f"a network of some name {subject}", stage="converted", model="m", teacher=None, images=0,
            layers=layers, prediction_summary=predictions() if subject == 0 else None,
        )
        for subject in range(names)
    )  # fmt: skip
    return AuditRun(checks=checks, subjects=records)


def test_print_has_what_a_reviewer_signs_and_says_what_it_leaves_out(browser: Any, tmp_path: Path) -> None:
    """Failures are printed with their evidence, what holds as a line each, and the rest where it is asked for."""
    file = tmp_path / "audit.html"
    sampled = sample()
    file.write_text(render_html(sampled), encoding="utf-8")
    pages = {}
    for query in ("", "?print=all"):
        page = browser.new_page()
        page.goto(file.as_uri() + query)
        assert page.locator("#print-all").is_checked() == bool(query)
        assert not page.locator(".print-note").is_visible(), "it is about what is printed"
        page.emulate_media(media="print")
        shown = "parts => parts.map(one => one.checkVisibility({contentVisibilityAuto: true}))"
        assert all(
            page.locator(".card header, .card > details > summary, .panel h2, .banner, table.matrix").evaluate_all(
                shown
            )
        )
        assert all(page.locator(".card.v-fail .measurements, .card.v-fail .findings").evaluate_all(shown))
        for rest in (".card.v-pass .measurements", "#predictions figure", "#subjects figure", ".glossary"):
            assert set(page.locator(rest).evaluate_all(shown)) == {bool(query)}, rest
        assert page.locator(".print-note").is_visible() != bool(query)
        assert not page.locator(".print-all").is_visible()
        pages[query] = page.pdf(format="A4").count(b"/Type /Page\n")
        page.close()
    assert pages[""] < pages["?print=all"] / 2


def test_what_is_folded_says_what_is_in_it_and_a_link_opens_it(browser: Any, address: str) -> None:
    """The first look ends at the evidence; layers and predictions are a line each."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    (layers,) = page.locator("#subjects summary .gist").all_text_contents()
    assert layers == "1 of 1 layer Bayesian, 9 weights; 1 prediction drawn; 20 steps of fine-tuning"
    (predictions,) = page.locator("#predictions summary .gist").all_text_contents()
    assert predictions == "12 labelled examples, 3 of them wrong; 3 charts"
    assert not page.locator("#subjects figure").first.is_visible()
    page.locator("#s1-evidence .jump").click()
    page.wait_for_function("document.querySelector('#subjects figure').checkVisibility()")
    page.close()


def test_the_table_of_quality_has_every_score_on_a_narrow_page(browser: Any, tmp_path: Path) -> None:
    """The temperature too, which was cut at the edge; with one subject, and with a line for each of many."""
    table = ScoreTable(
        note="",
        predictors=("BNN", "teacher"),
        rows=tuple(
            ScoreRow(name=name, scores=(Score(value=0.5, low=0.4, high=0.6), Score(value=1.5)))
            for name in ("accuracy", "Brier score", "negative log likelihood (nats)", "best temperature")
        ),
    )
    scored = replace(predictions(), scores=table)
    for count in (1, 3):
        records = tuple(
            SubjectRecord(
                name=f"net {at}", stage="converted", model="m", teacher="t", images=9, prediction_summary=scored
            )
            for at in range(count)
        )
        file = tmp_path / f"{count}.html"
        file.write_text(render_html(AuditRun(subjects=records)), encoding="utf-8")
        page = browser.new_page(viewport={"width": 380, "height": 800})
        page.goto(file.as_uri())
        cells = page.locator(".quality tbody td", has_text="1.5" if count == 1 else "0.5").all()
        assert len(cells) >= 4
        for cell in cells:
            box = cell.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 380
        labels = page.locator(".quality tbody td").evaluate_all("all => all.map(one => one.dataset.of)")
        assert set(labels) == {"Accuracy", "Brier score", "NLL (nats)", "Temperature"}
        page.close()


def test_notes_of_measurements_are_whole_on_a_narrow_page(browser: Any, tmp_path: Path) -> None:
    """They were in a column that was cut at the edge: each stands below what it is about."""
    note = "how the number was found, in as many words as it takes to say it"
    numbers = (
        Measurement(name="a long name of what was measured", value=0.123, unit="nats", note=note),
        Measurement(name="some numbers", value=12_345_678.25, note=note),
        Measurement(name="none", value="a value in words"),
    )
    check = Evidence(id="topic.it", subject="net", stage="converted", verdict=Verdict.FAIL, claim="A claim.",
                     headline="it fails", measurements=numbers)  # fmt: skip
    file = tmp_path / "notes.html"
    file.write_text(render_html(AuditRun(checks=(check,))), encoding="utf-8")
    page = browser.new_page(viewport={"width": 380, "height": 800})
    page.goto(file.as_uri())
    page.evaluate(OPEN)
    cells = page.locator(".measurements tbody tr > *")
    edges = cells.evaluate_all("all => all.map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])")
    card = page.locator(".measurements").evaluate("one => one.closest('.scroll').getBoundingClientRect().right")
    assert len(edges) == 12
    assert all(left >= 0 and right <= card + 1 for left, right in edges)
    notes = page.locator(".measurements td.note").all()
    assert notes[0].bounding_box()["y"] > page.locator(".measurements td.n").first.bounding_box()["y"]
    page.close()


def test_print_has_what_a_filter_hides_on_the_screen(browser: Any, address: str) -> None:
    """The filter is not printed, so that nobody could see that evidence of a failure is left out."""
    page = browser.new_page()
    page.goto(address)
    page.locator(".tools input[type=search]").fill("NO SUCH WORDS")
    cards = page.locator("#evidence .card")
    seen = "cards => cards.map(one => one.checkVisibility())"
    assert not any(cards.evaluate_all(seen))
    page.emulate_media(media="print")
    assert all(cards.evaluate_all(seen))
    page.close()


def test_printed_provenance_keeps_its_names_in_one_piece(browser: Any, address: str) -> None:
    """Beside a long command each name was as narrow as a letter, and the table as long as two pages."""
    page = browser.new_page(viewport={"width": 703, "height": 1000})
    page.goto(address)
    page.locator(".provenance td").first.evaluate(
        "cell => { cell.textContent = '--model my_net:bayesian '.repeat(30); }"
    )
    page.emulate_media(media="print")
    names = page.locator(".provenance th").evaluate_all(
        "names => names.map(one => [one.textContent.trim(), one.getBoundingClientRect().width])"
    )
    assert names
    assert all(width > 60 for name, width in names if len(name) > 4), names
    page.close()


def test_print_is_no_wider_than_the_paper_and_opens_what_is_closed(browser: Any, tmp_path: Path) -> None:
    """186 mm between the margins of A4, which are 703 px; without scripts, since styles alone print all of it."""
    file = tmp_path / "audit.html"
    file.write_text(render_html(wide(8)), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False, viewport={"width": 703, "height": 1000})
    page = context.new_page()
    page.goto(file.as_uri())
    closed = page.locator("details:not([open]) table")
    count = closed.count()
    assert count > 8
    heights = "tables => tables.map(one => one.checkVisibility({contentVisibilityAuto: true}) ? one.offsetHeight : 0)"
    assert max(closed.evaluate_all(heights)) == 0
    page.check("#print-all")
    page.emulate_media(media="print")
    assert min(closed.evaluate_all(heights)) > 0
    assert page.locator("details.numbers table").first.is_visible()
    too_wide = "tables => tables.filter(one => one.getBoundingClientRect().right > 703.5).map(one => one.className)"
    assert page.locator("table").evaluate_all(too_wide) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")
    context.close()


def _line(size: float, change: float) -> Chart:
    line = ChartLine(name="l", x=(-size, size), y=(size, size * (1 + change)))
    return Chart(title="t", x_name="x", y_name="y", lines=(line,))


def test_nothing_of_a_drawing_is_cut(browser: Any, tmp_path: Path) -> None:
    """Text of all charts lies in them, for numbers of any size: labels were cut at the edges."""
    sizes = (98_489.47, 0.07808, 123.520163, 6.897e7, 3e21, 1e-9)
    places = [(size, factor / 40) for size in (7.808,) for factor in range(0, 46, 4)]
    places += [(size, factor) for size in sizes for factor in (1e-4, -1.0)]
    checks = tuple(
        Evidence(
            id=f"a.b{at}",
            subject="net",
            stage="converted",
            verdict=Verdict.PASS,
            claim="c",
            headline="h",
            threshold=Threshold(
                quantity="spread of the outputs",
                observed=size * factor * 0.99971,
                relation="<=",
                allowed=size,
                unit="of the scale",
            ),
        )
        for at, (size, factor) in enumerate(places)
    )
    records = tuple(
        SubjectRecord(
            name=f"net {size}, {change}",
            stage="finetuned",
            model="m",
            teacher=None,
            images=0,
            training=tuple(
                TrainingStep(
                    step=at,
                    loss=size * at,
                    data_term=-size,
                    kl=size * (1 + change * at),
                    gradient_norm=size * 10**at,
                    learning_rate=0.1,
                    top1="7",
                    percent=80.0,
                )
                for at in range(4)
            ),
            prediction_summary=PredictionSummary(passes=2, charts=(_line(size, change),)),
        )
        for size in sizes
        for change in (1e-6,)
    )[:3]
    file = tmp_path / "audit.html"
    file.write_text(render_html(AuditRun(checks=checks, subjects=records)), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())
    page.evaluate(OPEN)
    cut = page.evaluate("""() => [...document.querySelectorAll('svg.chart text')].filter(text => {
        const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
        const ends = [box.x, box.y, view.width - box.x - box.width, view.height - box.y - box.height];
        return Math.min(...ends) < -0.5;
    }).map(text => text.ownerSVGElement.getAttribute('class') + ': ' + text.textContent)""")
    assert page.locator("svg.chart text").count() > 150
    assert cut == []
    page.close()


def test_the_index_of_many_models_is_sorted_by_severity_and_fits(browser: Any, tmp_path: Path) -> None:
    """Its verdicts are no words to sort by; a narrow page stacks what a wide one puts side by side."""
    verdicts = {"hold": Verdict.PASS, "break": Verdict.ERROR, "doubt": Verdict.INCONCLUSIVE, "fall": Verdict.FAIL}
    spread = Threshold(quantity="spread of the outputs", observed=0.5, relation="<=", allowed=1.0)
    runs = [
        AuditRun(
            checks=(
                Evidence(id="noise.spread", subject=name, stage="converted", verdict=verdict, claim="c", headline="h",
                         threshold=spread),
            )
        )
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    file = tmp_path / "index.html"
    file.write_text(
        collection.render(collect((f"{at}.json", "", run) for at, run in enumerate(runs))), encoding="utf-8"
    )
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    names = "rows => rows.map(one => one.querySelector('bdi').textContent)"
    rows = page.locator(".collection tbody th")
    assert rows.evaluate_all(names) == ["break", "fall", "doubt", "hold"]
    verdict = page.locator(".collection thead th", has_text="Verdict").locator("button")
    verdict.click()
    assert rows.evaluate_all(names) == ["break", "fall", "doubt", "hold"]
    verdict.click()
    assert rows.evaluate_all(names) == ["hold", "doubt", "fall", "break"]
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for cell in page.locator(".collection tbody td").all():
            box = cell.bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= width
    assert not said
    page.close()
