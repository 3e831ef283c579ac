"""Intervals against scipy; sequential tests against their promises, on simulated data whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pytest_bnn.options import Settings, budget_in_force, using
from pytest_bnn.stats.betting import BettingTest, LeadingClassTest, certain_majority
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    draws_below_median,
    median_bounds,
    trials_for_share,
    trials_needed,
)
from pytest_bnn.stats.moments import Mean, Moments

#: The bets of the mixture, as the tests' own numbers: exact fractions for exact results.
BETS = (Fraction(1, 16), Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1))


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 2000), st.data(), st.floats(1e-9, 0.5))
def test_clopper_pearson_is_scipys_exact_interval(trials: int, data: st.DataObject, error_rate: float) -> None:
    """scipy finds the bound by root search on the binomial tail, not by the beta quantile."""
    successes = data.draw(st.integers(0, trials))
    interval = stats.binomtest(successes, trials, alternative="greater").proportion_ci(
        confidence_level=1 - error_rate, method="exact"
    )
    lower = clopper_pearson_lower(successes, trials, error_rate)
    assert lower == pytest.approx(float(interval.low), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(360, 360), (359, 360), (1, 1), (3, 7)])
def test_at_the_lower_bound_the_data_are_as_rare_as_the_error_rate(successes: int, trials: int) -> None:
    """The definition of the interval: P(at least so many successes | share = bound) = error rate."""
    for error_rate in (1e-6, 0.01, 0.3):
        bound = clopper_pearson_lower(successes, trials, error_rate)
        assert float(stats.binom.sf(successes - 1, trials, bound)) == pytest.approx(error_rate, rel=1e-6)


def test_how_much_360_images_can_carry() -> None:
    """.95 at 1e-6 needs 359 of 360: what the documentation tells users about their image sets."""
    assert clopper_pearson_lower(359, 360, 1e-6) > 0.95
    assert clopper_pearson_lower(358, 360, 1e-6) < 0.95


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        clopper_pearson_lower(successes, trials, 0.01)


def exact_capital(draws: list[Fraction]) -> Fraction:
    """Return the mixture's largest capital by exact arithmetic."""
    capitals, largest = [Fraction(1)] * len(BETS), Fraction(1)
    for draw in draws:
        capitals = [capital * (1 + bet * draw) for capital, bet in zip(capitals, BETS, strict=True)]
        largest = max(largest, sum(capitals, Fraction(0)) / len(BETS))
    return largest


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-64, 64), max_size=40))
def test_the_capital_is_that_of_exact_arithmetic(numerators: list[int]) -> None:
    """Logarithms of sums of products are easy to get wrong; fractions are not."""
    test = BettingTest((1,))
    for numerator in numerators:
        test.update(torch.tensor([numerator / 64]), torch.tensor([0]))
    largest = exact_capital([Fraction(n, 64) for n in numerators])
    assert float(test.log_largest[0]) == pytest.approx(math.log(largest), abs=1e-9)


def signs(generator: torch.Generator, count: int) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator) * 2.0 - 1


def uniform(generator: torch.Generator, count: int) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64) * 2 - 1


def rare_gain(generator: torch.Generator, count: int) -> Tensor:
    return torch.where(torch.rand(count, generator=generator) < 1 / 17, 1.0, -1 / 16)


def rare_loss(generator: torch.Generator, count: int) -> Tensor:
    return torch.where(torch.rand(count, generator=generator) < 1 / 17, -1.0, 1 / 16)


def negative(generator: torch.Generator, count: int) -> Tensor:
    return (signs(generator, count) - 0.1).clamp(-1, 1) * 0.5


@pytest.mark.parametrize("draw", [signs, uniform, rare_gain, rare_loss, negative])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_no_more_false_alarms_than_the_level_however_often_one_looks(
    draw: Callable[[torch.Generator, int], Tensor], level: float
) -> None:
    """3000 games whose mean is not positive, looked at after every one of 200 draws.

    The count of alarms may reach what a binomial of that level reaches with probability 1e-6.
    """
    generator, games = torch.Generator().manual_seed(11), 3000
    test, rows = BettingTest((games,)), torch.arange(games)
    for _ in range(200):
        test.update(draw(generator, games), rows)
    alarms = int(test.positive(level).sum())
    assert stats.binom.sf(alarms - 1, games, level) > 1e-6, f"{alarms} of {games}"


def test_false_alarms_stay_rare_when_stakes_follow_the_past() -> None:
    """Draws need not be independent: here each is larger after a win, as an adversary would choose."""
    generator, games = torch.Generator().manual_seed(12), 3000
    test, rows, size = BettingTest((games,)), torch.arange(games), torch.full((games,), 0.5)
    for _ in range(200):
        draws = signs(generator, games) * size
        test.update(draws, rows)
        size = torch.where(draws > 0, 1.0, 0.25)
    assert stats.binom.sf(int(test.positive(0.05).sum()) - 1, games, 0.05) > 1e-6


