"""The bigger the fault, the more often it is found: a part of the benchmark's curves."""

from __future__ import annotations

from itertools import pairwise

import pytest

from benchmarks.power import CURVES, curve

TRIALS = 6


@pytest.mark.parametrize("name", CURVES)
def test_the_largest_effect_is_always_found_and_none_never(name: str) -> None:
    """And between them the rate does not fall: the seeds are the same at every effect."""
    points = curve(name, TRIALS).points
    assert points[0].effect == 0
    assert points[0].failed == 0
    assert points[-1].failed == TRIALS
    rates = [point.failed for point in points]
    # Noise of another size is other noise, so a single trial may go the other way.
    assert all(later >= earlier - 1 for earlier, later in pairwise(rates)), rates
