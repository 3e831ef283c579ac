"""Charts of a record, drawn: lines over one axis with a band behind them and counts below, and ridges."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

from pytest_bnn.records.charts import Chart, ChartBand, ChartCounts, ChartLine, Ridge, Ridges
from pytest_bnn.report.scales import Scale, finite, linear_range, round_ticks, rounded_range, tick_labels
from pytest_bnn.report.svg import CHARACTER, chart, element, shorten, text, titled
from pytest_bnn.report.wording import number

_WIDTH, _RIGHT, _TOP, _BOTTOM = 360.0, 350.0, 26.0, 196.0

#: Where the histogram below a chart stands.
_COUNTS_TOP, _COUNTS_BOTTOM = 206.0, 234.0

#: Up to so many points each gets a dot.
_DOTS = 12

#: How many looks there are for lines that are neither the model's nor its teacher's.
_LOOKS = 6

#: Of a ridge: the height of its row, the most of its own, and where the axis begins, right of the names.
_ROW, _HEIGHT, _LEFT = 38.0, 30.0, 100.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend: its picture, as SVG, and what it stands for."""

    drawing: str
    name: str


def curves(record: Chart) -> str:
    """Return a chart as SVG; values that are not finite have no place in it."""
    bottom = _COUNTS_BOTTOM if record.counts else _BOTTOM
    x_ends, y_ends = _ends(record)
    ticks = round_ticks(*y_ends)
    labels, power = tick_labels(ticks)
    margin = max(34.0, 12 + CHARACTER * max((len(label) for label in labels), default=0))
    x, y = Scale(*x_ends, margin + 4, _RIGHT - 6), Scale(*y_ends, _BOTTOM, _TOP)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(element("line", x1=margin, x2=_RIGHT, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(text(label, margin - 6, y(tick) + 3.5, text_anchor="end", class_="tick-text"))
    parts.append(
        text(" ".join(part for part in (shorten(record.y_name, 52), power) if part), 4, 12, class_="axis-name")
    )
    parts += _x_axis(x, x_ends, record.x_name, bottom, (margin + _RIGHT) / 2)
    if record.band:
        parts += _band(record.band, x, y)
    if record.diagonal:
        low, high = max(x_ends[0], y_ends[0]), min(x_ends[1], y_ends[1])
        if low < high:
            parts.append(element("line", x1=x(low), y1=y(low), x2=x(high), y2=y(high), class_="diagonal"))
    for line, look in _looks(record.lines):
        parts += _curve(line, x, y, look)
    if record.counts:
        parts += _bars(record.counts, x, margin)
    return chart(
        *parts,
        title=f"{record.title}: {record.y_name} over {record.x_name}",
        description="; ".join(_told(line) for line in record.lines) or "There is no line.",
        width=_WIDTH,
        height=bottom + 36,
        kind="curves",
    )


def keys(record: Chart) -> list[Key]:
    """Return the legend of a chart."""
    found = [
        Key(_swatch(element("line", x1=1, x2=25, y1=6, y2=6, class_=f"curve {look}")), line.name)
        for line, look in _looks(record.lines)
    ]
    if record.band:
        found.append(Key(_swatch(element("rect", x=0, y=1, width=26, height=10, class_="band")), record.band.name))
    if record.diagonal:
        found.append(Key(_swatch(element("line", x1=1, x2=25, y1=6, y2=6, class_="diagonal")), record.diagonal))
    if record.counts:
        found.append(Key(_swatch(element("rect", x=8, y=1, width=10, height=10, class_="count")), record.counts.name))
    return found


def ridges(record: Ridges) -> str:
    """Return histograms one above the other as SVG, each to a height of its own."""
    bottom = _TOP + _ROW * len(record.rows)
    edges = finite(record.edges)
    ends = (edges[0], edges[-1]) if len(edges) == len(record.edges) > 1 and edges[0] < edges[-1] else (0.0, 1.0)
    x = Scale(*ends, _LEFT, _RIGHT - 6)
    parts = [
        element("line", x1=x(tick), x2=x(tick), y1=_TOP - 8, y2=bottom, class_="grid") for tick in round_ticks(*ends)
    ]
    for index, row in enumerate(record.rows, start=1):
        parts += _ridge(row, record.edges, x, _TOP + _ROW * index)
    parts += _x_axis(x, ends, record.x_name, bottom, (_LEFT + _RIGHT) / 2)
    return chart(
        *parts,
        title=f"{record.title}: {record.x_name}",
        description="; ".join(
            f"{row.name}: mean {number(row.mean, 3)}, median {number(row.median, 3)}" for row in record.rows
        ),
        width=_WIDTH,
        height=bottom + 36,
        kind="ridges",
    )


def _ends(record: Chart) -> tuple[Point, Point]:
    xs = [value for line in record.lines for value in finite(line.x)]
    ys = [value for line in record.lines for value in finite((*line.y, *line.low, *line.high))]
    if record.band:
        xs += finite(record.band.x)
        ys += finite((*record.band.low, *record.band.high))
    return _given(record.x_ends) or linear_range(xs), _given(record.y_ends) or rounded_range(ys)


def _given(ends: Point | None) -> Point | None:
    usable = ends is not None and all(abs(end) < 1e300 for end in ends) and ends[1] - ends[0] > 1e-300
    return ends if usable else None


def _x_axis(x: Scale, ends: Point, name: str, bottom: float, middle: float) -> list[str]:
    ticks = round_ticks(*ends)
    labels, power = tick_labels(ticks)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4, class_="tick"))
        parts.append(text(label, x(tick), bottom + 16, text_anchor="middle", class_="tick-text"))
    said = " ".join(part for part in (shorten(name, 46), power) if part)
    return [*parts, text(said, middle, bottom + 31, text_anchor="middle", class_="axis-name")]


