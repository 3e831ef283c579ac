"""What passes say of numbers together: a mixture of one normal distribution a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: How far out normal distributions are looked at, in their standard deviations, and predictions at how many points.
_END, _REACH, _POINTS = 8.0, 6.0, 64

#: Numbers held at a time.
_BLOCK = 4_000_000

#: In the place of a standard deviation of 0.
_POINT_MASS = 1e-300


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Normals:
    """Predictive distributions of ``N`` numbers: of each the mean over ``S`` passes of normal distributions.

    Attributes:
        means: Of each pass, ``[S, N]``, in float64.
        deviations: Their standard deviations, ``[S, N]``; 0 where a pass gives a number alone.
    """

    means: Tensor
    deviations: Tensor

    def __len__(self) -> int:
        return self.means.shape[1]

    def __getitem__(self, rows: Tensor) -> Normals:
        """Return some of the numbers."""
        return Normals(means=self.means[:, rows], deviations=self.deviations[:, rows])

    @property
    def passes(self) -> int:
        """How many there are."""
        return len(self.means)

    @property
    def mean(self) -> Tensor:
        """Of the mixture, ``[N]``."""
        return self.means.mean(0)

    @property
    def between(self) -> Tensor:
        """Variance of the passes' means, unbiased, ``[N]``: the part that the passes disagree on; 0 for one pass."""
        return self.means.var(0) if self.passes > 1 else torch.zeros_like(self.mean)

    @property
    def within(self) -> Tensor:
        """Mean of the passes' own variances, ``[N]``."""
        return self.deviations.square().mean(0)

    def scaled(self, scale: Tensor) -> Normals:
        """Return them in units of ``scale``, ``[N]``."""
        return Normals(means=self.means / scale, deviations=self.deviations / scale)

    def scores(self, values: Tensor) -> Tensor:
        """Return what numbers are in units of their distribution: the standard normal quantile of ``P(X <= value)``.

        Of one pass it is ``(value - mean) / deviation``. It is exact far out, where the probability is 0 to a float.

        Args:
            values: ``[N]``.
        """
        from scipy.special import ndtri_exp

        z = (values - self.means) / self.deviations
        below = torch.logsumexp(torch.special.log_ndtr(z), 0) - math.log(self.passes)
        above = torch.logsumexp(torch.special.log_ndtr(-z), 0) - math.log(self.passes)
        tail = torch.from_numpy(ndtri_exp(torch.minimum(below, above).clamp_max(0.0).numpy()))
        return torch.where(below <= above, tail, -tail)

    def crps(self, values: Tensor) -> Tensor:
        """Return the continuous ranked probability score of each number, ``[N]``; the smaller, the better.

        Without the bias of a finite number of passes: it is that of the mixture of infinitely many, in the mean. One
        pass alone is taken as it is. In the units of the numbers; of numbers without a spread the absolute error.

        Args:
            values: ``[N]``.

        Source: Grimit et al. 2006, "The continuous ranked probability score for circular variables and its application
        to mesoscale forecast ensemble verification", equation 5; Gneiting and Raftery 2007, equation 21; Ferro 2014.
        """
        passes = self.passes
        near = _mean_distance(values - self.means, self.deviations).mean(0)
        if passes == 1:
            return near - self.crps_within()
        inner = torch.zeros_like(near)
        for one in range(1, passes):
            wide = (self.deviations[one].square() + self.deviations[:one].square()).sqrt()
            inner += _mean_distance(self.means[one] - self.means[:one], wide).sum(0)
        return near - inner / (passes * (passes - 1))

    def crps_of_one_pass(self, values: Tensor) -> Tensor:
        """Return the mean over passes of the score that a pass has alone, ``[N]``."""
        return _mean_distance(values - self.means, self.deviations).mean(0) - self.crps_within()

    def crps_within(self) -> Tensor:
        """Return half of the mean distance of two draws of the same pass, ``[N]``."""
        return self.deviations.mean(0) / math.sqrt(math.pi)


def _mean_distance(gap: Tensor, deviation: Tensor) -> Tensor:
    """Return the mean absolute value of a normal variable."""
    z = gap / deviation.clamp_min(_POINT_MASS)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return 2 * deviation * density + gap * torch.erf(z / math.sqrt(2))


def ranges_of_difference(one: Normals, other: Normals) -> Tensor:
    """Return how far the difference of two predictions' CRPS can go, by the number that occurs alone, ``[N]``.

    Its derivative is ``2 (F - G)``, by the two distribution functions. It is never too small: between two points it is
    bounded by what the functions are at both.
    """
    rows = max(1, _BLOCK // ((2 * _POINTS + 2 * (one.passes + other.passes)) * (one.passes + other.passes)))
    found = [_ranges(one[part], other[part]) for part in torch.arange(len(one)).split(rows)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _points(one: Normals, other: Normals) -> Tensor:
    """Return where the difference is looked at, in order, ``[points, N]``."""
    means, deviations = torch.cat([one.means, other.means]), torch.cat([one.deviations, other.deviations])
    points = [(means - _END * deviations).amin(0)[None], (means + _END * deviations).amax(0)[None]]
    places = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)[:, None]
    if bool(deviations.any()):
        for number, each in enumerate((one, other)):
            # Those of the one lie between those of the other: where the two are alike, the grid is the finer.
            spread = (each.within + each.between).sqrt()
            points.append(each.mean + spread * (places + number * _REACH / _POINTS))
    if bool((deviations == 0).any()):
        points.append(means)  # it bends there
    return torch.cat(points).sort(0).values


def _ranges(one: Normals, other: Normals) -> Tensor:
    points = _points(one, other)
    gap = _near(one, points) - _near(other, points)
    f, g = _below(one, points), _below(other, points)
    width = points[1:] - points[:-1]
    if not bool(one.deviations.any() or other.deviations.any()):
        width = torch.zeros_like(width)  # it is straight between the points
    rise = torch.maximum(
        gap[:-1] + width * (f[1:] - g[:-1]).clamp_min(0), gap[1:] + width * (g[1:] - f[:-1]).clamp_min(0)
    )
    fall = torch.minimum(
        gap[:-1] - width * (g[1:] - f[:-1]).clamp_min(0), gap[1:] - width * (f[1:] - g[:-1]).clamp_min(0)
    )
    return rise.amax(0) - fall.amin(0)


def _near(one: Normals, points: Tensor) -> Tensor:
    return _mean_distance(points[None] - one.means[:, None], one.deviations[:, None]).mean(0)


def _below(one: Normals, points: Tensor) -> Tensor:
    z = (points[None] - one.means[:, None]) / one.deviations[:, None].clamp_min(_POINT_MASS)
    share: Tensor = torch.special.ndtr(z).mean(0)
    return share
