"""The numbers behind the charts of predictions, against scipy, scikit-learn and sums by hand."""

from __future__ import annotations

import itertools

import numpy
import pytest
import scipy.optimize
import scipy.stats
import sklearn.isotonic
import sklearn.metrics
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_bnn.stats.bootstrap import percentile_interval, resampled_means
from pytest_bnn.stats.reliability import consistency_band, reliability
from pytest_bnn.stats.selective import risk_coverage

Truths = NDArray[numpy.bool_]


def drawn(count: int, seed: int = 0, *, ties: bool = False) -> tuple[Tensor, Tensor]:
    """Confidences and whether the answer is right, as often as they say."""
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator, dtype=torch.float64)
    if ties:
        confidence = (confidence * 8).round() / 8
    return confidence, torch.rand(count, generator=generator, dtype=torch.float64) < confidence


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_the_regression_is_that_of_scipy_and_scikit_learn(count: int, ties: bool) -> None:
    confidence, right = drawn(count, ties=ties)
    fit = reliability(confidence, right)
    where, group, counts = numpy.unique(confidence.numpy(), return_inverse=True, return_counts=True)
    means = numpy.bincount(group, weights=right.double().numpy()) / counts
    expected = scipy.optimize.isotonic_regression(means, weights=counts).x
    blocks = numpy.searchsorted(fit.high, where)
    numpy.testing.assert_allclose(fit.share[blocks], expected, atol=1e-12)
    other = sklearn.isotonic.IsotonicRegression().fit(confidence.numpy(), right.numpy())
    places = numpy.linspace(where[0], where[-1], 50)
    ends = numpy.stack([fit.low, fit.high], 1).flatten()
    numpy.testing.assert_allclose(numpy.interp(places, ends, fit.share.repeat(2)), other.predict(places), atol=1e-9)
    assert fit.count.sum() == count
    assert (numpy.diff(fit.share) > 0).all()


def test_the_band_holds_the_curves_of_labels_that_follow_the_confidences() -> None:
    """Each place of it about nine times of ten; and not those of labels that are right half as often."""
    confidence, _ = drawn(300, 1)
    at = numpy.linspace(0.2, 0.8, 7)
    low, high = consistency_band(confidence, at, seed=3)
    assert (low < at).all()
    assert (at < high).all()
    inside: list[Truths] = []
    outside: list[Truths] = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(100 + seed)
        draws = torch.rand(300, generator=generator, dtype=torch.float64)
        for kept, factor in ((inside, 1.0), (outside, 0.5)):
            fit = reliability(confidence, draws < confidence * factor)
            curve = numpy.interp(at, numpy.stack([fit.low, fit.high], 1).flatten(), fit.share.repeat(2))
            kept.append((low <= curve) & (curve <= high))
    assert 0.8 < numpy.mean(inside) < 0.97
    assert numpy.mean(outside) < 0.4


def test_the_band_is_that_of_resamples_by_hand() -> None:
    """Its ends are the quantiles of scipy's fits to labels from the same seed."""
    confidence, _ = drawn(40, 5)
    at = numpy.array([0.3, 0.5, 0.9]).clip(float(confidence.min()), float(confidence.max()))
    generator, order = torch.Generator().manual_seed(9), confidence.numpy().argsort()
    curves = []
    for _ in range(20):
        labels = (torch.rand(40, generator=generator, dtype=torch.float64) < confidence).double().numpy()
        fitted = scipy.optimize.isotonic_regression(labels[order]).x
        curves.append(numpy.interp(at, confidence.numpy()[order], fitted))
    low, high = consistency_band(confidence, at, seed=9, resamples=20, share=0.5)
    numpy.testing.assert_allclose(low, numpy.quantile(curves, 0.25, axis=0), atol=1e-12)
    numpy.testing.assert_allclose(high, numpy.quantile(curves, 0.75, axis=0), atol=1e-12)


def test_neither_band_nor_bootstrap_touches_the_global_generator() -> None:
    torch.manual_seed(4)
    numpy_state, state = repr(numpy.random.get_state()), torch.get_rng_state()
    confidence, _ = drawn(30)
    bands = [consistency_band(confidence, numpy.array([0.5]), seed=1) for _ in range(2)]
    means = [resampled_means(confidence[:, None], seed=1, resamples=9) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(numpy.random.get_state()) == numpy_state
    assert numpy.array_equal(bands[0], bands[1])
    assert torch.equal(*means)


@pytest.mark.parametrize("ties", [False, True])
def test_augrc_is_that_of_traub_by_the_auroc_of_scikit_learn(ties: bool) -> None:
    """Equation 7 of the paper: (1 - AUROC) a (1 - a) + (1 - a)^2 / 2, with the accuracy a."""
    confidence, right = drawn(150, 2, ties=ties)
    accuracy = float(right.double().mean())
    auroc = sklearn.metrics.roc_auc_score(right.numpy(), confidence.numpy())
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert risk_coverage(confidence, right).augrc == pytest.approx(expected, abs=1e-12)


def test_risks_are_shares_of_wrong_answers_among_the_accepted() -> None:
    confidence, right = drawn(60, 3, ties=True)
    curve = risk_coverage(confidence, right)
    for threshold, coverage, risk in zip(
        sorted(set(confidence.tolist()), reverse=True), curve.coverage[1:], curve.risk[1:], strict=True
    ):
        accepted = [bool(one) for one, sure in zip(right, confidence, strict=True) if sure >= threshold]
        assert float(coverage) == pytest.approx(len(accepted) / 60)
        assert float(risk) == pytest.approx(accepted.count(False) / len(accepted))
    assert float(curve.coverage[0]) == 0
    assert torch.isnan(curve.risk[0])


@pytest.mark.parametrize(("right", "augrc"), [([True] * 4, 0.0), ([False] * 4, 0.5)])
def test_augrc_of_who_is_always_right_and_of_who_never_is(right: list[bool], augrc: float) -> None:
    assert risk_coverage(torch.tensor([0.1, 0.7, 0.7, 0.3]), torch.tensor(right)).augrc == pytest.approx(augrc)


def test_resamples_are_paired() -> None:
    """The difference of two columns of means is the mean of the column of differences, resample by resample."""
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    three = torch.cat([values, values[:, :1] - values[:, 1:]], 1)
    means = resampled_means(three, seed=0, resamples=300)
    torch.testing.assert_close(means[:, 2], means[:, 0] - means[:, 1])
    assert float(means[:, 2].std()) > 0.05


def test_percentiles_are_those_of_scipys_bootstrap() -> None:
    """Of a mean over 80 examples, to a tenth of the interval's length: the draws are not the same."""
    values = torch.rand(80, generator=torch.Generator().manual_seed(6), dtype=torch.float64) ** 3
    low, high = percentile_interval(resampled_means(values[:, None], seed=1, resamples=4000)[:, 0])
    expected = scipy.stats.bootstrap(
        (values.numpy(),), numpy.mean, method="percentile", n_resamples=4000, rng=numpy.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=(high - low) / 10)
    assert high == pytest.approx(expected.high, abs=(high - low) / 10)


def test_blocks_of_resamples_are_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = resampled_means(values, seed=5, resamples=25)
    monkeypatch.setattr("pytest_bnn.stats.bootstrap._BLOCK", 40)
    torch.testing.assert_close(resampled_means(values, seed=5, resamples=25), whole)
    assert len(list(itertools.groupby(whole[:, 0].tolist()))) > 20, "every resample is its own"