def _looks(lines: Sequence[ChartLine]) -> Iterator[tuple[ChartLine, str]]:
    """Return each line its look: the model's, the teacher's, or one of its own."""
    others = 0
    for line in lines:
        if line.whose == "other":
            yield line, f"k-{others % _LOOKS}"
            others += 1
        else:
            yield line, f"k-{line.whose}"


def _curve(line: ChartLine, x: Scale, y: Scale, look: str) -> list[str]:
    points = [point for point in zip(line.x, line.y, strict=False) if math.isfinite(point[0])]
    parts = []
    for at, low, high in zip(line.x, line.low, line.high, strict=False):
        if all(map(math.isfinite, (at, low, high))):
            left, top, end = x(at), y(high), y(low)
            path = f"M{left - 4:g} {top:g}h8M{left:g} {top:g}V{end:g}M{left - 4:g} {end:g}h8"
            parts.append(element("path", d=path, class_=f"bounds {look}"))
    for whole, several in groupby(points, key=lambda point: math.isfinite(point[1])):
        run = list(several)
        if whole:
            path = " ".join(f"{x(at):g},{y(value):g}" for at, value in (_stairs(run) if line.steps else run))
            parts.append(element("polyline", points=path, class_=f"curve {look}"))
            if len(points) <= _DOTS or len(run) == 1:
                parts += [_dot(line, point, x, y, look) for point in run]
    return parts


def _stairs(run: Sequence[Point]) -> list[Point]:
    return [run[0], *(point for one, other in pairwise(run) for point in ((other[0], one[1]), other))]


def _dot(line: ChartLine, point: Point, x: Scale, y: Scale, look: str) -> str:
    told = f"{line.name}: {number(point[1], 3)} at {number(point[0], 3)}"
    return titled("circle", told, cx=x(point[0]), cy=y(point[1]), r=3, class_=f"point {look}")


def _band(band: ChartBand, x: Scale, y: Scale) -> list[str]:
    points = [point for point in zip(band.x, band.low, band.high, strict=False) if all(map(math.isfinite, point))]
    there = [f"{x(at):g},{y(low):g}" for at, low, _ in points]
    back = [f"{x(at):g},{y(high):g}" for at, _, high in reversed(points)]
    return [element("polygon", points=" ".join(there + back), class_="band")] if points else []


def _bars(counts: ChartCounts, x: Scale, margin: float) -> list[str]:
    most = max(counts.counts, default=0)
    parts = [
        element("line", x1=margin, x2=_RIGHT, y1=_COUNTS_BOTTOM, y2=_COUNTS_BOTTOM, class_="grid"),
        text(f"{most:,}", margin - 6, _COUNTS_TOP + 8, text_anchor="end", class_="tick-text"),
    ]
    for (low, high), count in zip(pairwise(counts.edges), counts.counts, strict=False):
        if count > 0 and math.isfinite(low) and math.isfinite(high):
            height = max(1.0, (_COUNTS_BOTTOM - _COUNTS_TOP) * count / most)
            left, width = x(low), max(1.0, x(high) - x(low) - 1)
            told = f"{count:,} {counts.name} from {number(low, 3)} to {number(high, 3)}"
            parts.append(titled("rect", told, x=left, y=round(_COUNTS_BOTTOM - height, 2), width=round(width, 2),
                                height=round(height, 2), class_="count"))  # fmt: skip
    return parts


def _ridge(row: Ridge, edges: Sequence[float], x: Scale, bottom: float) -> list[str]:
    look = "inside" if row.inside else "outside"
    parts = [
        text(shorten(row.name, 15), 4, bottom - 4, class_="name"),
        element("line", x1=_LEFT, x2=_RIGHT, y1=bottom, y2=bottom, class_="grid"),
    ]
    most = max(row.counts, default=0)
    if most > 0 and len(finite(edges)) == len(edges):
        steps = [f"M{x(edges[0]):g} {bottom:g}"]
        for (low, high), count in zip(pairwise(edges), row.counts, strict=False):
            top = bottom - _HEIGHT * max(0, count) / most
            steps.append(f"L{x(low):g} {top:.4g}L{x(high):g} {top:.4g}")
        steps.append(f"V{bottom:g}Z")
        parts.append(element("path", d="".join(steps), class_=f"ridge {look}"))
    if math.isfinite(row.mean):
        at = x(row.mean)
        told = element("title", escape(f"{row.name}: mean {number(row.mean, 3)}"))
        parts.append(element("path", told, d=f"M{at:g} {bottom - 9:g}V{bottom + 3:g}", class_="mean"))
    return parts


def _swatch(drawing: str) -> str:
    return element("svg", drawing, class_="key", width=26, height=12, aria_hidden="true")


def _told(line: ChartLine) -> str:
    points = [point for point in zip(line.x, line.y, strict=False) if all(map(math.isfinite, point))]
    if not points:
        return f"{line.name} has no values"
    (first, start), (last, end) = points[0], points[-1]
    return f"{line.name} from {number(start, 3)} at {number(first, 3)} to {number(end, 3)} at {number(last, 3)}"
