"""The report shows untrusted text, odd numbers and empty runs without breaking, and always the same way."""

from __future__ import annotations

import base64
import html
import math
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pytest_bnn.records.evidence import Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.records.run import AuditRun, ClassShare, LayerRow, Prediction, SubjectRecord, TrainingStep
from pytest_bnn.report import render_html, render_markdown
from pytest_bnn.report.gauge import gauge
from pytest_bnn.report.svg import element
from pytest_bnn.report.svg import text as svg_text
from pytest_bnn.report.trajectory import Line, line_chart
from pytest_bnn.report.wording import number

HOSTILE = "x</title></style><script>alert(1)</script><img src=http://evil.example/a onerror='b()'>\"&|`[c](http://d)"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a strict reader makes of a page: balance of tags, ids, links, elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute is given twice in {tag}: {attrs}"
        self.elements.append((tag, found))
        self.ids += [value for key, value in attrs if key == "id" and value is not None]
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another element"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def names(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def png(side: int = 32) -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * y) % 251 for x in range(side)) for y in range(side))
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")).decode()


def evidence(id: str = "kl.present", subject: str = "net", verdict: Verdict = Verdict.PASS) -> Evidence:
    return Evidence(
        id=id,
        subject=subject,
        stage="converted",
        verdict=verdict,
        claim=f"Claim of {id}.",
        headline=f"Headline of {id}",
        threshold=Threshold(quantity="difference", observed=3.1e-7, relation="<=", allowed=2e-5, unit="logits"),
        measurements=(Measurement(name="kl", value=11.5, unit="nats", note="of all layers"),),
        layers=(LayerFinding(path="layer1.0.conv1", kind="Conv2d", ok=verdict is Verdict.PASS, finding="a finding"),),
        remedy="Do this.",
        notes=("A note.",),
        seed=7,
    )


def prediction(classes: int = 5, image: str | None = None) -> Prediction:
    shares = tuple(
        ClassShare(name=f"class {i}", teacher=0.9 / (i + 1), mean=0.8 / (i + 1), low=0.1 / (i + 1), high=0.9 / (i + 1))
        for i in range(classes)
    )
    return Prediction(
        index=0, image=image or png(), label="class 0", passes=64, entropy=0.4, mutual_information=0.1, classes=shares
    )


def step(at: int, value: float = 1.5) -> TrainingStep:
    return TrainingStep(
        step=at, loss=value, data_term=value, kl=value, gradient_norm=value, learning_rate=1e-4, top1="3", percent=90.0,
        trainer="engine (<noise>)",
    )  # fmt: skip


def subject(name: str = "net", layers: int = 21, images: int = 8, steps: int = 40) -> SubjectRecord:
    rows = tuple(
        LayerRow(
            path=f"layer{i}.conv", kind="Conv2d", shape="64x3", weights=192, bayesian=True, sigma_over_mu=0.05, kl=9.5
        )
        for i in range(layers)
    )
    return SubjectRecord(
        name=name,
        stage="converted",
        model="resnet18",
        teacher="digits",
        images=360,
        sha256="ab" * 32,
        layers=rows,
        predictions=tuple(prediction() for _ in range(images)),
        training=tuple(step(at, 100 * math.exp(-at / 4)) for at in range(steps)),
    )


def hostile_run() -> AuditRun:
    """A run in which every text that the records allow is hostile."""
    share = ClassShare(name=HOSTILE, teacher=0.5, mean=0.5, low=0.1, high=0.9)
    check = Evidence(
        id=HOSTILE, subject=HOSTILE, stage="converted", verdict=Verdict.FAIL, claim=HOSTILE, headline=HOSTILE,
        measurements=(Measurement(name=HOSTILE, value=HOSTILE, unit=HOSTILE, note=HOSTILE),),
        threshold=Threshold(quantity=HOSTILE, observed=1.0, relation="<=", allowed=0.5, unit=HOSTILE),
        layers=(LayerFinding(path=HOSTILE, kind=HOSTILE, ok=False, finding=HOSTILE),), remedy=HOSTILE, notes=(HOSTILE,),
    )  # fmt: skip
    described = SubjectRecord(
        name=HOSTILE, stage="converted", model=HOSTILE, teacher=HOSTILE, images=1, sha256=HOSTILE,
        layers=(LayerRow(path=HOSTILE, kind=HOSTILE, shape=HOSTILE, weights=1, bayesian=True, sigma_over_mu=0.1),),
        predictions=(Prediction(index=0, image=HOSTILE, label=HOSTILE, passes=2, entropy=0.1, mutual_information=0.1,
                                classes=(share,)),),
        training=(replace(step(0), top1=HOSTILE),),
    )  # fmt: skip
    return AuditRun(checks=(check,), subjects=(described,), provenance={HOSTILE: HOSTILE}, title=HOSTILE)


