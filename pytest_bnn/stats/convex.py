"""Sums of convex functions of one number, known at some points: bounds and a guess in between. Such sums add up.

Below, a convex function lies on or above each of its tangents, and on or below the chord of two of its points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Convex:
    """A convex function, such as a sum of many, at some points.

    Attributes:
        points: Where it is known, ``[G]``, growing.
        values: What it is there, ``[G]``.
        slopes: How it grows there, ``[G]``.
    """

    points: Tensor
    values: Tensor
    slopes: Tensor

    def least(self, at: Tensor) -> Tensor:
        """Return what the function is at least, ``[M]``: the highest of its tangents."""
        return (self.values + self.slopes * (at[:, None] - self.points)).amax(1)

    def most(self, at: Tensor) -> Tensor:
        """Return what the function is at most, ``[M]``: the chord of the points around; infinite beyond the last."""
        left, share, width = self._between(at)
        chord = torch.lerp(self.values[left], self.values[left + 1], share)
        outside = (at < self.points[0]) | (at > self.points[-1])
        return torch.where(outside & (width > 0), torch.inf, chord)

    def near(self, at: Tensor) -> Tensor:
        """Return about what the function is, ``[M]``: the cubic of the values and slopes around, within both bounds."""
        left, share, width = self._between(at)
        rise = self.values[left + 1] - self.values[left]
        start, end = self.slopes[left] * width - rise, rise - self.slopes[left + 1] * width
        bent = share * (1 - share) * ((1 - share) * start + share * end)
        cubic = torch.lerp(self.values[left], self.values[left + 1], share) + bent
        return torch.minimum(torch.maximum(cubic, self.least(at)), self.most(at))

    def _between(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points left of some places, and where these lie between them and the next ones, from 0 to 1."""
        left = (torch.searchsorted(self.points, at, right=True) - 1).clamp(0, len(self.points) - 2)
        width = self.points[left + 1] - self.points[left]
        return left, ((at - self.points[left]) / width).clamp(0, 1), width
