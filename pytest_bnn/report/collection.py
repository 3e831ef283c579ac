"""The index of many audits: a row each, the worst first, with its figures drawn on one scale a column."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from pytest_bnn.records.collection import Collection
from pytest_bnn.records.evidence import SEVERITY
from pytest_bnn.report import svg, wording
from pytest_bnn.report.policy import policy
from pytest_bnn.report.standing import Standing, word

_WIDTH, _HEIGHT, _MARGIN = 84, 14, 5


def render(collection: Collection) -> str:
    """Return the index as one HTML page; the same collection gives the same bytes."""
    from pytest_bnn.report.html import environment, texts, trusted

    counts = Counter(Standing(row.verdict.value) for row in collection.rows)
    spans = [_span([row.figures[place] for row in collection.rows]) for place in range(len(collection.figures))]
    styles, script = texts(("style.css", "collection.css")), "".join(texts(("script.js",)))
    page = environment().get_template("collection.html.j2")
    return wording.clean(
        page.render(
            collection=collection,
            policy=policy(styles, [script]),
            styles=[trusted(style) for style in styles],
            script=trusted(script),
            counts=wording.in_severity_order(counts),
            rank=SEVERITY.index,
            sentence=sentence(collection),
            spans=spans,
            place=_place,
        )
    )


def sentence(collection: Collection) -> str:
    """Say how the audits ended, in one sentence."""
    counts = Counter(row.verdict for row in collection.rows)
    if not collection.rows:
        return "There is no audit here"
    said = [f"{counts[verdict]:,} {word(verdict)}" for verdict in SEVERITY if counts[verdict]]
    return f"{wording.plural(len(collection.rows), 'audit')}: {', '.join(said)}"


def _span(values: list[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (min(known), max(known)) if known else None


def _place(value: float | None, span: tuple[float, float] | None, name: str, row: str) -> Any:
    """Draw where a figure lies among those of all rows."""
    from markupsafe import Markup

    if value is None or span is None or not math.isfinite(value):
        return ""
    low, high = span
    share = 0.5 if high == low else (value - low) / (high - low)
    middle = _HEIGHT / 2
    drawing = svg.chart(
        svg.element("line", x1=_MARGIN, x2=_WIDTH - _MARGIN, y1=middle, y2=middle, class_="axis"),
        svg.element("circle", cx=_MARGIN + share * (_WIDTH - 2 * _MARGIN), cy=middle, r=3.5, class_="dot"),
        title=f"{name} of {row}",
        description=f"{wording.number(value)}, of all rows between {wording.number(low)} and {wording.number(high)}",
        width=_WIDTH,
        height=_HEIGHT,
        kind="place",
    )
    return Markup(drawing)  # noqa: S704 - svg.py escaped it
