"""Mean and variance of draws that come block by block and are not kept.

Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", for the merged moments.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Mean:
    """The mean of draws, held relative to the first one: where all are equal it is exact.

    Attributes:
        count: How many draws were taken.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first = self._shift = torch.zeros(())

    def take(self, block: Tensor) -> None:
        """Take a block of draws ``[draws, ...]``, which may be empty."""
        if len(block):
            self._begin(block[0])
            self._join(block - self._first)

    def merge(self, other: Mean) -> None:
        """Take the draws that another one of the same kind has taken, of the same shape."""
        if other.count:
            self._begin(other._first)
            self._move(other.count, self._from_here(other))

    @property
    def mean(self) -> Tensor:
        """The mean, ``[...]``; zero without any draw."""
        return self._first + self._shift

    def _begin(self, draw: Tensor) -> None:
        if not self.count:
            self._first, self._shift = draw.clone(), torch.zeros_like(draw)

    def _join(self, block: Tensor) -> None:
        """Take draws relative to the first one."""
        self._move(len(block), block.mean(0))

    def _from_here(self, other: Mean) -> Tensor:
        """Return the mean of another one relative to the first draw here."""
        return other._shift + (other._first - self._first)

    def _move(self, count: int, mean: Tensor) -> None:
        self._shift += (mean - self._shift) * (count / (self.count + count))
        self.count += count


class Moments(Mean):
    """Mean and variance of draws."""

    def __init__(self) -> None:
        super().__init__()
        self._squares = torch.zeros(())

    def merge(self, other: Mean) -> None:
        """Take the draws that another one of the same kind has taken, of the same shape."""
        if not isinstance(other, Moments):
            raise TypeError("a mean alone does not tell the variance of its draws")
        if other.count:
            self._begin(other._first)
            mean = self._from_here(other)
            self._widen(other.count, mean, other._squares)
            self._move(other.count, mean)

    @property
    def variance(self) -> Tensor:
        """The variance, ``[...]``, divided by the draws less one; NaN for a single draw."""
        return self._squares / (self.count - 1) if self.count > 1 else torch.full_like(self._squares, torch.nan)

    def _begin(self, draw: Tensor) -> None:
        if not self.count:
            self._squares = torch.zeros_like(draw)
        super()._begin(draw)

    def _join(self, block: Tensor) -> None:
        mean = block.mean(0)
        self._widen(len(block), mean, (block - mean).square().sum(0))
        self._move(len(block), mean)

    def _widen(self, count: int, mean: Tensor, squares: Tensor) -> None:
        gap = mean - self._shift
        self._squares += squares + gap.square() * (self.count * count / (self.count + count))
