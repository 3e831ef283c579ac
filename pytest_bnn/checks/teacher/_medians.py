"""The items of a regression: whether the median over passes lies near what the teacher says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pytest_bnn.checks.teacher._items import FIRST_PASSES, Claim
from pytest_bnn.stats.betting import certain_majority

#: Numbers of the passes that a median is taken of at a time.
_AT_A_TIME = 8_000_000

#: Bytes of the passes on a regression that are held for its median. Of more they are drawn once more for it.
_HELD = 64 * 2**20


@dataclass(slots=True)
class Numbers:
    """Images whose numbers lie near the teacher's: the median over passes, by order statistics.

    ``allowed`` is the distance that counts as agreement, ``[outputs]``, in the units of the outputs. The error rates
    are split over images, outputs, both ends and the ``looks`` that are taken as passes come.

    Whether a median is within the allowed distance is told by how many passes lie beyond it on either side: these
    numbers are kept, and not the passes. What the median is takes the passes themselves: they are held while they are
    few, and else drawn once more, some images at a time.

    Attributes:
        claim: What is required.
        expected: What the teacher says, ``[images, outputs]``, in float64.
        allowed: As above.
        looks: How often the passes so far are looked at, at most.
        again: Yields the first so many passes once more, on some of the images, as blocks ``[passes, images, ...]``.
    """

    claim: Claim
    expected: Tensor
    allowed: Tensor
    looks: int = 3
    again: Callable[[int, Tensor], Iterable[Tensor]] | None = None
    passes: int = 0
    below: Tensor = field(init=False)
    above: Tensor = field(init=False)
    near: list[int] = field(init=False, default_factory=list)
    held: list[Tensor] | None = field(init=False, default_factory=list)
    _median: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.below = torch.zeros(self.expected.shape, dtype=torch.int32)
        self.above = torch.zeros_like(self.below)

    @property
    def count(self) -> int:
        """How many images there are."""
        return len(self.expected)

    def take(self, block: Tensor, rows: Tensor) -> None:
        """Take passes on all images."""
        assert len(rows) == self.count
        for outputs in block.detach().cpu().reshape(*block.shape[:2], -1):
            gap = (outputs.double() - self.expected) / self.allowed
            below, above = gap < -1, gap > 1
            self.below += below
            self.above += above
            self.near.append(int((~(below | above)).all(1).sum()))
        self.passes += len(block)
        self._median = None
        if self.held is not None:
            self.held.append(block.detach().cpu().clone())
            if self.again is not None and sum(one.nbytes for one in self.held) > _HELD:
                self.held = None

    def _majority(self, error_rate: float) -> int | None:
        """Return how many passes on one side show that the median is there, for each end of each number alike."""
        return certain_majority(self.passes, error_rate / (self.looks * 2 * max(1, self.expected.numel())))

    @property
    def leading(self) -> Tensor:
        """Whether the typical outputs surely lie within what is allowed.

        They do where the bounds of `pytest_bnn.stats.intervals.median_bounds` do, which are order statistics.
        """
        needed = self._majority(self.claim.of_passes.beta)
        if needed is None:
            return torch.zeros(self.count, dtype=torch.bool)
        return (torch.maximum(self.below, self.above) <= self.passes - needed).all(1)

    @property
    def overtaken(self) -> Tensor:
        """Whether some typical output surely lies beyond what is allowed."""
        needed = self._majority(self.claim.of_passes.alpha)
        if needed is None:
            return torch.zeros(self.count, dtype=torch.bool)
        return (torch.maximum(self.below, self.above) >= needed).any(1)

    @property
    def median(self) -> Tensor:
        """The median over passes, ``[images, outputs]``."""
        if self._median is None:
            size = max(1, _AT_A_TIME // max(1, self.passes * self.expected.shape[1]))
            parts = torch.arange(self.count).split(size)
            self._median = torch.cat([self._passes_on(rows).median(0).values for rows in parts])
        return self._median

    def _passes_on(self, rows: Tensor) -> Tensor:
        """Return the passes on some images, ``[passes, images, outputs]``, in float64."""
        if self.held is not None:
            blocks: Iterable[Tensor] = (block[:, rows] for block in self.held)
        else:
            assert self.again is not None
            blocks = self.again(self.passes, rows)
        found = torch.cat([block.detach().cpu() for block in blocks])
        return found.reshape(*found.shape[:2], -1).double()

    @property
    def single_share(self) -> float:
        """The share of images on which a single pass lies within what is allowed, over the first passes."""
        first = self.near[:FIRST_PASSES]
        return sum(first) / (len(first) * self.count)

    @property
    def agreeing(self) -> Tensor:
        """Whether the median so far, the lower one of two, lies within what is allowed."""
        half = (self.passes - 1) // 2
        return ((self.below <= half) & (self.above < self.passes - half)).all(1)

    def rows_of(self, items: Tensor) -> Tensor:
        """Return all images: their passes are kept together."""
        return torch.arange(self.count)