@pytest.mark.parametrize("mean", [0.2, 0.5, 0.9])
def test_a_clearly_positive_mean_is_found(mean: float) -> None:
    """Heavy +-1 noise around the mean, the worst case: 4000 draws leave even mean .2 no way out.

    There the bet 1/16 alone gains 42 +- 4 nats, and log(5 / 1e-6) = 15.4 are needed.
    """
    generator, games = torch.Generator().manual_seed(13), 50
    test, rows = BettingTest((games,)), torch.arange(games)
    for _ in range(4000):
        test.update(torch.where(torch.rand(games, generator=generator) < (1 + mean) / 2, 1.0, -1.0), rows)
    assert bool(test.positive(1e-6).all())


def test_a_decision_stands() -> None:
    """Once the capital was reached, later losses do not take the verdict back."""
    test, row = BettingTest((1,)), torch.tensor([0])
    for draw in [1.0] * 12 + [-1.0] * 50:
        test.update(torch.tensor([draw]), row)
    assert bool(test.positive(0.01).all())


@pytest.mark.parametrize("bad", [float("nan"), 1.0001, -1.0001, float("inf")])
def test_draws_out_of_range_are_refused(bad: float) -> None:
    """Outside [-1, 1] the capital could become negative and the guarantee void; NaN would decide at random."""
    test = BettingTest((2,))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        test.update(torch.tensor([0.0, bad]), torch.tensor([0, 1]))
    assert bool((test.log_largest == 0).all())


def test_an_update_touches_its_rows_only() -> None:
    """Images that are decided get no more passes; the others' capital must not move with them."""
    test = BettingTest((3, 2))
    test.update(torch.ones(1, 2), torch.tensor([1]))
    assert test.log_largest.tolist() == [[0, 0], [pytest.approx(test.log_largest[1, 0].item())] * 2, [0, 0]]
    assert float(test.log_largest[1, 0]) == pytest.approx(math.log(exact_capital([Fraction(1)])))


@pytest.mark.parametrize(("images", "error_rate"), [(1, 1e-6), (20, 1e-6), (360, 1e-6), (10, 1e-3)])
def test_unanimous_images_need_as_many_passes_as_the_formula_says(images: int, error_rate: float) -> None:
    """All probability on one class: every gap is 1, the capital after n passes is the mean of (1 + bet)**n.

    It has to reach images / error_rate, so n is a little above log2 of that.
    """
    goal = images / Fraction(error_rate).limit_denominator(10**9)
    needed = next(n for n in range(200) if sum((1 + bet) ** n for bet in BETS) / len(BETS) >= goal)
    assert math.log2(goal) <= needed <= math.log2(goal) + math.log2(len(BETS)) + 1
    test = LeadingClassTest(torch.zeros(images, dtype=torch.long), 10)
    certain = torch.nn.functional.one_hot(torch.zeros(images, dtype=torch.long), 10).float()
    for passes in range(1, needed + 1):
        assert not bool(test.leading(error_rate).any()), passes
        test.update(certain, torch.arange(images))
    assert bool(test.leading(error_rate).all())
    assert not bool(test.overtaken(error_rate).any())


def test_the_passes_of_the_embedded_images() -> None:
    """360 images at 1e-6, by hand: 2**31 / 5 = 4.3e8 is the first above 3.6e8."""
    goal = 360 / Budget().alpha
    assert 2**31 / 5 >= goal > sum(float(1 + bet) ** 30 for bet in BETS) / 5


def simulated(means: Tensor, leaders: Tensor, passes: int, concentration: float) -> LeadingClassTest:
    """Run the test on Dirichlet draws around known mean probabilities."""
    drawn = torch.distributions.Dirichlet(means.double() * concentration)
    test, rows = LeadingClassTest(leaders, means.shape[1]), torch.arange(len(means))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(14)
        for _ in range(passes):
            test.update(drawn.sample(), rows)
    return test


