"""The gauge of a claim about a quantity: what was observed, how certain that is, and what is allowed, on one axis."""

from __future__ import annotations

import math

from pytest_bnn.records.evidence import Certainty, Evidence, Threshold
from pytest_bnn.report.scales import (
    Scale,
    decade_label,
    decade_ticks,
    decades,
    linear_range,
    logarithmic,
    round_ticks,
    tick_labels,
)
from pytest_bnn.report.svg import chart, element, shorten, text, tick_texts
from pytest_bnn.report.wording import allowed, number, scalar

_LEFT, _RIGHT, _WIDTH = 8.0, 312.0, 320.0

#: The most that a character of the bold text above the axis is wide.
_BOLD = 8.2

#: Larger numbers have no place on an axis.
_MOST = 1e300


def gauge_of(check: Evidence) -> str:
    """Return the gauge of a piece of evidence, "" where what it is about is no continuous quantity."""
    return "" if check.threshold is None else gauge(check.threshold, check.certainty)


def gauge(threshold: Threshold, certainty: Certainty | None = None) -> str:
    """Return a gauge, "" where the values are counts, words, or no finite numbers.

    Args:
        threshold: What was observed, and what is allowed: a limit, or a band with two ends.
        certainty: Its bounds are drawn around the observed value, where that lies between them.
    """
    values = _continuous(threshold)
    if values is None:
        return ""
    observed, limits = values
    low, high = _bounds(certainty, observed)
    scale, shared = _scale([observed, *limits, *(end for end in (low, high) if end is not None)], threshold.unit)
    at, edges = scale(observed), [scale(limit) for limit in limits]
    start, end = _zone(threshold.relation, edges)
    ticks = decade_ticks(scale.low, scale.high) if scale.log else round_ticks(scale.low, scale.high)
    labels = [decade_label(tick) for tick in ticks] if scale.log else tick_labels(ticks)[0]
    seen = f"observed {scalar(threshold.observed, threshold.unit)}"
    unit = " ".join(part for part in (shared, threshold.unit) if part)
    name = f"{shorten(threshold.quantity, 36)}{f' ({unit})' if unit else ''}{', log scale' if scale.log else ''}"
    parts = [
        element("rect", x=_LEFT, y=20, width=_RIGHT - _LEFT, height=12, rx=2, class_="track"),
        element("rect", x=start, y=20, width=round(max(2.0, end - start), 2), height=12, rx=2, class_="zone"),
        element("rect", x=_LEFT, y=24, width=round(max(0.0, at - _LEFT), 2), height=4, class_="observed"),
        *(element("line", x1=edge, x2=edge, y1=16, y2=36, class_="limit") for edge in edges),
        *_whisker(low, high, at, scale),
        element("circle", cx=at, cy=26, r=4, class_="observed-end"),
        _anchored(seen, at, 12),
        *(element("line", x1=scale(tick), x2=scale(tick), y1=32, y2=36, class_="tick") for tick in ticks),
        *tick_texts(labels, [scale(tick) for tick in ticks], 48, _WIDTH),
        text(shorten(name, 58), _WIDTH / 2, 63, text_anchor="middle", class_="axis-name"),
    ]
    return chart(
        *parts,
        title=f"{threshold.quantity}: {seen}{_said(low, high)}, allowed {allowed(threshold)}",
        description=f"The axis runs from {number(scale.low)} to {number(scale.high)}"
        f"{', logarithmic' if scale.log else ''}; the shaded part is allowed"
        + (", the thin line holds what is certain." if low is not None or high is not None else "."),
        width=_WIDTH,
        height=68,
        kind="gauge",
    )


def _continuous(threshold: Threshold) -> tuple[float, list[float]] | None:
    """Return what was observed and the ends of what is allowed, the lesser first; None where it is no such quantity."""
    observed = threshold.observed
    limits = [value for value in (threshold.allowed, threshold.other_end) if value is not None]
    if not isinstance(observed, float) or not all(isinstance(value, int | float) for value in limits) or not limits:
        return None
    numbers = [float(value) for value in limits]
    if any(isinstance(value, bool) for value in limits) or not all(
        abs(value) < _MOST for value in (observed, *numbers)
    ):
        return None
    return observed, sorted(numbers)


def _bounds(certainty: Certainty | None, observed: float) -> tuple[float | None, float | None]:
    """Return the bounds that are about this quantity: those that hold what was observed."""
    if certainty is None:
        return None, None
    low, high = (
        end if end is not None and math.isfinite(end) and abs(end) < _MOST else None
        for end in (certainty.low, certainty.high)
    )
    slack = 1e-9 * abs(observed)
    holds = (low is None or low <= observed + slack) and (high is None or high >= observed - slack)
    return (low, high) if holds else (None, None)


def _scale(numbers: list[float], unit: str) -> tuple[Scale, str]:
    """Return an axis that holds all numbers, and the power of ten that its labels share."""
    if logarithmic(numbers, 30.0):
        low, high = decades([min(numbers), max(numbers) * 1.5])
        return Scale(low, high, _LEFT, _RIGHT, log=True), ""
    if unit == "%" and min(numbers) >= 0 and max(numbers) <= 100:
        low, high = 0.0, 100.0
    elif not any(numbers):
        low, high = 0.0, 1.0
    else:
        low, high = linear_range([*numbers, 0.0])
        high, low = high + (0.15 * (high - low) if high > 0 else 0), low - (0.15 * (high - low) if low < 0 else 0)
    return Scale(low, high, _LEFT, _RIGHT), tick_labels(round_ticks(low, high))[1]


def _zone(relation: str, edges: list[float]) -> tuple[float, float]:
    if len(edges) == 2:
        return edges[0], edges[1]
    edge = edges[0]
    return {"<=": (_LEFT, edge), "<": (_LEFT, edge), "==": (edge - 3, edge + 3)}.get(relation, (edge, _RIGHT))


def _whisker(low: float | None, high: float | None, at: float, scale: Scale) -> list[str]:
    if low is None and high is None:
        return []
    start, end = at if low is None else scale(low), at if high is None else scale(high)
    path = f"M{start:g} 26H{end:g}"
    path += "" if low is None else f"M{start:g} 22v8"
    path += "" if high is None else f"M{end:g} 22v8"
    return [element("path", d=path, class_=kind) for kind in ("whisker-halo", "whisker")]


def _said(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if low is None or high is None:
        return (
            f", certainly at least {number(low)}" if low is not None else f", certainly at most {number(high or 0.0)}"
        )
    return f", certainly {number(low)} to {number(high)}"


def _anchored(content: str, x: float, y: float) -> str:
    """Write what was observed above its place, kept within the chart."""
    half = _BOLD * len(content) / 2
    anchor, at = ("middle", x)
    if x - half < 4:
        anchor, at = "start", 4.0
    elif x + half > _WIDTH - 4:
        anchor, at = "end", _WIDTH - 4
    return text(content, at, y, text_anchor=anchor, class_="observed-text")
