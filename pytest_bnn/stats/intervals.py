"""Confidence bounds of medians and shares. Each names its source; none needs the data to be Gaussian."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pytest_bnn.stats.betting import certain_majority

if TYPE_CHECKING:
    from torch import Tensor


def trials_needed(error_rate: float) -> int:
    """Return the least number of trials that decides anything in `median_bounds`: where all of them agree."""
    trials = 1
    while certain_majority(trials, error_rate) is None:
        trials += 1
    return trials


def draws_below_median(error_rate: float) -> int:
    """Return how many independent draws all lie below their median with a chance of at most ``error_rate``.

    Whatever their distribution: each does with a chance of at most one half, so it is the least n with
    ``2**-n <= error_rate``. This is the sign test, where the number of draws is settled beforehand.
    """
    return 1 - math.frexp(error_rate)[1]


def median_bounds(values: Tensor, error_rate: float) -> tuple[Tensor, Tensor]:
    """Return a lower and an upper confidence bound of the median of each column, each wrong with ``error_rate``.

    The values of a column, ``[trials, ...]``, are independent draws of one distribution, of which nothing is assumed:
    no moments, no symmetry, no density. The bounds are order statistics. They hold together for every number of
    trials, so that one may look after each and stop when one likes. Where there are too few trials they are infinite.

    Source: Howard and Ramdas 2022, "Sequential estimation of quantiles", by the betting test of
    Waudby-Smith and Ramdas 2024 for the share of values beyond a point.
    """
    trials = len(values)
    needed = certain_majority(trials, error_rate)
    if needed is None:
        infinite = torch.full(values.shape[1:], math.inf, dtype=values.dtype)
        return -infinite, infinite
    ordered = values.sort(0).values
    return ordered[trials - needed], ordered[needed - 1]


def clopper_pearson_lower(successes: int, trials: int, error_rate: float) -> float:
    """Return the exact lower confidence bound of a share, one-sided, at level ``1 - error_rate``.

    Source: Clopper and Pearson 1934, by the beta quantile of scipy.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes in {trials} trials are impossible")
    if successes == 0:
        return 0.0
    from scipy.stats import beta

    return float(beta.ppf(error_rate, successes, trials - successes + 1))


def clopper_pearson_upper(successes: int, trials: int, error_rate: float) -> float:
    """Return the exact upper confidence bound of a share, one-sided, at level ``1 - error_rate``."""
    return 1 - clopper_pearson_lower(trials - successes, trials, error_rate)


def trials_for_share(share: float, observed: float, error_rate: float) -> int | None:
    """Return how many trials, of which the share ``observed`` succeeds, carry the claim of at least ``share``.

    None where no number does: the observed share is not above the claimed one. By bisection of `clopper_pearson_lower`.
    """

    def carries(trials: int) -> bool:
        return clopper_pearson_lower(math.floor(observed * trials + 1e-9), trials, error_rate) >= share

    if observed <= share:
        return None
    low, high = 1, 1
    while not carries(high):
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if carries(middle) else (middle + 1, high)
    return high


def hoeffding_radius(ranges: Tensor, error_rate: float) -> float:
    """Return by how much the mean of independent variables exceeds its expectation with at most ``error_rate``.

    Args:
        ranges: How far each of them can go, ``[N]``; fixed before it is seen.
        error_rate: Of one side.

    Source: Hoeffding 1963, "Probability inequalities for sums of bounded random variables", theorem 2.
    """
    return hoeffding_radius_of(float(ranges.double().square().sum()), len(ranges), error_rate)


def hoeffding_radius_of(squares: float, count: int, error_rate: float) -> float:
    """Return `hoeffding_radius` for the sum of the squares of ``count`` ranges."""
    return math.sqrt(-math.log(error_rate) * squares / 2) / count


#: What the bounds at any time are mixed of: good for sums of squared ranges from 1e-6 to 1e7, to within a tenth.
_RATES = tuple(2.0**power for power in range(-12, 17))


def radius_at_any_time(squares: float, count: int, error_rate: float) -> float:
    """Return `hoeffding_radius`, which holds for all numbers of variables together: one may stop when one likes.

    Args:
        squares: Sum of the squares of the ranges so far; each is known before its variable is seen.
        count: How many variables there are so far.
        error_rate: Of one side, at all times together.

    Source: Howard, Ramdas, McAuliffe and Sekhon 2020, "Time-uniform Chernoff bounds via nonnegative supermartingales":
    a line for each of some rates, all of them together by Bonferroni.
    """
    reach = math.log(len(_RATES) / error_rate)
    return min(reach / rate + rate * squares / 8 for rate in _RATES) / count


def chance_at_any_time(beyond: float, squares: float) -> float:
    """Return the chance that a sum of variables ever exceeds its expectation so far, at most.

    Args:
        beyond: By how much it does.
        squares: As in `radius_at_any_time`.
    """
    return min(1.0, len(_RATES) * math.exp(min(rate * (rate * squares / 8 - beyond) for rate in _RATES)))


def distance_radius(count: int, error_rate: float) -> float:
    """Return how far an empirical distribution function is from the mean of the true ones, but for ``error_rate``.

    Args:
        count: How many independent numbers it is made of; each may have a distribution of its own.
        error_rate: Of both sides together.

    Source: Dvoretzky, Kiefer and Wolfowitz 1956, with the constant of Massart 1990, and Bretagnolle's factor e for
    numbers that are not distributed alike (Shorack and Wellner 1986, inequality 25.1.2).
    """
    return math.sqrt((1 + math.log(2 / error_rate)) / 2 / count)


def pairs_bounds(share: float, pairs: int, error_rate: float) -> tuple[float, float]:
    """Return bounds of the chance behind a U-statistic with values in [0, 1], each wrong with ``error_rate``.

    Args:
        share: The mean over all pairs of an example of one sample and one of another.
        pairs: How many of them are independent: the size of the smaller sample.
        error_rate: Of one side.

    Source: Hoeffding 1963, section 5b: such a mean is one of means of independent pairs; theorem 1 in its first form.
    """
    allowed = -math.log(error_rate) / max(1, pairs)

    def end(outside: float) -> float:
        if _divergence(share, outside) <= allowed:
            return outside
        inside = share
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if _divergence(share, middle) <= allowed else (inside, middle)
        return outside

    return end(0.0), end(1.0)


def _divergence(one: float, other: float) -> float:
    """Return the Kullback-Leibler divergence of two coins, in nats."""
    total = 0.0
    for p, q in ((one, other), (1 - one, 1 - other)):
        if p > 0:
            total += math.inf if q <= 0 else p * math.log(p / q)
    return total
