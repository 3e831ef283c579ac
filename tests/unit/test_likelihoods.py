"""Mixtures of likelihoods against scipy's densities, roots and maxima, and their error rate on simulated labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from scipy import optimize, special, stats
from torch import Tensor

from pytest_bnn.stats import likelihoods
from pytest_bnn.stats.likelihoods import Family, Interval, odds, scale, temperature
from tests.checks.predicting import following, generator, scores

#: Members of the mixture and their weights, by scipy's normal density.
MEMBERS = numpy.linspace(-4, 4, 81)
WEIGHTS = stats.norm.pdf(MEMBERS) / stats.norm.pdf(MEMBERS).sum()

Oracle = Callable[[float], float]


def _by_temperature() -> tuple[Family, Oracle]:
    logits = scores(300)
    labels = following(logits / 1.4)
    logs, rows = logits.double().numpy(), numpy.arange(300)
    family = temperature(logits.double().log_softmax(1), labels)
    return family, lambda b: float(special.log_softmax(logs / math.exp(b), axis=1)[rows, labels.numpy()].sum())


def _by_odds() -> tuple[Family, Oracle]:
    logits = scores(300, 1)[:, 0].double()
    happened = torch.rand(300, generator=generator(2)).double() < torch.sigmoid(logits + 0.7)
    family = odds(torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], 1).log(), happened)
    shares = logits.numpy()
    return family, lambda b: float(stats.bernoulli.logpmf(happened.numpy(), special.expit(shares + b)).sum())


def _by_scale() -> tuple[Family, Oracle]:
    found = 1.7 * torch.randn(200, generator=generator(3)).double()
    # But for a constant, which no ratio of likelihoods has.
    constant = 200 * math.log(math.sqrt(2 * math.pi))
    return scale(found), lambda b: float(stats.norm.logpdf(found.numpy(), scale=math.exp(b)).sum()) + constant


FAMILIES = {"temperature": _by_temperature, "odds": _by_odds, "scale": _by_scale}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_scipys(name: str) -> None:
    """Its likelihood, the mixture, the likeliest member and both ends of the interval."""
    family, oracle = FAMILIES[name]()
    points = [-2.0, -0.3, 0.0, 0.5, 3.0]
    found = family.log_likelihood(torch.tensor(points, dtype=torch.float64))
    numpy.testing.assert_allclose(found, [oracle(b) for b in points], rtol=1e-9)
    mixture = special.logsumexp([oracle(b) for b in MEMBERS], b=WEIGHTS)
    assert family.log_mixture == pytest.approx(mixture, rel=1e-9)
    assert family.log_evidence(0.4) == pytest.approx(mixture - oracle(0.4), abs=1e-6)
    best = optimize.minimize_scalar(lambda b: -oracle(b), bounds=(-4, 4), method="bounded", options={"xatol": 1e-7}).x
    assert family.best == pytest.approx(best, abs=1e-4)
    for rate in (1e-6, 0.05):
        least = mixture + math.log(rate)
        ends = [optimize.brentq(lambda b, least=least: oracle(b) - least, best, far) for far in (-6, 6)]
        interval = family.interval(rate)
        assert [interval.low, interval.high] == pytest.approx(ends, abs=2e-4)
        assert interval.low <= ends[0]
        assert interval.high >= ends[1]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many classes and examples are read in parts."""
    logs = scores(50).double().log_softmax(1)
    whole = temperature(logs, following(scores(50)))
    monkeypatch.setattr(likelihoods, "_BLOCK", 7)
    parts = temperature(logs, following(scores(50)))
    assert parts.log_mixture == pytest.approx(whole.log_mixture, rel=1e-12)
    assert parts.best == whole.best


def test_an_event_that_never_happens_has_no_least_odds() -> None:
    """However rare it is, so that one end is open; and a class that is ruled out does not matter to the others."""
    logs = torch.full((40, 2), 0.5).log()
    interval = odds(logs, torch.zeros(40, dtype=torch.bool)).interval(1e-6)
    assert interval.low == -math.inf
    assert 0 > interval.best > interval.low
    assert interval.high == pytest.approx(
        odds(logs, torch.ones(40, dtype=torch.bool)).interval(1e-6).low * -1, abs=1e-3
    )
    three = torch.tensor([[0.6, 0.4, 0.0]]).repeat(40, 1).log()
    labels = torch.arange(40) % 2
    two = temperature(three[:, :2], labels)
    assert temperature(three, labels).interval(1e-3) == two.interval(1e-3)


def test_what_an_interval_says() -> None:
    found = Interval(low=-1.0, best=0.0, high=math.inf)
    assert found.within(-1, math.inf)
    assert not found.within(-0.5, math.inf)
    assert not found.outside(-2, -1)
    assert found.outside(-3, -2)
    assert found.mapped(lambda b: b + 1) == Interval(low=0.0, best=1.0, high=math.inf)


@pytest.mark.parametrize("truth", [0.0, math.log(2)])
def test_the_truth_is_left_out_no_more_often_than_said(truth: float) -> None:
    """At a rate that shows errors, of labels that follow one member: what is predicted, or the end of a band."""
    left_out = 0
    for seed in range(300):
        logits = scores(60, seed=seed)
        labels = following(logits / math.exp(truth), seed + 1000)
        left_out += temperature(logits.log_softmax(1), labels).log_evidence(truth) >= math.log(1 / 0.1)
    assert stats.binom.sf(left_out - 1, 300, 0.1) > 1e-4


def test_some_hundred_labels_tell_a_temperature_to_a_third() -> None:
    """At one in a million; ten times as many to a tenth."""
    widths = []
    for count in (360, 3600):
        logits = scores(count, 10)
        interval = temperature(logits.log_softmax(1), following(logits)).interval(1e-6)
        assert interval.low < 0 < interval.high
        widths.append(interval.high - interval.low)
    assert 0.3 < widths[0] < 0.8
    assert widths[1] < widths[0] / 2.5


def test_labels_may_be_of_any_integer_type() -> None:
    logits: Tensor = scores(30)
    labels = following(logits)
    assert temperature(logits.log_softmax(1).float(), labels).best == pytest.approx(
        temperature(logits.double().log_softmax(1), labels).best, abs=1e-3
    )
