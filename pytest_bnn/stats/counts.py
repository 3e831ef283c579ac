"""How likely counts are: of answers that are right, of rows that repeat, of labels in order. Exact, no simulation."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def at_most(successes: int, chances: Tensor) -> float:
    """Return the probability of at most so many successes in independent trials with these chances, each in [0, 1].

    Source: the Poisson-binomial distribution, by convolution (Hong 2013, "On computing the distribution function for
    the Poisson binomial distribution").
    """
    if successes >= len(chances):
        return 1.0
    if successes < 0:
        return 0.0
    # The probability of each number of successes so far, up to the number asked about.
    found = torch.zeros(successes + 1, dtype=torch.float64)
    found[0] = 1.0
    for chance in chances.double().clamp(0, 1).tolist():
        moved = found * chance
        found -= moved
        found[1:] += moved[:-1]
    return min(1.0, float(found.sum()))


def at_least_of_fair(successes: int, trials: int) -> float:
    """Return the probability of at least so many successes in trials with chance one half: the sign test, one-sided."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, 0.5))


def chance_of_equal_counts(rows: int, distinct: int) -> float:
    """Return the probability that each of so many equally frequent things occurs equally often in so many draws.

    Things that are not equally frequent do with a smaller one. 0 where the rows cannot be shared out.
    """
    if rows % distinct:
        return 0.0
    each = rows // distinct
    return math.exp(math.lgamma(rows + 1) - distinct * math.lgamma(each + 1) - rows * math.log(distinct))


def chance_of_order(counts: Iterable[int]) -> float:
    """Return the probability that things of several kinds, so many of each, come sorted in a random order."""
    numbers = [count for count in counts if count]
    return math.exp(sum(math.lgamma(count + 1) for count in numbers) - math.lgamma(sum(numbers) + 1))
