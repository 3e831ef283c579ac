"""Are draws N(0, 1) and independent? Exact tests of mean, variance, shape and correlation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

#: The most draws in a test of the shape: enough for a Kolmogorov-Smirnov distance of 0.05 at any error rate in use.
SHAPE_DRAWS = 16384

#: Entries are left out where the rounding of mu exceeds this share of sigma: their noise is the grid's.
ROUNDING = 0.1

_LARGEST_SCORE = 37.0  # beyond it, normal tails underflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the tests of mean and variance need: sums over ``count`` standardised draws.

    ``slack`` is the mean, over the draws, of the most by which rounding moves one of them.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    slack: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        count = self.count + other.count
        slack = (self.slack * self.count + other.slack * other.count) / max(1, count)
        return Sums(count=count, total=self.total + other.total, squares=self.squares + other.squares, slack=slack)

    @property
    def scale(self) -> float:
        """The root mean square: 1 where sigma is what the posterior says."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def mean_p(self) -> float:
        """Return the p-value of a mean of 0: the z-test, two-sided; variance 1 is part of the hypothesis."""
        from scipy.stats import norm

        z = abs(self.total) / math.sqrt(self.count) - self.slack * math.sqrt(self.count)
        return min(1.0, 2 * float(norm.sf(z)))

    def variance_p(self) -> float:
        """Return the p-value of variance 1 about mean 0: the chi-square test, two-sided.

        Rounding by at most r a draw moves the mean square by at most 2 r E|z| + r^2 = r (1.6 + r).
        """
        from scipy.stats import chi2

        low, high = _bounds(self.slack)
        upper = float(chi2.sf(self.squares / high, self.count))
        lower = float(chi2.cdf(self.squares / low, self.count)) if low > 0 else 1.0
        return min(1.0, 2 * min(upper, lower))


def _bounds(slack: float) -> tuple[float, float]:
    by = slack * (2 * math.sqrt(2 / math.pi) + slack)
    return 1 - by, 1 + by


def effect(count: int, level: float, power: float, slack: float = 0.0) -> float:
    """Return the relative error of sigma that ``count`` draws show at ``level`` with this power, in either direction.

    Source: the power function of the chi-square test of a variance, solved for the ratio of variances.
    """
    from scipy.stats import chi2

    low, high = _bounds(slack)
    wider = math.sqrt(float(chi2.isf(level / 2, count)) * high / float(chi2.ppf(1 - power, count))) - 1
    least = float(chi2.ppf(level / 2, count)) * max(low, 0.0)
    narrower = 1 - math.sqrt(least / float(chi2.isf(1 - power, count)))
    return max(wider, narrower)


def draws_needed(target: float, level: float, power: float) -> int:
    """Return how many draws show a relative error ``target`` of sigma at ``level`` with this power."""
    low, high = 1, 2
    while effect(high, level, power) > target:
        low, high = high, 2 * high
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (middle, high) if effect(middle, level, power) > target else (low, middle)
    return high


def shape_p(draws: Tensor, slack: float) -> float:
    """Return the p-value of N(0, 1) by the exact Kolmogorov-Smirnov test; rounding moves the distribution by ``slack``.

    Source: Massey 1951; the exact distribution is scipy's ``kstwo``.
    """
    from scipy.stats import kstwo, norm

    found = norm.cdf(draws.double().cpu().sort().values.numpy())
    n = len(found)
    steps = torch.arange(n + 1, dtype=torch.float64).numpy() / n
    distance = max(float((steps[1:] - found).max()), float((found - steps[:-1]).max()))
    return float(kstwo.sf(max(0.0, distance - slack / math.sqrt(2 * math.pi)), n))


def correlation_scores(cosines: Tensor, sizes: Tensor) -> Tensor:
    """Turn cosines of independent isotropic vectors of these sizes into standard normal scores, exactly.

    Whatever the other vector is, ``r sqrt((n - 1) / (1 - r^2))`` has Student's t distribution with n - 1 degrees of
    freedom. Source: Fisher 1915; Muirhead 1982, theorem 1.5.7. Needs sizes of at least 2.
    """
    from scipy.stats import norm, t

    r = cosines.double().clamp(-1, 1)
    freedom = (sizes - 1).double()
    student = r.abs() * (freedom / (1 - r.square()).clamp_min(1e-30)).sqrt()
    scores = norm.isf(t.sf(student.numpy(), freedom.numpy()))
    return r.sign() * torch.as_tensor(scores, dtype=torch.float64).clamp_max(_LARGEST_SCORE)


def score_p(scores: Tensor) -> Tensor:
    """Return the two-sided p-values of standard normal scores."""
    from scipy.stats import norm

    return torch.as_tensor(2 * norm.sf(scores.abs().numpy()), dtype=torch.float64)


def compared(size: int, rounds: Iterable[tuple[list[Tensor], list[Tensor]]]) -> tuple[Tensor, Tensor]:
    """Return the p-values of independence of each of so many heads (row) and each of as many others; mean cosines.

    Each round is compared on the entries that two heads have in common; scores add up over rounds, which are
    independent. Without entries in common p is 1.
    """
    found = [_cosines(one, other) for one, other in rounds]
    cosines = torch.stack([torch.zeros(size, size, dtype=torch.float64), *(cosine for cosine, _ in found)])
    common = torch.stack([torch.zeros(size, size, dtype=torch.float64), *(common for _, common in found)])
    usable = common > 1
    scores = torch.zeros_like(cosines)
    scores[usable] = correlation_scores(cosines[usable], common[usable])
    compared = usable.sum(0)
    p = torch.where(compared > 0, score_p(scores.sum(0) / compared.clamp_min(1).sqrt()), 1.0)
    return p, torch.where(usable, cosines, 0).sum(0) / compared.clamp_min(1)


def squares_p(total: float, count: int) -> float:
    """Return the p-value of a sum of squares of so many standard normal scores: are they too large together?"""
    from scipy.stats import chi2

    return float(chi2.sf(total, count)) if count else 1.0


def any_dependence(values: Tensor) -> Tensor:
    """Merge p-values ``[trials, ...]`` of one hypothesis into one each, however the trials depend on each other.

    The k-th smallest of m times m / k is a p-value; k is half of m, so that what one trial alone shows counts little.

    Source: Rueger 1978; Vovk and Wang 2020, "Combining p-values via averaging", section 1.
    """
    k = (len(values) + 1) // 2
    return (values.double().sort(0).values[k - 1] * len(values) / k).clamp(max=1)


def _cosines(one: list[Tensor], other: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cosines of each two heads on the entries that both have, and how many these are."""
    width = max(len(head) for head in [*one, *other])
    return masked_cosines(_rows(one, width), _rows(other, width))


def masked_cosines(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the cosines of each two rows on the entries that both have, and how many these are.

    Args:
        one: Rows of numbers, 0 where there is none, and 1 where there is one.
        other: As many entries a row.
    """
    (a, has_a), (b, has_b) = one, other
    lengths = ((a.square() @ has_b.T) * (has_a @ b.square().T)).sqrt()
    return torch.where(lengths > 0, a @ b.T / lengths.clamp_min(1e-300), 0), has_a @ has_b.T


def _rows(heads: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """Stack heads of several lengths, filled up with 0; and which entries they have."""
    values = torch.zeros(len(heads), width, dtype=torch.float64)
    here = torch.zeros_like(values)
    for row, head in enumerate(heads):
        values[row, : len(head)] = head.double()
        here[row, : len(head)] = 1
    return values, here
