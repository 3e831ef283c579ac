"""The course of fine-tuning as small multiples over the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from pytest_bnn.records.run import TrainingStep
from pytest_bnn.report.scales import (
    Scale,
    decade_label,
    decade_ticks,
    decades,
    finite,
    logarithmic,
    round_ticks,
    rounded_range,
    tick_labels,
)
from pytest_bnn.report.svg import CHARACTER, chart, element, text
from pytest_bnn.report.wording import number

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 308.0, 26.0, 138.0


@dataclass(frozen=True, slots=True)
class Line:
    """One quantity over the steps."""

    name: str
    values: Sequence[float]


def multiples(steps: Sequence[TrainingStep]) -> list[str]:
    """Return the four charts of a trajectory; none when there is no step."""
    if not steps:
        return []
    at = [step.step for step in steps]
    return [
        line_chart(
            at, [Line("loss", [s.loss for s in steps]), Line("data term", [s.data_term for s in steps])], "", "Loss"
        ),
        line_chart(at, [Line("KL, unweighted", [s.kl for s in steps])], "nats", "KL divergence"),
        line_chart(at, [Line("gradient norm", [s.gradient_norm for s in steps])], "", "Gradient norm", log=True),
        line_chart(
            at,
            [Line("share of the top-1 class", [s.percent for s in steps])],
            "%",
            "Top-1 share of one pass",
            ends=(0.0, 100.0),
        ),
    ]


def line_chart(
    steps: Sequence[int],
    lines: Sequence[Line],
    unit: str,
    title: str,
    *,
    log: bool = False,
    ends: tuple[float, float] | None = None,
) -> str:
    """Return lines over steps. A value that is not finite interrupts its line and is marked at the top.

    Args:
        steps: Where the values belong, in any order.
        lines: The first is drawn solid, the second dashed.
        unit: The unit of the values; "" for none.
        title: Names the chart.
        log: Use a logarithmic axis where the values are positive and span two decades.
        ends: The ends of the axis, when the values do not decide them.
    """
    known = finite(value for line in lines for value in line.values)
    log = log and logarithmic(known)
    low, high = ends or (decades(known) if log else rounded_range(known))
    ticks = decade_ticks(low, high) if log else round_ticks(low, high)
    labels, power = ([decade_label(tick) for tick in ticks], "") if log else tick_labels(ticks)
    y = Scale(low, high, _BOTTOM, _TOP, log)
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    margin = max(_LEFT, 10 + CHARACTER * max((len(label) for label in labels), default=0))
    x = Scale(first, last if last > first else first + 1, margin + 6, _RIGHT - 6)
    axis = ", ".join(part for part in (f"{power} {unit}".strip(), "log scale" if log else "") if part)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(element("line", x1=margin, x2=_RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(text(label, margin - 6, y(tick) + 3.5, text_anchor="end", class_="tick-text"))
    for step in _whole(round_ticks(first, last, 5)):
        parts.append(element("line", x1=x(step), x2=x(step), y1=_BOTTOM, y2=_BOTTOM + 4, class_="tick"))
        parts.append(text(f"{step:,}", x(step), _BOTTOM + 16, text_anchor="middle", class_="tick-text"))
    parts.append(text("step", (margin + _RIGHT) / 2, _BOTTOM + 30, text_anchor="middle", class_="axis-name"))
    left = 4.0
    for index, line in enumerate(lines):
        parts += _line(steps, line, x, y, f"line-{index}")
        parts.append(element("line", x1=left, x2=left + 18, y1=8, y2=8, class_=f"course line-{index}"))
        parts.append(text(line.name, left + 23, 12, class_="legend"))
        left += 23 + 6.2 * len(line.name) + 14
    if axis:
        parts.append(text(axis, _RIGHT, 12, text_anchor="end", class_="axis-name"))
    told = "; ".join(f"{line.name} {_course(line.values)}" for line in lines)
    return chart(
        *parts,
        title=f"{title} over the steps{f', {axis}' if axis else ''}",
        description=f"Steps {first:,} to {last:,}; {told}.",
        width=316,
        height=_BOTTOM + 34,
        kind="trajectory",
    )


def _line(steps: Sequence[int], line: Line, x: Scale, y: Scale, kind: str) -> list[str]:
    points = sorted(zip(steps, line.values, strict=True), key=lambda point: point[0])
    parts = []
    for whole, several in groupby(points, key=lambda point: math.isfinite(point[1])):
        run = list(several)
        if not whole:
            for step, value in run:
                mark = element("title", escape(f"step {step}: {number(value)}"))
                cross = f"M{x(step) - 3:g} {_TOP - 1:g}l6 6m0 -6l-6 6"
                parts.append(element("path", mark, d=cross, class_="not-finite"))
        elif len(run) == 1:
            parts.append(element("circle", cx=x(run[0][0]), cy=y(run[0][1]), r=2.5, class_=f"dot {kind}"))
        else:
            path = " ".join(f"{x(step):g},{y(value):g}" for step, value in run)
            parts.append(element("polyline", points=path, class_=f"course {kind}"))
    return parts


def _course(values: Sequence[float]) -> str:
    if not values:
        return "has no values"
    odd = sum(not math.isfinite(value) for value in values)
    told = f"from {number(values[0])} to {number(values[-1])}"
    return f"{told}, {odd} not finite" if odd else told


def _whole(ticks: list[float]) -> list[int]:
    return sorted({round(tick) for tick in ticks if abs(tick - round(tick)) < 1e-6})