def test_hostile_text_stays_text_in_html() -> None:
    page = Page(render_html(hostile_run()))
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert not page.open
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert "<script>alert(1)</script>" in page.text, "escaped, it must still be readable"
    assert all(reference.startswith("#") for reference in page.references)


def test_svg_escapes_attributes_and_text() -> None:
    drawn = element("g", svg_text(HOSTILE, 1, 2), class_=HOSTILE)
    page = Page(drawn)
    assert page.elements[0] == ("g", {"class": HOSTILE})
    assert [tag for tag, _ in page.elements] == ["g", "text"]
    assert page.text == HOSTILE


def test_hostile_text_stays_text_in_markdown() -> None:
    text = render_markdown(hostile_run())
    assert "<script" not in text
    assert "<img" not in text
    assert "http://" not in text, "GitHub links a bare address"
    assert not re.search(r"(?<!\\)[`\[\]]", text)
    rows = [line for line in text.splitlines() if line.startswith("| x")]
    assert rows
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) == 3, "a pipe of the run opened a column"


@pytest.mark.parametrize("text", ["a\nb", "a\r\n# b", "a\n| b | c |"])
def test_line_breaks_do_not_leave_their_cell_in_markdown(text: str) -> None:
    run = AuditRun(checks=(replace(evidence(), claim=text, headline=text, verdict=Verdict.FAIL),))
    starts = [line[:3] for line in render_markdown(run).splitlines()]
    assert "# b" not in starts
    assert "| b" not in starts
    assert "b" not in starts


def test_mentions_and_references_do_not_reach_people() -> None:
    text = render_markdown(AuditRun(checks=(evidence(),), title="@someone fixes #12 at www.evil.example"))
    assert "@someone" not in text
    assert "#12" not in text
    assert "www." not in text


def test_control_direction_and_surrogate_characters_become_visible() -> None:
    run = AuditRun(checks=(evidence(),), title="a\x00b\u202ec\ud800d")
    for text in (render_html(run), render_markdown(run)):
        text.encode("utf-8")
        assert not set(text) & {"\x00", "\u202e"}


def test_equal_runs_give_equal_bytes() -> None:
    run = AuditRun(checks=(evidence(),), subjects=(subject(),), provenance={"torch": "2", "python": "3"})
    turned = replace(run, provenance={"python": "3", "torch": "2"})
    assert run == turned
    assert render_html(run, "the JSON") == render_html(turned, "the JSON"), "apart from the digest of the JSON"
    assert render_markdown(run) == render_markdown(turned)


def test_page_survives_its_json() -> None:
    run = AuditRun(checks=(evidence(),), subjects=(subject(steps=3), subject("b")), provenance={"torch": "2"})
    assert render_html(AuditRun.from_json(run.to_json())) == render_html(run)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_page_is_well_formed_and_says_the_verdict(verdict: Verdict) -> None:
    run = AuditRun(checks=(evidence(verdict=verdict), evidence("noise.varies", "other")), subjects=(subject(),))
    page = Page(render_html(run))
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    targets = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert "c1" in targets
    assert targets <= set(page.ids)
    badges = [a for tag, a in page.elements if "badge" in (a.get("class") or "")]
    assert any(f"v-{verdict.value}" in (a["class"] or "") for a in badges)
    assert verdict.value.replace("_", " ") in page.text
    assert verdict.value.replace("_", " ") in render_markdown(run)


