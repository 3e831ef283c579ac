"""The numbers of a chart as tables, for those who cannot see it and those who want to know exactly."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

from pytest_bnn.records.charts import Chart, ChartLine, Ridges, Score
from pytest_bnn.report.wording import number

_DIGITS = 3

#: Scores from here on, and those that are no finite numbers, are written as powers of ten, not digit by digit.
_PLAIN = 1e6


@dataclass(frozen=True, slots=True)
class Table:
    """A table of written numbers; the first cell of a row names it."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def chart_tables(chart: Chart) -> list[Table]:
    """Return the numbers of a chart: lines over the same places in one table, then the band, then the counts."""
    tables = []
    for _, same in groupby(chart.lines, key=lambda line: line.x):
        lines = list(same)
        rows = tuple((_said(at), *(_bounded(line, index) for line in lines)) for index, at in enumerate(lines[0].x))
        heads = (chart.x_name, *(line.name for line in lines))
        tables.append(Table(f"{chart.title}: {chart.y_name}", heads, rows))
    if chart.band:
        band = chart.band
        ends = zip(band.x, band.low, band.high, strict=False)
        rows = tuple((_said(at), _said(low), _said(high)) for at, low, high in ends)
        tables.append(Table(f"{chart.title}: {band.name}", (chart.x_name, "from", "to"), rows))
    if chart.counts:
        counts = chart.counts
        rows = tuple(
            (_between(low, high), number(count))
            for (low, high), count in zip(pairwise(counts.edges), counts.counts, strict=False)
            if count
        )
        tables.append(Table(f"{chart.title}: {counts.name}", (chart.x_name, counts.name), rows))
    return tables


def ridge_table(ridges: Ridges) -> Table:
    """Return the counts of all sets by bin, their mean and their median."""
    rows = [
        ("mean", *(_said(row.mean) for row in ridges.rows)),
        ("median", *(_said(row.median) for row in ridges.rows)),
        ("examples", *(number(sum(row.counts)) for row in ridges.rows)),
    ]
    for index, (low, high) in enumerate(pairwise(ridges.edges)):
        found = (number(row.counts[index]) if index < len(row.counts) else "" for row in ridges.rows)
        rows.append((_between(low, high), *found))
    return Table(f"{ridges.title}: examples", (ridges.x_name, *(row.name for row in ridges.rows)), tuple(rows))


def score(found: Score | None, *, digits: int = _DIGITS, sign: str = "-") -> tuple[str, str]:
    """Write a score and its interval, empty where there is none, all with as many decimals; "+" writes every sign."""

    def said(value: float) -> str:
        if not abs(value) < _PLAIN:
            return number(value)
        return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "\N{MINUS SIGN}")

    if found is None:
        return "\N{EN DASH}", ""
    if found.low is None or found.high is None:
        return said(found.value), ""
    return said(found.value), f"{said(found.low)} to {said(found.high)}"


def difference(found: Score) -> tuple[str, str]:
    """Write a difference of scores with its sign."""
    return score(found, digits=_DIGITS + 1, sign="+")


def _bounded(line: ChartLine, index: int) -> str:
    if index >= len(line.y):
        return ""
    said = _said(line.y[index])
    if index < min(len(line.low), len(line.high)):
        said += f" ({_said(line.low[index])} to {_said(line.high[index])})"
    return said


def _between(low: float, high: float) -> str:
    return f"{_said(low)} to {_said(high)}"


def _said(value: float) -> str:
    return number(float(value), _DIGITS)
