"""The index of many audits: a row each, the worst first, with its figures drawn on one scale a column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

from pytest_bnn.records.collection import KL, SIGMA, Collection, CollectionRow
from pytest_bnn.records.evidence import SEVERITY
from pytest_bnn.records.made_with import differing, of_a_series
from pytest_bnn.report import svg, wording
from pytest_bnn.report.policy import foot, policy
from pytest_bnn.report.scales import Scale, decades, finite, linear_range, logarithmic
from pytest_bnn.report.standing import LOUD, Standing, fared

_WIDTH, _HEIGHT, _MARGIN = 60.0, 12.0, 5.0
_STYLES = ("style.css", "top.css", "map.css", "print.css", "collection.css")
_SCRIPT = "script.js"

#: What a column of figures shows, by the name of the figure.
_MEANINGS: Final[Mapping[str, str]] = {
    "accuracy": "Share of the labelled examples that the mean prediction gets right. Higher is better.",
    "Brier score": "Mean squared distance of the mean prediction from the labels. Lower is better.",
    "NLL (nats)": "Negative log likelihood of the labels under the mean prediction. Lower is better.",
    "temperature": "The temperature that would suit the labels best: 1 where the predictions are calibrated, above 1 "
    "where they are too sure, below 1 where they are not as sure as they may be.",
    "agreement": "Share of the examples on which the mean prediction certainly agrees with the teacher's.",
    "spread": "How far the outputs vary from pass to pass, as a share of their scale without noise.",
    SIGMA: "The median over layers of a weight's posterior "
    "standard deviation over the size of its mean: how wide the posterior is.",
    KL: "Divergence of the posterior from the prior, as a sum over all weights.",
}


def render(collection: Collection) -> str:
    """Return the index as one HTML page; the same collection gives the same bytes."""
    from pytest_bnn.report.html import as_prose, environment, texts, trusted

    counts = Counter(Standing(row.verdict.value) for row in collection.rows)
    columns = range(len(collection.figures))
    styles = ["".join(texts(_STYLES)), foot(collection.title)]
    script = "".join(texts((_SCRIPT,)))
    known = {id for row in collection.rows for id in row.problems}
    return wording.clean(
        environment()
        .get_template("collection.html.j2")
        .render(
            collection=collection,
            policy=policy(styles, [script]),
            styles=[trusted(style) for style in styles],
            script=trusted(script),
            counts=wording.in_severity_order(counts),
            sentence=sentence(collection),
            tone=tone(collection),
            of_row=standing,
            problems=problems,
            rank=SEVERITY.index,
            remarks=remarks(collection),
            unjudged=sum(row.unjudged > 0 for row in collection.rows),
            meanings=[(name, _MEANINGS.get(name, "")) for name in collection.figures],
            alpha=wording.number(collection.alpha, 1),
            prose=partial(as_prose, known),
            scales=[_scale(row.figures[column] for row in collection.rows) for column in columns],
            place=_place,
        )
    )


def sentence(collection: Collection) -> str:
    """Say how the models fared, in one sentence without its full stop."""
    counts = Counter(row.verdict for row in collection.rows)
    total = len(collection.rows)
    if not total:
        return "There is no audit here"
    first, *rest = [(verdict, counts[verdict]) for verdict in SEVERITY if counts[verdict]]
    if not rest:
        how = fared(Standing(first[0].value), total)
        return f"The one model {how}" if total == 1 else f"All {total:,} models {how}"
    said = [f"{count:,} {fared(Standing(verdict.value), count)}" for verdict, count in rest]
    return ", ".join([f"{first[1]:,} of {total:,} models {fared(Standing(first[0].value), first[1])}", *said])


def standing(row: CollectionRow) -> Standing:
    """Say what a row counts as: its verdict, or not judged where something that could be judged was not."""
    of = Standing(row.verdict.value)
    return Standing.NOT_JUDGED if row.unjudged and of not in LOUD else of


def tone(collection: Collection) -> Standing:
    """Return what the index is coloured as: green only where all that could be judged was, and holds."""
    worst = Standing(collection.verdict.value)
    amber = any(row.remarks or standing(row) is Standing.NOT_JUDGED for row in collection.rows)
    amber = amber or bool(differing(filter(of_a_series, collection.rows)))
    return Standing.WARN if amber and worst not in LOUD else worst


def problems(row: CollectionRow) -> list[tuple[str, Standing]]:
    """Return the claims that ask something of the reader, each with what it counts as."""
    known = [Standing(verdict.value) for verdict in row.severities]
    known += [Standing(row.verdict.value)] * (len(row.problems) - len(known))
    return list(zip(row.problems, known, strict=False))


def remarks(collection: Collection) -> list[str]:
    """Return what keeps audits from being all of it, or alike: each sentence once, with how many rows it is about."""
    total = len(collection.rows)
    counts = Counter(words for row in collection.rows for words in dict.fromkeys(row.remarks))
    cut = [
        words if count == total else f"{words} ({count:,} of {wording.plural(total, 'model')})"
        for words, count in counts.items()
    ]
    return [*cut, *differing(collection.rows)]


def _scale(values: Iterable[float | None]) -> Scale | None:
    """Return the axis that holds what is finite of a column, logarithmic where it spans a factor of 100."""
    known = finite(values)
    if not known:
        return None
    if log := logarithmic(known):
        low, high = decades(known)
    else:
        low, high = min(known), max(known)
        low, high = (low, high) if low < high else linear_range(known)
    return Scale(low, high, _MARGIN, _WIDTH - _MARGIN, log=log)


def _place(value: float | None, scale: Scale | None, name: str, row: str) -> Any:
    """Draw where a figure lies among those of all rows."""
    from markupsafe import Markup

    if value is None or scale is None or not math.isfinite(value):
        return ""
    middle = _HEIGHT / 2
    drawing = svg.chart(
        svg.element("line", x1=_MARGIN, x2=_WIDTH - _MARGIN, y1=middle, y2=middle, class_="axis"),
        svg.element("circle", cx=scale(value), cy=middle, r=3.5, class_="dot"),
        title=f"{name} of {row}",
        description=f"{wording.number(value)} on {'a logarithmic' if scale.log else 'an'} axis "
        f"from {wording.number(scale.low)} to {wording.number(scale.high)}",
        width=_WIDTH,
        height=_HEIGHT,
        kind="place",
    )
    return Markup(drawing)  # noqa: S704 - svg.py escaped it