def test_charts_have_a_title_and_a_description() -> None:
    text = render_html(AuditRun(checks=(evidence(),), subjects=(subject(),)))
    charts = re.findall(r"<svg[^>]*role=\"img\"[^>]*>(.*?)</svg>", text, re.DOTALL)
    assert len(charts) == 1 + 1 + 8 + 4, "verdicts, gauge, predictions, trajectory"
    assert all(re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", chart) for chart in charts)


def test_page_loads_nothing_from_outside() -> None:
    text = render_html(AuditRun(checks=(evidence(),), subjects=(subject(),)))
    page = Page(text)
    assert page.references
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert not {"link", "iframe", "object"} & page.names()
    assert not [a for tag, a in page.elements if tag == "script" and a]
    assert "url(" not in text
    assert "@import" not in text
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policies[0] or "")
    assert "unsafe" not in (policies[0] or "")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "http://evil.example/a.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,iVBORw0KGgo=" onerror="a()',
        "data:image/png;base64,iVBORw0KGgo=\n",
        "data:image/png;base64,AAAA",
        "data:image/png,iVBORw0KGgo=",
    ],
)
def test_what_is_no_png_is_not_embedded(uri: str) -> None:
    record = replace(subject(), predictions=(replace(prediction(), image=uri),))
    page = Page(render_html(AuditRun(subjects=(record,))))
    assert "img" not in page.names()
    assert "no image" in page.text


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    records = [replace(subject(), predictions=(prediction(image=png(side)),)) for side in (32, 224)]
    looks = []
    for record in records:
        page = Page(render_html(AuditRun(subjects=(record,))))
        looks += [attributes["class"] for tag, attributes in page.elements if tag == "img"]
    assert looks == ["small", ""]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -3.0])
def test_odd_numbers_break_nothing(odd: float) -> None:
    share = ClassShare(name="a", teacher=odd, mean=odd, low=odd, high=odd)
    record = replace(
        subject(steps=0),
        layers=(LayerRow(path="a", kind="b", shape="c", weights=1, bayesian=True, sigma_over_mu=odd, kl=odd),),
        predictions=(replace(prediction(), entropy=odd, mutual_information=odd, classes=(share, share)),),
        training=(step(0), step(1, odd), step(2)),
    )
    check = replace(
        evidence(),
        threshold=Threshold(quantity="q", observed=odd, relation="<=", allowed=1.0),
        measurements=(Measurement(name="m", value=odd),),
        seconds=odd,
    )
    run = AuditRun(checks=(check,), subjects=(record,))
    text = render_html(run)
    page = Page(text)
    for _, attributes in page.elements:
        for key in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points", "d"):
            assert not re.search(r"nan|inf|∞", attributes.get(key) or "", re.IGNORECASE)
    assert number(odd) in page.text
    assert number(odd) in render_markdown(replace(run, checks=(replace(check, verdict=Verdict.FAIL),)))


def test_numbers_read_well() -> None:
    shown = [number(value) for value in (math.nan, math.inf, -math.inf, 0.0, 11173962, 0.03125, 3.1e-7, -2.5, 1.0e9)]
    minus = "\N{MINUS SIGN}"
    assert shown == [
        "NaN", "∞", f"{minus}∞", "0", "11,173,962", "0.03125",
        "3.1\N{MULTIPLICATION SIGN}10⁻⁷", f"{minus}2.5", "1\N{MULTIPLICATION SIGN}10⁹",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (AuditRun(), "No claim was checked"),
        (AuditRun(subjects=(SubjectRecord(name="", stage="unknown", model="", teacher=None, images=0),)), "No layer"),
        (AuditRun(checks=(evidence(),)), "The one claim holds"),
        (AuditRun(checks=(evidence(verdict=Verdict.NOT_APPLICABLE),)), "No claim applies"),
        (AuditRun(subjects=(replace(subject(), predictions=(prediction(0),)),)), "No class was recorded"),
    ],
)
def test_empty_parts_are_said_in_words(run: AuditRun, said: str) -> None:
    page = Page(render_html(run))
    assert not page.open
    assert said in page.text
    assert render_markdown(run).startswith("## ")


def test_the_worst_of_several_tests_stands_for_a_claim() -> None:
    checks = (evidence(), evidence(verdict=Verdict.FAIL), evidence(verdict=Verdict.WARN), evidence("a.b"))
    page = Page(render_html(AuditRun(checks=checks)))
    cells = [a["href"] for tag, a in page.elements if tag == "a" and "badge" in (a.get("class") or "")]
    assert cells == ["#c2", "#c4"]
    assert "1 of 2 claims failed" in page.text
    assert "worst of 3" in page.text
    order = [a["id"] for tag, a in page.elements if tag == "article"]
    assert order == ["c2", "c3", "c1", "c4"], "failures come first, then the order they were given in"


def test_the_verdict_lists_what_asks_something_of_the_reader_the_worst_first() -> None:
    checks = tuple(evidence(f"a.{verdict.value}", verdict=verdict) for verdict in Verdict)
    listed = re.search(r'<ol class="loud">.*?</ol>', render_html(AuditRun(checks=checks)), re.DOTALL)
    assert listed is not None
    linked = re.findall(r'title="([a-z ]+)">.</span> <a href="#(c\d+)"><code>(a\.[a-z]+)<', listed[0])
    numbers = {check.id: f"c{index}" for index, check in enumerate(checks, start=1)}
    assert linked == [
        (verdict, numbers[f"a.{verdict}"], f"a.{verdict}") for verdict in ("error", "fail", "inconclusive", "warn")
    ]


