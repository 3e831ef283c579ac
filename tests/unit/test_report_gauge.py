"""A gauge shows a quantity, both ends of its band and how certain it is; what is counted has none."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from pytest_bnn.records.evidence import Certainty, Threshold
from pytest_bnn.report.gauge import gauge
from pytest_bnn.report.wording import allowed

BAND = Threshold(quantity="spread", observed=0.05, relation="<=", allowed=1.0, other_end=1e-3)
SURE = Certainty(alpha=1e-7, beta=1e-4, statistic="median", low=0.04, high=0.08)


def numbers(drawing: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, drawing)]


@pytest.mark.parametrize(
    ("observed", "limit"),
    [(21, 21), (0, 0), (3, 5.0), (True, True), ("yes", "yes"), (None, 1.0), (0.5, None), (0.5, "half"), (1e301, 1.0)],
)
def test_what_is_counted_or_said_has_no_gauge(observed: object, limit: object) -> None:
    threshold = Threshold(quantity="q", observed=observed, relation="<=", allowed=limit)  # type: ignore[arg-type]
    assert gauge(threshold) == ""


def test_both_ends_of_a_band_are_drawn_and_what_is_between_is_allowed() -> None:
    drawn = gauge(BAND)
    ends = numbers(drawn, r'<line x1="([\d.]+)"[^>]*class="limit"')
    [start] = numbers(drawn, r'<rect x="([\d.]+)"[^>]*class="zone"')
    [width] = numbers(drawn, r'<rect [^>]*width="([\d.]+)"[^>]*class="zone"')
    [at] = numbers(drawn, r'<circle cx="([\d.]+)"')
    assert len(ends) == 2
    assert ends == pytest.approx([start, start + width], abs=0.01)
    assert ends[0] < at < ends[1]
    assert "allowed 0.001 to 1" in drawn


@pytest.mark.parametrize("relation", ["<=", ">="])
def test_a_band_reads_the_same_from_either_end(relation: str) -> None:
    low, high = (1e-3, 1.0) if relation == ">=" else (1.0, 1e-3)
    threshold = Threshold(quantity="q", observed=0.1, relation=relation, allowed=low, other_end=high, unit="nats")  # type: ignore[arg-type]
    assert allowed(threshold) == "0.001 to 1\u00a0nats"


@pytest.mark.parametrize(
    ("low", "high", "caps", "said"),
    [
        (0.04, 0.08, 2, "certainly 0.04 to 0.08"),
        (0.04, None, 1, "certainly at least 0.04"),
        (None, 0.08, 1, "certainly at most 0.08"),
    ],
)
def test_what_is_certain_is_drawn_around_what_was_observed(
    low: float | None, high: float | None, caps: int, said: str
) -> None:
    drawn = gauge(BAND, replace(SURE, low=low, high=high))
    [path] = re.findall(r'd="([^"]*)" class="whisker"', drawn)
    assert path.count("v8") == caps
    start, end = re.findall(r"M([\d.]+) 26H([\d.]+)", path)[0]
    [at] = numbers(drawn, r'<circle cx="([\d.]+)"')
    assert float(start) <= at <= float(end)
    assert float(start) < float(end)
    assert said in drawn


@pytest.mark.parametrize(("low", "high"), [(None, None), (0.2, 0.9), (float("-inf"), float("inf"))])
def test_bounds_of_something_else_are_not_drawn(low: float | None, high: float | None) -> None:
    assert "whisker" not in gauge(BAND, replace(SURE, low=low, high=high))


@pytest.mark.parametrize("observed", [0.07808, 0.9999, 1e-9, 123456.789, -0.5, 99.97])
def test_what_was_observed_is_not_cut(observed: float) -> None:
    """Bold digits of DejaVu Sans are 8 units wide: seen was "observed 0.07808", cut."""
    drawn = gauge(Threshold(quantity="q" * 80, observed=observed, relation="<=", allowed=1.0, unit="of the scale"))
    [(x, anchor, said)] = re.findall(r'<text x="([\d.]+)" y="12"[^>]*text-anchor="(\w+)"[^>]*>([^<]*)<', drawn)
    width = 8 * len(html.unescape(said))
    left = {"start": float(x), "middle": float(x) - width / 2, "end": float(x) - width}[anchor]
    assert left >= 0
    assert left + width <= 320
