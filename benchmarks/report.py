"""How large a report is, how long it takes to render and to load, and how tall it is.

``python -m benchmarks.report`` renders audits of many subjects that are made up, with layers, notes, predictions and
fine-tuning, and loads them in chromium where that is installed. To write the JSON is no part of rendering, and the
best of three times is shown. ``--out FOLDER`` keeps the pages.
"""

from __future__ import annotations

import argparse
import base64
import math
import struct
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.browser import browser
from pytest_bnn.records.charts import (
    Chart,
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
from pytest_bnn.records.evidence import Certainty, Evidence, LayerFinding, Measurement, Threshold, Verdict
from pytest_bnn.records.run import AuditRun, ClassShare, LayerRow, Prediction, SubjectRecord, TrainingStep
from pytest_bnn.report import render_html

#: Subjects and checks of the audits that are measured.
SIZES = ((2, 28), (8, 28), (40, 25), (100, 10))

#: The layers of a ResNet18.
PATHS = (
    "conv1",
    *(f"layer{stage}.{block}.conv{at}" for stage in (1, 2, 3, 4) for block in (0, 1) for at in (1, 2)),
    *(f"layer{stage}.0.downsample.0" for stage in (2, 3, 4)),
    "fc",
)


def made_up(subjects: int, checks: int, *, failing: int = 9) -> AuditRun:
    """Return an audit of made-up subjects: the same arguments give the same audit.

    Args:
        subjects: How many.
        checks: How many claims about each.
        failing: Every so many pieces of evidence one fails; 0 for none.
    """
    evidence, described, count = [], [], 0
    for subject in range(subjects):
        name = f"network {subject:03}"
        described.append(_subject(name, subject))
        for check in range(checks):
            count += 1
            bad = failing and count % failing == 0
            evidence.append(_evidence(name, check, Verdict.FAIL if bad else _quiet(count)))
    provenance = {"created": "2026-01-01 00:00:00 UTC", "seed": "0", "command": "pytest-bnn audit", "torch": "2"}
    return AuditRun(checks=tuple(evidence), subjects=tuple(described), provenance=provenance)


def _quiet(count: int) -> Verdict:
    return Verdict.WARN if count % 23 == 0 else Verdict.NOT_APPLICABLE if count % 5 == 0 else Verdict.PASS


def _evidence(name: str, check: int, verdict: Verdict) -> Evidence:
    ok = verdict is not Verdict.FAIL
    return Evidence(
        id=f"topic{check % 7}.claim_{check}",
        subject=name,
        stage="converted",
        verdict=verdict,
        claim=f"The claim number {check} about a network, as one sentence that says what is true of a sound model, and "
        "what is outside of it.",
        headline=f"the outputs of {name} vary by 0.0509 of their scale (median of 360 images, 34 passes)",
        measurements=tuple(
            Measurement(name=f"measurement {at}", value=0.1 * at + 0.0123, unit="nats", note="median over images")
            for at in range(6)
        ),
        threshold=Threshold(
            quantity="spread of the outputs", observed=0.05, relation="<=", allowed=1.0, other_end=1e-3
        ),
        layers=tuple(
            LayerFinding(
                path=path,
                kind="Conv2dReparameterization",
                ok=ok or at % 2 == 0,
                finding="alone it makes the outputs vary by 0.0123 of their scale, 12.3 % of the sum of variances",
            )
            for at, path in enumerate(PATHS)
        ),
        remedy="convert with a smaller moped_delta, or train sigma down where the layers below contribute most",
        notes=("A note about the data that were given.", "Another note, about what this verdict rests on."),
        samples=34,
        seconds=0.75,
        sampler="engine (Philox4x32-10, compiled)",
        certainty=Certainty(alpha=1e-7, beta=1e-4, statistic="typical spread of the outputs", low=0.044, high=0.075),
    )


def _subject(name: str, number: int) -> SubjectRecord:
    return SubjectRecord(
        name=name,
        stage="converted",
        model="ResNet",
        teacher="ResNet",
        images=360,
        sha256=f"{number:02x}" * 32,
        layers=tuple(
            LayerRow(
                path=path,
                kind="Conv2d (Reparameterization)",
                shape="64x64x3x3",
                weights=36864 * (1 + at),
                bayesian=path != "fc",
                sigma_over_mu=None if path == "fc" else 0.1 + 0.01 * at,
                kl=None if path == "fc" else 48489.4 * (1 + at),
                accepted="latency budget" if path == "fc" and number % 2 else "",
                noise=None if path == "fc" else (1 + at) / 210,
            )
            for at, path in enumerate(PATHS)
        ),
        predictions=tuple(_prediction(at) for at in range(8)),
        training=tuple(
            TrainingStep(
                step=at + 1, loss=3 / (at + 1), data_term=2 / (at + 1), kl=123.5 - at / 100, gradient_norm=9.0,
                learning_rate=1e-4, top1="7", percent=90.0, trainer="engine (Philox4x32-10, compiled)",
            )
            for at in range(40)
        ),
        prediction_summary=_summary(),
    )  # fmt: skip


def _prediction(at: int) -> Prediction:
    shares = tuple(
        ClassShare(name=f"class {i}", teacher=0.5 / (i + 1), mean=0.4 / (i + 1), low=0.1 / (i + 1), high=0.6 / (i + 1))
        for i in range(5)
    )
    return Prediction(
        index=at, image=_picture(at), label="class 0", passes=34, entropy=1.4, mutual_information=0.1, classes=shares
    )


def _summary() -> PredictionSummary:
    places = tuple(at / 20 for at in range(21))
    line = ChartLine(name="BNN", whose="model", x=places, y=tuple(place**1.2 for place in places))
    score = Score(value=0.71, low=0.65, high=0.77)
    return PredictionSummary(
        passes=8,
        examples=360,
        scores=ScoreTable(
            predictors=("teacher", "one pass", "BNN"),
            rows=tuple(ScoreRow(name=name, scores=(score,) * 3, difference=score) for name in ("accuracy", "Brier")),
            note="95 % intervals by the bootstrap.",
        ),
        charts=(
            Chart(title="Reliability", x_name="probability", y_name="share right", lines=(line,), diagonal="as said",
                  counts=ChartCounts(name="examples", edges=places, counts=(18,) * 20)),
            Chart(title="Risk and coverage", x_name="coverage", y_name="risk", lines=(line,)),
        ),
        ridges=(Ridges(title="Entropy", x_name="nats", edges=places,
                       rows=(Ridge(name="data", counts=(18,) * 20, mean=0.4, median=0.3),)),),
        errors=100,
        mistakes=tuple(
            Mistake(index=at, image=_picture(at), label="7", predicted="9", confidence=0.9, of_label=0.05, teacher="9")
            for at in range(10)
        ),
        examples_of="data",
    )  # fmt: skip


def _picture(seed: int) -> str:
    """Return a PNG of 28 by 28 numbers that do not compress, as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes((seed * 31 + x * x * 7 + y * y * 13 + x * y * 29) % 251 for x in range(28)) for y in range(28)
    )
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")).decode()


def _loaded(page: Path) -> str:
    """Return how long chromium takes until the page is laid out, in seconds, and how tall it is."""
    try:
        with browser() as opened:
            view = opened.new_page(viewport={"width": 1200, "height": 800})
            start = time.perf_counter()
            view.goto(page.as_uri())
            height = view.evaluate("document.documentElement.scrollHeight")
            return f"{time.perf_counter() - start:.2f} s | {height:,} px"
    except RuntimeError as error:
        return f"{error} | "


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder to keep the pages in")
    given = parser.parse_args(arguments)
    render_html(AuditRun())  # which loads the templates
    print("| subjects | checks each | evidences | size | rendered in | loaded in | height |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for subjects, checks in SIZES:
            run = made_up(subjects, checks)
            data = run.to_json()
            seconds = math.inf
            for _ in range(3):
                start = time.perf_counter()
                text = render_html(run, data)
                seconds = min(seconds, time.perf_counter() - start)
            page = folder / f"report-{subjects}x{checks}.html"
            page.write_text(text, encoding="utf-8")
            size = len(text.encode()) / 1e6
            print(
                f"| {subjects} | {checks} | {subjects * checks:,} | {size:.2f} MB | {seconds:.2f} s | {_loaded(page)} |"
            )


if __name__ == "__main__":
    main()
