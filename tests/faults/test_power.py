"""The bigger the fault, the more often it is found: a part of the benchmark's curves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.curves import load
from benchmarks.power import CURVES, POWER, curve

TRIALS = 6
POINTS = Path(__file__).parents[2] / "docs" / "explanation" / "power" / "points.json"


#: The other curve of a check that has two.
LATER = {"teacher.agreement, close": pytest.mark.nightly("sixty audits; every push has the check's other curve")}


@pytest.mark.parametrize("name", [pytest.param(name, marks=LATER.get(name, ())) for name in CURVES])
def test_the_largest_effect_is_always_found_and_none_never(name: str) -> None:
    """And between them the rate does not fall: the seeds are the same at every effect."""
    points = curve(name, TRIALS).points
    assert points[0].effect == 0
    assert points[0].failed == 0
    assert points[-1].failed == TRIALS
    rates = [point.failed for point in points]
    # Noise of another size is other noise, so a single trial may go the other way.
    assert all(later >= earlier - 1 for earlier, later in pairwise(rates)), rates


def by_flipout(effect: float) -> float:
    """1024 outputs of a layer, 16 passes of 64, whose variance is off by the square of ``1 + effect``: chi-square.

    Two tests, two-sided each, at one in a million together.
    """
    law, tail = stats.chi2(1024), 1e-6 / 4
    ratio = (1 + effect) ** -2
    return float(law.sf(law.isf(tail) * ratio) + law.cdf(law.ppf(tail) * ratio))


def by_source(effect: float) -> float:
    """Twenty pairs, of two outputs each, all stay below the floor: half the sum of two squares is exponential."""
    if effect == 1:
        return 1.0
    law = stats.chi2(2)
    return float(law.cdf(law.median() / (1 - effect) ** 2)) ** 20


ORACLES: dict[str, Callable[[float], float]] = {"estimator.flipout": by_flipout, "noise.source": by_source}


@pytest.mark.parametrize("name", ORACLES)
def test_measured_power_is_that_of_the_closed_form(name: str) -> None:
    """At each effect of the curve in the documentation, and at the mark that says what the check shows."""
    (measured,) = (curve for curve in load(POINTS) if curve.check == name)
    for point in measured.points:
        expected = ORACLES[name](point.effect)
        assert stats.binomtest(point.failed, point.trials, expected).pvalue > 1e-4, (point, expected)
    (shown,) = (mark.effect for mark in measured.marks if "power" in mark.words)
    assert ORACLES[name](shown) == pytest.approx(POWER, abs=1e-6)
