"""The report's small charts: the verdict bar, and a predictive distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pytest_bnn.records.run import ClassShare
from pytest_bnn.report.scales import Scale
from pytest_bnn.report.standing import ORDER, Standing, word
from pytest_bnn.report.svg import chart, element, shorten, text, tick_texts, titled
from pytest_bnn.report.wording import interval, percent

_CLASSES_SHOWN = 10


def verdict_bar(counts: Mapping[Standing, int]) -> str:
    """Return one bar, divided as the verdicts are."""
    total = sum(counts.values())
    if not total:
        return ""
    width, left, parts = 600.0, 0.0, []
    for verdict in ORDER:
        count = counts.get(verdict, 0)
        if count:
            share = width * count / total
            parts.append(
                titled(
                    "rect",
                    f"{count:,} {word(verdict)}",
                    x=round(left, 2),
                    y=0,
                    width=round(max(1.0, share - 2), 2),
                    height=8,
                    rx=2,
                    class_=f"v-{verdict.value}",
                )
            )
            left += share
    told = ", ".join(f"{counts[verdict]:,} {word(verdict)}" for verdict in ORDER if counts.get(verdict))
    return chart(
        *parts, title="Verdicts", description=told, width=width, height=8, kind="verdicts", preserveAspectRatio="none"
    )


def distribution(classes: tuple[ClassShare, ...], leader: str | None) -> str:
    """Return a predictive distribution: bars for the BNN's mean, whiskers for 5-95 %, diamonds for the teacher."""
    shown = classes[:_CLASSES_SHOWN]
    if not shown:
        return ""
    scale = Scale(0.0, 1.0, 8.0, 312.0)
    bottom = 34.0 * len(shown) + 4
    parts = [
        element("line", x1=scale(share / 4), x2=scale(share / 4), y1=4, y2=bottom, class_="grid") for share in range(5)
    ]
    for index, entry in enumerate(shown):
        y = 34.0 * index
        name = "name leader" if entry.name == leader else "name"
        parts.append(
            element(
                "g",
                element("title", _escaped(_told(entry))),
                text(shorten(entry.name, 28), 8, y + 15, class_=name),
                text(percent(entry.mean), 312, y + 15, text_anchor="end", class_=f"{name} value"),
                *_bar(entry, scale, y + 20),
            )
        )
    labels = ["0", "25", "50", "75", "100"]
    parts += tick_texts(labels, [scale(share / 4) for share in range(5)], bottom + 13, 320)
    parts.append(text("probability (%)", 160, bottom + 28, text_anchor="middle", class_="axis-name"))
    more = f"; {len(classes) - len(shown)} more classes are not drawn" if len(classes) > len(shown) else ""
    return chart(
        *parts,
        title="Predictive distribution of the leading classes",
        description="; ".join(_told(entry) for entry in shown) + more,
        width=320,
        height=bottom + 33,
        kind="distribution",
    )


def _bar(entry: ClassShare, scale: Scale, y: float) -> list[str]:
    parts = [element("rect", x=8, y=y, width=304, height=10, rx=2, class_="track")]
    if math.isfinite(entry.mean):
        parts.append(element("rect", x=8, y=y, width=round(scale(entry.mean) - 8, 2), height=10, rx=2, class_="bnn"))
    if math.isfinite(entry.low) and math.isfinite(entry.high):
        low, high = scale(entry.low), scale(entry.high)
        path = f"M{low:g} {y + 2:g}v6M{low:g} {y + 5:g}H{high:g}M{high:g} {y + 2:g}v6"
        parts += [element("path", d=path, class_="whisker-halo"), element("path", d=path, class_="whisker")]
    if entry.teacher is not None and math.isfinite(entry.teacher):
        at = scale(entry.teacher)
        parts.append(element("path", d=f"M{at:g} {y - 2:g}l5 7l-5 7l-5 -7z", class_="teacher"))
    return parts


def _told(entry: ClassShare) -> str:
    teacher = "" if entry.teacher is None else f", teacher {percent(entry.teacher)}"
    return f"{entry.name}: BNN mean {percent(entry.mean)}, 5\N{EN DASH}95 % {interval(entry.low, entry.high)}{teacher}"


def _escaped(content: str) -> str:
    from html import escape

    return escape(content)