def test_subjects_of_one_name_and_two_stages_stay_apart() -> None:
    later = replace(evidence(verdict=Verdict.FAIL), stage="finetuned")
    text = Page(render_html(AuditRun(checks=(evidence(), later)))).text
    assert "1 of 2 claims failed" in text
    assert "2 subjects" in text


def test_many_offenders_are_folded() -> None:
    layers = tuple(LayerFinding(path=f"l{i}", kind="Conv2d", ok=i < 3, finding="f") for i in range(160))
    text = render_html(AuditRun(checks=(replace(evidence(verdict=Verdict.FAIL), layers=layers),)))
    assert "148 more layers" in text, "145 offenders and the 3 that are fine"
    assert text.index("<code>l3</code>") < text.index("more layers") < text.index("<code>l0</code>")


def test_two_subjects_fit_in_a_megabyte() -> None:
    checks = tuple(evidence(f"check.{i}", name) for i in range(7) for name in ("net", "b"))
    text = render_html(AuditRun(checks=checks, subjects=(subject(), subject("b"))))
    assert 50_000 < len(text.encode()) < 1_000_000


def test_hundreds_of_checks_long_paths_and_many_classes_render() -> None:
    checks = tuple(evidence(f"check.{i}") for i in range(400))
    path = "encoder." * 60 + "conv"
    big = replace(subject(layers=160), predictions=(prediction(1000),))
    big = replace(big, layers=(*big.layers, replace(big.layers[0], path=path)))
    page = Page(render_html(AuditRun(checks=checks, subjects=(big,))))
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert path in page.text
    assert page.names() >= {"details", "article"}
    assert len(render_markdown(AuditRun(checks=checks)).encode()) < 1_000_000


def test_colors_of_text_have_enough_contrast() -> None:
    styles = re.search(r"<style>(.*?)</style>", render_html(AuditRun()), re.DOTALL)
    assert styles is not None
    schemes = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in styles[1].split("@media")[:2]]
    assert len(schemes) == 2
    pairs = [("ink", "page"), ("ink", "surface"), ("muted", "page"), ("muted", "surface"), ("muted", "sunken"),
             ("link", "surface"), ("link", "page"), ("fail", "surface"), ("pass", "surface")]  # fmt: skip
    pairs += [(name, f"{name}-bg") for name in ("pass", "warn", "fail", "error", "inconclusive", "na")]
    for scheme in schemes:
        for front, back in pairs:
            assert contrast(scheme[front], scheme[back]) >= 4.5, (front, back)


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_importing_the_report_is_cheap() -> None:
    code = "import sys, pytest_bnn.report; print(sorted({'torch', 'numpy', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fine_tuning_says_what_computed_it() -> None:
    """Escaped, in the page and in the summary; older audits do not know it."""
    known = AuditRun(subjects=(subject(),))
    assert "Trained by engine (&lt;noise&gt;)." in render_html(known)
    assert "Fine-tuning of net: engine (&lt;noise&gt;)" in render_markdown(known)
    steps = tuple(replace(step, trainer="") for step in subject().training)
    older = AuditRun(subjects=(replace(subject(), training=steps),))
    assert "Trained by" not in render_html(older)
    assert "Fine-tuning of" not in render_markdown(older)


def test_the_axis_of_a_quantity_of_none_begins_at_none() -> None:
    """Nothing observed and nothing allowed: no bar, and no negative numbers on the way to it."""
    drawn = gauge(Threshold(quantity="difference", observed=0.0, relation="==", allowed=0.0))
    assert "\N{MINUS SIGN}" not in drawn
    assert re.search(r'<rect[^>]*width="0(\.0)?"[^>]*class="observed"', drawn), drawn


@pytest.mark.parametrize("values", [(120.522163, 120.522171), (1e-9, 2e-9), (55_000_000.0, 55_000_100.0), (0.0, 1.0)])
def test_labels_of_an_axis_are_not_cut(values: tuple[float, float]) -> None:
    """A KL that hardly moves has long labels: they begin inside of the chart, at 6 units a character."""
    page = line_chart([0, 1], [Line("KL", values)], "nats", "KL")
    ends = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end"[^>]*class="tick-text"[^>]*>([^<]*)</text>', page)
    assert ends
    for x, label in ends:
        assert float(x) - 6.0 * len(html.unescape(label)) >= 0, label
