"""Mixtures of normal distributions: standard scores, CRPS and its range, against scipy and scoringrules."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from scipy import stats
from torch import Tensor

from pytest_bnn.checks.regression._standard import Standard, distance
from pytest_bnn.sampling.normals import Normals, ranges_of_difference
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import distance_radius

scoringrules = pytest.importorskip("scoringrules")


def mixture(passes: int, count: int, seed: int = 0, *, noise: bool = True) -> Normals:
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(passes, count, generator=random, dtype=torch.float64)
    deviations = 0.2 + torch.rand(passes, count, generator=random, dtype=torch.float64)
    return Normals(means=means, deviations=deviations if noise else torch.zeros_like(means))


def values(count: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(count, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_standard_scores_are_scipy_s() -> None:
    found, at = mixture(5, 40), values(40)
    below = numpy.mean(stats.norm.cdf(at.numpy(), found.means.numpy(), found.deviations.numpy()), 0)
    numpy.testing.assert_allclose(found.scores(at).numpy(), stats.norm.ppf(below), rtol=1e-7, atol=1e-9)


def test_standard_scores_far_out() -> None:
    """Where probabilities are 0 and 1 to a float: of one pass the score is the distance itself."""
    found = Normals(means=torch.zeros(1, 4, dtype=torch.float64), deviations=torch.full((1, 4), 2.0).double())
    at = torch.tensor([-400.0, -30.0, 30.0, 400.0]).double()
    torch.testing.assert_close(found.scores(at), at / 2)


def test_labels_drawn_from_a_mixture_have_normal_scores() -> None:
    random = numpy.random.default_rng(1)
    found = mixture(8, 4000)
    which = random.integers(8, size=4000)
    drawn = random.normal(found.means.numpy()[which, range(4000)], found.deviations.numpy()[which, range(4000)])
    assert stats.kstest(found.scores(torch.from_numpy(drawn)).numpy(), "norm").pvalue > 1e-3


def test_crps_of_one_pass_is_that_of_a_normal_distribution() -> None:
    found, at = mixture(1, 50), values(50)
    expected = scoringrules.crps_normal(at.numpy(), found.means[0].numpy(), found.deviations[0].numpy())
    numpy.testing.assert_allclose(found.crps(at).numpy(), expected, rtol=1e-9)
    numpy.testing.assert_allclose(found.crps_of_one_pass(at).numpy(), expected, rtol=1e-9)


def test_crps_without_noise_is_the_fair_one_of_an_ensemble() -> None:
    found, at = mixture(7, 50, noise=False), values(50)
    expected = scoringrules.crps_ensemble(at.numpy(), found.means.T.numpy(), estimator="fair")
    numpy.testing.assert_allclose(found.crps(at).numpy(), expected, rtol=1e-9)


def test_crps_has_no_bias_of_the_number_of_passes() -> None:
    """Over all pairs that two passes can be, of six, it is the score of the mixture of the six."""
    whole, at = mixture(6, 30), values(30)
    pairs = [
        Normals(means=whole.means[list(two)], deviations=whole.deviations[list(two)]).crps(at)
        for two in itertools.product(range(6), repeat=2)
    ]
    expected = scoringrules.crps_mixnorm(at.numpy(), whole.means.T.numpy(), whole.deviations.T.numpy())
    numpy.testing.assert_allclose(torch.stack(pairs).mean(0).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["noisy", "one is certain", "both are certain", "alike", "units apart"])
def test_ranges_hold_all_differences(kind: str) -> None:
    """They are never smaller than what a fine grid shows, and little larger."""
    one, other = mixture(5, 12, 1, noise=kind != "both are certain"), mixture(1, 12, 2, noise=kind == "noisy")
    if kind == "alike":
        other = Normals(means=one.mean[None], deviations=(one.within + one.between).sqrt()[None])
    if kind == "units apart":
        one, other = one.scaled(torch.full((12,), 1e-3).double()), other.scaled(torch.full((12,), 1e-3).double())
    width = 1e4 if kind == "units apart" else 10.0
    grid = torch.linspace(-width, width, 20001, dtype=torch.float64)
    found = ranges_of_difference(one, other)
    for row in range(12):
        kept = torch.full((len(grid),), row)
        gap = one[kept].crps(grid) - other[kept].crps(grid)
        seen = float(gap.max() - gap.min())
        assert seen <= float(found[row]) * (1 + 1e-9)
        assert float(found[row]) <= 1.15 * seen + 0.02 * float(one.within[row].sqrt())


def test_equal_predictions_cannot_differ() -> None:
    one = mixture(1, 5)
    assert float(ranges_of_difference(one, one).max()) < 0.05
    certain = mixture(3, 5, noise=False)
    assert float(ranges_of_difference(certain, certain).max()) == 0.0


def test_the_distance_is_kolmogorov_s() -> None:
    z = 1.4 * values(77, 1.0) + 0.2
    assert distance(z) == pytest.approx(stats.kstest(z.numpy(), "norm").statistic)


@pytest.mark.parametrize("count", [5, 50, 500])
@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.05])
def test_the_radius_holds(count: int, rate: float) -> None:
    assert stats.kstwo.sf(distance_radius(count, rate), count) <= rate


def test_the_radius_holds_for_numbers_that_are_not_distributed_alike() -> None:
    random = numpy.random.default_rng(0)
    centres = random.uniform(-1, 1, 40)
    grid = numpy.linspace(-4, 4, 400)
    mean = numpy.mean(stats.norm.cdf(grid[:, None], centres, 0.3), 1)
    drawn = random.normal(centres, 0.3, (2000, 40))
    apart = numpy.abs((drawn[:, None] <= grid[:, None]).mean(2) - mean).max(1)
    assert (apart > distance_radius(40, 0.05)).mean() <= 0.05


def certain(z: Tensor) -> Standard:
    """Judge numbers of which standard normal ones were predicted."""
    one = torch.ones_like(z)
    return Standard.of(Normals(means=0 * one[None], deviations=one[None]), z, one, Budget())


def test_outliers_do_not_make_a_spread_certain() -> None:
    """Below the band only what holds with them counts, above it only what holds without them."""
    z = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[:2] = 100.0
    found = certain(z)
    assert found.far == 2
    assert found.surely.low < 1.2 < 5 < found.surely.high
    narrow = 0.2 * torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    narrow[:3] = 50.0
    assert certain(narrow).surely.high > 1


def test_a_shift_is_taken_out() -> None:
    """Of all predictions alike, in units of the outputs too, where they are not all equally sure."""
    random = torch.Generator().manual_seed(0)
    deviations = 0.1 + torch.rand(1, 400, generator=random, dtype=torch.float64)
    drawn = deviations[0] * torch.randn(400, generator=random, dtype=torch.float64) + 3
    found = Standard.of(
        Normals(means=torch.zeros_like(deviations), deviations=deviations), drawn, torch.ones(400), Budget()
    )
    assert found.surely.low > 2
    assert found.about_shift == pytest.approx(1, abs=0.15)
    assert found.shift > 2