@pytest.mark.parametrize("concentration", [0.3, 3.0, 30.0])
def test_decisions_on_a_grid_of_known_means_are_never_wrong(concentration: float) -> None:
    """From a tie to a landslide, with the asked class ahead or behind: undecided is fine, wrong is not.

    The chance that any decision is wrong is 1e-3 by design, for each of the three kinds of noise.
    """
    gaps = torch.linspace(0, 0.6, 25)
    ahead = torch.stack([torch.tensor([0.2, 0.2, 0.1, 0.1]) + torch.tensor([g, 0, 0, 0]) for g in gaps])
    means = torch.cat([ahead, ahead]) / torch.cat([ahead, ahead]).sum(1, keepdim=True)
    leaders = torch.cat([torch.zeros(25, dtype=torch.long), torch.ones(25, dtype=torch.long)])
    test = simulated(means, leaders, 300, concentration)
    strictly_leads = torch.cat([gaps > 0, torch.zeros(25, dtype=torch.bool)])
    strictly_behind = torch.cat([torch.zeros(25, dtype=torch.bool), gaps > 0])
    assert not bool((test.leading(1e-3) & ~strictly_leads).any())
    assert not bool((test.overtaken(1e-3) & ~strictly_behind).any())
    assert bool(test.leading(1e-3)[gaps.argmax()])
    assert bool(test.overtaken(1e-3)[25 + gaps.argmax()])


def test_a_class_that_is_second_everywhere_is_overtaken() -> None:
    """One class ahead is enough, whichever it is, and says nothing about the other images."""
    test = LeadingClassTest(torch.tensor([0, 0]), 3)
    for _ in range(200):
        test.update(torch.tensor([[0.3, 0.1, 0.6], [0.6, 0.3, 0.1]]), torch.arange(2))
    assert test.overtaken(1e-3).tolist() == [True, False]
    assert test.leading(1e-3).tolist() == [False, True]


def test_probabilities_that_are_nan_are_refused() -> None:
    """A network that returns NaN has no leading class; the caller says so, not a coin."""
    test = LeadingClassTest(torch.tensor([0]), 2)
    with pytest.raises(ValueError, match="NaN"):
        test.update(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]))


def test_the_budget_is_split_and_follows_the_settings() -> None:
    """--bnn-alpha reaches a plain assert; six checks of an audit stay within one budget."""
    share = Budget(alpha=1e-6, beta=1e-3).split(6)
    assert [6 * share.alpha, 6 * share.beta] == pytest.approx([1e-6, 1e-3])
    assert budget_in_force() == Budget()
    with using(Settings(alpha=1e-4, beta=0.01)):
        assert budget_in_force() == Budget(alpha=1e-4, beta=0.01)


