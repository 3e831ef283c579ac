"""Hoeffding's bounds against scipy: their formula, and how often they are exceeded, by the exact binomial law."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from scipy import optimize, special, stats
from sklearn.metrics import roc_auc_score

from pytest_bnn.stats.intervals import hoeffding_radius, pairs_bounds
from pytest_bnn.stats.order import auroc
from tests.checks.predicting import generator


@pytest.mark.parametrize("count", [20, 360])
@pytest.mark.parametrize("rate", [0.05, 1e-3])
def test_hoeffdings_radius_is_exceeded_no_more_often_than_said(count: int, rate: float) -> None:
    """For ranges of 1 it is sqrt(ln(1 / rate) / (2 n)); for coins scipy says how often their mean goes beyond it."""
    radius = hoeffding_radius(torch.ones(count), rate)
    assert radius == pytest.approx(math.sqrt(math.log(1 / rate) / (2 * count)), rel=1e-12)
    for share in numpy.linspace(0.01, 0.99, 99).tolist():
        assert stats.binom.sf(math.ceil((share + radius) * count) - 1, count, share) <= rate
    # Half of them cannot move at all: twice the range of the others would be as wide as a quarter of the examples.
    some = torch.cat([torch.ones(count), torch.zeros(count)])
    assert hoeffding_radius(some, rate) == pytest.approx(radius / 2, rel=1e-12)


@pytest.mark.parametrize(("share", "pairs"), [(0.5, 96), (0.93, 360), (0.0, 20), (1.0, 20)])
def test_bounds_of_pairs_are_roots_of_scipys_divergence(share: float, pairs: int) -> None:
    def beyond(q: float) -> float:
        divergence = special.rel_entr(share, q) + special.rel_entr(1 - share, 1 - q)
        return float(pairs * divergence - math.log(1e3))

    low, high = pairs_bounds(share, pairs, 1e-3)
    assert low == (0.0 if share == 0 else pytest.approx(optimize.brentq(beyond, 1e-12, share), abs=1e-9))
    assert high == (1.0 if share == 1 else pytest.approx(optimize.brentq(beyond, share, 1 - 1e-12), abs=1e-9))


def test_bounds_of_pairs_are_exceeded_no_more_often_than_said() -> None:
    """For independent pairs: a coin's share beyond either bound, summed over all outcomes by the binomial law."""
    pairs, rate = 60, 0.05
    bounds = [pairs_bounds(k / pairs, pairs, rate) for k in range(pairs + 1)]
    for truth in numpy.linspace(0.02, 0.98, 25).tolist():
        law = [float(stats.binom.pmf(k, pairs, truth)) for k in range(pairs + 1)]
        assert sum(p for p, (low, _) in zip(law, bounds, strict=True) if low > truth) <= rate
        assert sum(p for p, (_, high) in zip(law, bounds, strict=True) if high < truth) <= rate


def test_auroc_is_scikit_learns() -> None:
    """With ties, which count half."""
    inside = torch.randn(80, generator=generator()).mul(4).round().abs()
    outside = torch.randn(50, generator=generator(1)).mul(6).round().abs()
    truth = numpy.repeat([0, 1], [80, 50])
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, torch.cat([inside, outside])), rel=1e-12)
    assert auroc(torch.zeros(3), torch.zeros(5)) == 0.5
    assert auroc(torch.full((3,), 0.1), torch.full((5,), 0.1) * (1 + 1e-7)) == 0.5, "what rounding makes"
    assert auroc(torch.full((3,), 1e-9), torch.full((5,), 1.1e-9)) == 1.0
