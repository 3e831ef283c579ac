"""Numbers in units of their predictive distributions: what their spread and their distribution function say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_bnn.sampling.normals import Normals
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import distance_radius
from pytest_bnn.stats.likelihoods import Interval, scale

#: Numbers beyond so many standard deviations are outliers, where they are no more than this share of all.
FAR, FEW = 6.0, 0.01

#: The mean of the distance by chance alone, times the square root of the number of labels (Kolmogorov 1933).
CHANCE_DISTANCE = 0.87

#: From this mean of the standard scores on, and this many of its standard errors, predictions lie to one side.
_SHIFT, _ERRORS = 0.25, 4.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Standard:
    """What numbers in units of their predictive distributions say of these.

    Attributes:
        z: Their standard scores: standard normal where they follow the predictions.
        far: How many are outliers.
        surely: The factors of the spread that they allow, at half of alpha; of its lower end, without the outliers.
        likely: The same at half of beta, without the outliers.
        distance: Of their distribution function from the standard normal one.
        surely_apart: What it is at least, at half of alpha.
        likely_apart: What it is at most, at half of beta.
        about_shift: Their standard deviation where one shift of all predictions is taken out: the one nearer to 1, of a
            shift in predicted standard deviations and of one in units of the outputs.
    """

    z: Tensor
    far: int
    surely: Interval
    likely: Interval
    distance: float
    surely_apart: float
    likely_apart: float
    about_shift: float

    @classmethod
    def of(cls, predictions: Normals, occurred: Tensor, scales: Tensor, budget: Budget) -> Standard:
        """Compare what occurred with predictions.

        Args:
            predictions: Of ``N`` numbers.
            occurred: These, ``[N]``.
            scales: Of the output that each belongs to, ``[N]``.
            budget: Error rates, of which factor and distance have half each.
        """
        z = predictions.scores(occurred)
        half = budget.split(2)
        far = z.abs() > FAR
        few = 0 < int(far.sum()) <= max(1, int(FEW * len(z)))
        inner = scale(z[~far] if few else z)
        # Without the outliers the factor is the smaller: what is certain of it then is so with them.
        surely, whole = inner.interval(half.alpha).mapped(exp), scale(z).interval(half.alpha).mapped(exp)
        apart = distance(z)
        return cls(
            z=z,
            far=int(far.sum()) if few else 0,
            surely=replace(surely, high=max(surely.high, whole.high)) if few else surely,
            likely=inner.interval(half.beta).mapped(exp),
            distance=apart,
            surely_apart=apart - distance_radius(len(z), half.alpha),
            likely_apart=apart + distance_radius(len(z), half.beta),
            about_shift=_about_shift(predictions, occurred, scales, z),
        )

    @property
    def shift(self) -> float:
        """The mean, where it is certainly more than a little; else 0."""
        mean, error = float(self.z.mean()), float(self.z.std()) / math.sqrt(len(self.z)) if len(self.z) > 1 else 0.0
        return mean if abs(mean) > _SHIFT and abs(mean) > _ERRORS * error else 0.0


def _about_shift(predictions: Normals, occurred: Tensor, scales: Tensor, z: Tensor) -> float:
    apart = float(((occurred - predictions.mean) / scales).median())
    kept = z.abs() <= max(FAR, 2 * float(z.abs().median()))
    both = [one[kept] for one in (z, predictions.scores(occurred - apart * scales))]
    found = [float(one.std()) for one in both if len(one) > 1]
    return min(found, key=lambda spread: abs(math.log(max(spread, 1e-300))), default=math.nan)


def distance(z: Tensor) -> float:
    """Return the largest distance of the distribution function of numbers from the standard normal one."""
    below = torch.special.ndtr(z.double().sort().values)
    count = len(below)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    return float(torch.maximum(steps[1:] - below, below - steps[:-1]).max())


def exp(value: float) -> float:
    """Return the exponential of a log scale that may be infinite, or all but."""
    return math.exp(min(value, 700.0)) if value < math.inf else math.inf