@pytest.mark.parametrize("value", [0, 0.5, -1, math.nan, True, "1e-6"])
def test_a_budget_that_is_no_error_rate_is_refused(value: object) -> None:
    """With alpha 0 nothing could ever fail, silently."""
    with pytest.raises(ValueError, match="alpha must lie between"):
        Budget(alpha=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("error_rate", [1e-3, 1e-6])
def test_the_counts_that_decide_are_those_of_the_exact_capital(error_rate: float) -> None:
    """In exact fractions; and more wins are never less."""
    for trials in range(1, 40):
        capital = [
            sum((1 + bet) ** wins * (1 - bet) ** (trials - wins) for bet in BETS) / len(BETS)
            for wins in range(trials + 1)
        ]
        enough = [wins for wins, value in enumerate(capital) if value * Fraction(error_rate) >= 1]
        assert certain_majority(trials, error_rate) == (enough[0] if enough else None)
        assert not enough or enough[-1] - enough[0] + 1 == len(enough)
    assert certain_majority(trials_needed(error_rate), error_rate) == trials_needed(error_rate)


def test_the_bound_is_never_laxer_than_the_exact_binomial_one() -> None:
    """Scipy's sign test at one fixed number of trials is what it costs to be allowed to look after each."""
    for trials in range(10, 200, 10):
        heads = certain_majority(trials, 1e-3)
        assert heads is None or stats.binomtest(heads, trials, 0.5, alternative="greater").pvalue <= 1e-3


@pytest.mark.parametrize("name", ["norm", "cauchy", "lognorm", "bernoulli"])
def test_the_median_is_between_its_bounds_however_heavy_the_tails(name: str) -> None:
    """Looked at after every trial up to 200: a bound at 1 in 100 may be wrong in 1 of 100 runs, at any time.

    Cauchy has no moments, the log-normal is skewed, the coin is nothing but ties.
    """
    law: Any = {
        "norm": stats.norm(), "cauchy": stats.cauchy(), "lognorm": stats.lognorm(2.0), "bernoulli": stats.bernoulli(0.5)
    }[name]  # fmt: skip
    draws = torch.as_tensor(law.rvs((200, 500), random_state=5), dtype=torch.float64)
    median = float(law.median())
    wrong = torch.zeros(2, 500, dtype=torch.bool)
    for trials in range(1, 201):
        low, high = median_bounds(draws[:trials], 0.01)
        wrong |= torch.stack([low > median, high < median])
    # 5 expected at most; 15 and more have a chance of 1e-4 in 500 runs at 1 in 100.
    assert int(wrong.sum(1).max()) < 15
    assert bool((low <= high).all())
    if name != "bernoulli":
        assert float((high - low).median()) < float(law.ppf(0.8) - law.ppf(0.2))


@given(st.floats(1e-12, 0.5, exclude_max=True))
@settings(deadline=None)
def test_draws_that_all_lie_below_their_median_are_a_sign_test(error_rate: float) -> None:
    """Scipy's sign test is the oracle: so many are enough, one less is not."""
    draws = draws_below_median(error_rate)
    assert stats.binomtest(draws, draws, 0.5, alternative="greater").pvalue <= error_rate
    assert draws == 1 or stats.binomtest(draws - 1, draws - 1, 0.5, alternative="greater").pvalue > error_rate


def test_powers_of_one_half_are_reached_exactly() -> None:
    assert [draws_below_median(2.0**-n) for n in range(1, 40)] == list(range(1, 40))
    assert draws_below_median(math.nextafter(2.0**-20, 0)) == 21


def test_too_few_trials_bound_nothing() -> None:
    low, high = median_bounds(torch.ones(trials_needed(1e-6) - 1, 3), 1e-6)
    assert low.tolist() == [-math.inf] * 3
    assert high.tolist() == [math.inf] * 3


def test_images_that_carry_a_claim_about_a_population() -> None:
    """At .95 and 1e-6: 270 images that all agree, and 359 of 360; scipy's binomial test is the oracle."""
    assert trials_for_share(0.95, 1.0, 1e-6) == 270
    assert stats.binomtest(270, 270, 0.95, alternative="greater").pvalue <= 1e-6
    assert stats.binomtest(269, 269, 0.95, alternative="greater").pvalue > 1e-6
    assert clopper_pearson_lower(359, 360, 1e-6) > 0.95 > clopper_pearson_lower(358, 360, 1e-6)
    assert trials_for_share(0.95, 0.95, 1e-6) is None
    assert trials_for_share(0.9, 0.95, 1e-3) == next(
        n for n in range(1, 2000) if stats.binomtest(int(0.95 * n + 1e-9), n, 0.9, alternative="greater").pvalue <= 1e-3
    )


def test_the_upper_bound_is_that_of_scipy() -> None:
    exact = stats.binomtest(7, 30).proportion_ci(confidence_level=0.98, method="exact")
    assert clopper_pearson_upper(7, 30, 0.01) == pytest.approx(exact.high)
    assert clopper_pearson_upper(30, 30, 0.01) == 1


def _draws(count: int, offset: float = 1e6) -> Tensor:
    return offset + torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [7, 30], [5, 5, 40]])
def test_moments_of_blocks_are_numpys_of_all(cuts: list[int]) -> None:
    """Taken block by block, empty ones too, or merged from others; far from zero, where sums of squares cancel."""
    draws = _draws(41)
    taken, merged, mean = Moments(), Moments(), Mean()
    for block in draws.tensor_split(cuts):
        part = Moments()
        part.take(block)
        merged.merge(part)
        taken.take(block)
        mean.take(block)
    for found in (taken, merged):
        assert found.count == 41
        numpy.testing.assert_allclose(found.mean, numpy.mean(draws.numpy(), axis=0), rtol=1e-15)
        numpy.testing.assert_allclose(found.variance, numpy.var(draws.numpy(), axis=0, ddof=1), rtol=1e-9)
    other = Mean()
    other.merge(mean)
    numpy.testing.assert_allclose(other.mean, numpy.mean(draws.numpy(), axis=0), rtol=1e-15)


def test_moments_of_equal_draws_are_exact() -> None:
    """A third is no binary number: a mean of sums would be off by a rounding, and the variance not 0."""
    found, other = Moments(), Moments()
    for moments in (found, other):
        moments.take(torch.full((7, 2), 1 / 3))
    found.merge(other)
    assert found.count == 14
    assert torch.equal(found.mean, torch.full((2,), 1 / 3))
    assert torch.equal(found.variance, torch.zeros(2))


def test_moments_of_one_draw_and_of_none() -> None:
    """One has a mean and no variance; none changes nothing; a mean alone cannot be merged into a variance."""
    found, empty = Moments(), Moments()
    found.take(torch.tensor([[2.0]]))
    found.merge(empty)
    assert (found.count, float(found.mean)) == (1, 2.0)
    assert bool(found.variance.isnan().all())
    with pytest.raises(TypeError, match="mean alone"):
        found.merge(Mean())


def test_a_block_that_was_taken_is_not_held() -> None:
    """What is written into it later changes nothing."""
    block = torch.ones(2, 3)
    found = Moments()
    found.take(block)
    block.fill_(5)
    assert torch.equal(found.mean, torch.ones(3))
