"""The report's small charts: verdict bar, gauge of observed against allowed, layer width, predictive distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pytest_bnn.records.evidence import Threshold
from pytest_bnn.records.run import ClassShare
from pytest_bnn.report.scales import (
    Scale,
    decade_label,
    decade_ticks,
    decades,
    finite,
    linear_range,
    logarithmic,
    round_ticks,
    tick_labels,
)
from pytest_bnn.report.standing import ORDER, Standing, word
from pytest_bnn.report.svg import chart, element, shorten, text, titled
from pytest_bnn.report.wording import allowed, interval, number, percent, scalar

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


def gauge(threshold: Threshold) -> str:
    """Return a gauge of observed against allowed on one axis, "" where they are no finite numbers."""
    numbers = [
        float(value)
        for value in (threshold.observed, threshold.allowed)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    ]
    if len(numbers) < 2:
        return ""
    observed, limit = numbers
    log = logarithmic(numbers, 30.0)
    if log:
        low, high = decades([min(numbers), max(numbers) * 1.5])
    elif threshold.unit == "%" and min(numbers) >= 0 and max(numbers) <= 100:
        low, high = 0.0, 100.0
    elif not any(numbers):
        low, high = 0.0, 1.0
    else:
        low, high = linear_range([*numbers, 0.0])
        high, low = high + (0.15 * (high - low) if high > 0 else 0), low - (0.15 * (high - low) if low < 0 else 0)
    scale = Scale(low, high, 8.0, 312.0, log)
    at, edge = scale(observed), scale(limit)
    inside = {"<=": (8.0, edge), "<": (8.0, edge), ">=": (edge, 312.0), ">": (edge, 312.0), "==": (edge - 3, edge + 3)}
    start, end = inside[threshold.relation]
    ticks = decade_ticks(low, high) if log else round_ticks(low, high)
    labels, power = ([decade_label(tick) for tick in ticks], "") if log else tick_labels(ticks)
    unit = " ".join(part for part in (power, threshold.unit) if part)
    seen = f"observed {scalar(threshold.observed, threshold.unit)}"
    wanted = f"allowed {allowed(threshold)}"
    parts = [
        element("rect", x=8, y=20, width=304, height=12, rx=2, class_="track"),
        element("rect", x=start, y=20, width=round(max(2.0, end - start), 2), height=12, rx=2, class_="zone"),
        element("rect", x=8, y=23, width=round(max(0.0, at - 8), 2), height=6, class_="observed"),
        element("circle", cx=at, cy=26, r=4.5, class_="observed-end"),
        element("line", x1=edge, x2=edge, y1=16, y2=36, class_="limit"),
        _anchored(seen, at, 12, "observed-text"),
        *(element("line", x1=scale(tick), x2=scale(tick), y1=32, y2=36, class_="tick") for tick in ticks),
        *_tick_texts(labels, [scale(tick) for tick in ticks], 48),
        text(f"{shorten(threshold.quantity, 36)}{f' ({unit})' if unit else ''}{', log scale' if log else ''}",
             160, 63, text_anchor="middle", class_="axis-name"),
    ]  # fmt: skip
    return chart(
        *parts,
        title=f"{threshold.quantity}: {seen}, {wanted}",
        description=f"The axis runs from {number(low)} to {number(high)}{', logarithmic' if log else ''}; "
        "the shaded part is allowed, the upright line is its limit.",
        width=320,
        height=68,
        kind="gauge",
    )


def width_scale(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the decades that all layers of a subject share."""
    positive = [value for value in finite(values) if value > 0]
    low, high = decades(positive)
    return low, high


def width_axis(ends: tuple[float, float]) -> str:
    """Return the axis of the layer widths, for the head of their column."""
    scale = Scale(*ends, 6.0, 134.0, log=True)
    ticks = decade_ticks(*ends, most=4)
    parts = [element("line", x1=scale(tick), x2=scale(tick), y1=14, y2=18, class_="tick") for tick in ticks]
    return chart(
        *_tick_texts([decade_label(tick) for tick in ticks], [scale(tick) for tick in ticks], 11),
        *parts,
        title="Axis of sigma over absolute mu, logarithmic, without unit",
        description=f"From {number(ends[0])} to {number(ends[1])}.",
        width=140,
        height=18,
        kind="axis",
    )


def width_bar(value: float, ends: tuple[float, float], path: str) -> str:
    """Return one layer's median of sigma / abs(mu) on the axis of its subject; no bar for NaN and infinity."""
    scale = Scale(*ends, 6.0, 134.0, log=True)
    parts = [element("rect", x=6, y=6, width=128, height=4, rx=2, class_="track")]
    parts += [
        element("line", x1=scale(tick), x2=scale(tick), y1=3, y2=13, class_="tick")
        for tick in decade_ticks(*ends, most=9)
    ]
    if math.isfinite(value):
        at = scale(value)
        parts.append(element("rect", x=6, y=6, width=round(at - 6, 2), height=4, rx=2, class_="bnn"))
        parts.append(element("circle", cx=at, cy=8, r=4, class_="bnn"))
    return chart(
        *parts,
        title=f"{path}: median of sigma over absolute mu {number(value)}",
        description=f"On a logarithmic axis from {number(ends[0])} to {number(ends[1])}.",
        width=140,
        height=16,
        kind="width",
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
    parts += _tick_texts(labels, [scale(share / 4) for share in range(5)], bottom + 13)
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


def _anchored(content: str, x: float, y: float, kind: str) -> str:
    """Write text above a point, kept within the chart."""
    half = 3.2 * len(content)
    if x - half < 4:
        return text(content, 4, y, class_=kind)
    if x + half > 316:
        return text(content, 316, y, text_anchor="end", class_=kind)
    return text(content, x, y, text_anchor="middle", class_=kind)


def _tick_texts(labels: list[str], places: list[float], y: float) -> list[str]:
    last = len(labels) - 1
    anchors = ["start" if not index and x < 16 else "end" if index == last and x > 296 else "middle"
               for index, x in enumerate(places)]  # fmt: skip
    return [
        text(label, x, y, text_anchor=anchor, class_="tick-text")
        for label, x, anchor in zip(labels, places, anchors, strict=True)
    ]
