"""The spread of outputs, from passes taken two by two: differences are independent of the mean and of each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pytest_bnn.checks._remembered import remembered
from pytest_bnn.checks.noise._scale import Scale
from pytest_bnn.subject import Subject

#: Numbers of a pair of passes that are compared at a time, in float64.
_AT_A_TIME = 4_000_000


class Finite:
    """Counts the passes that hold NaN or infinity, masks aside: minus infinity beside finite numbers of the same row.

    A mask is at the same places in every pass and is no whole row, which only the last block tells.
    """

    def __init__(self) -> None:
        self._sick: list[int] = []
        self._masked: Tensor | None = None

    def take(self, block: Tensor) -> None:
        """Take passes ``[passes, N, ...]``."""
        sick = ~torch.isfinite(block)
        masked = block[0].new_zeros((), dtype=torch.bool)
        if bool(sick.any()) and block.ndim > 2:
            whole = sick.flatten(2).all(2).any(0).reshape(-1, *[1] * (block.ndim - 2))
            masked = torch.isneginf(block).all(0) & ~whole
        self._sick += sick.flatten(1).sum(1).tolist()
        self._masked = masked if self._masked is None else self._masked & masked

    @property
    def bad(self) -> int:
        """How many of the passes so far hold NaN or infinity that is no mask."""
        # What is masked is not finite in any pass: a pass that has no more of it is sound.
        masks = 0 if self._masked is None else int(self._masked.sum())
        return sum(sick > masks for sick in self._sick)


class Pairs:
    """What passes say when they are taken two by two, without the passes.

    Bounds of a median take all spreads: one number for each image, part and pair of passes is kept.

    Args:
        parts: The numbers of an image that are summed up apart from others; all together where there are none.

    Attributes:
        passes: How many were taken; a last one without a partner waits for it.
        first: The first of them, ``[N, ...]``.
        finite: How many of them hold NaN or infinity.
    """

    def __init__(self, parts: Sequence[slice] = ()) -> None:
        self.parts = (*parts,)
        self.passes = 0
        self.finite = Finite()
        self.first = torch.zeros(0)
        self._live = torch.zeros(0, dtype=torch.bool)
        self._squares: list[Tensor] = []
        self._waiting: Tensor | None = None

    def takes(self, outputs: Tensor) -> bool:
        """Say whether a pass ``[N, ...]`` has the shape of those that were taken."""
        return not self.passes or outputs.shape == self.first.shape

    def take(self, block: Tensor) -> None:
        """Take passes ``[passes, N, ...]``."""
        if not self.passes:
            self.first, self._live = block[0].clone(), torch.zeros_like(block[0], dtype=torch.bool)
            self.parts = self.parts or (slice(0, block[0, :1].numel()),)
        self.passes += len(block)
        self.finite.take(block)
        for outputs in block:
            self._live |= outputs != self.first
            if self._waiting is None:
                self._waiting = outputs
            else:
                self._squares.append(self._squares_of(self._waiting, outputs))
                self._waiting = None
        # A view would hold all of its block.
        self._waiting = None if self._waiting is None else self._waiting.clone()

    def _squares_of(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the sum of squared differences, ``[images, parts]``, on the CPU."""
        ones, others = one.reshape(len(one), -1), other.reshape(len(other), -1)
        size, found = max(1, _AT_A_TIME // max(1, ones.shape[1])), []
        for a, b in zip(ones.split(size), others.split(size), strict=True):
            # Infinite in both is a mask: it does not vary.
            squares = torch.where(a == b, 0.0, a.double() - b.double()).square()
            found.append(torch.stack([squares[:, part].sum(1) for part in self.parts], 1))
        return torch.cat(found).cpu()

    @property
    def live(self) -> Tensor:
        """Which numbers ``[N, ...]`` differ in any pass from the first.

        An image of which nothing differs has those that differ for some other image: its silence must not set the
        scale.
        """
        live = self._live.clone()
        silent = ~live.flatten(1).any(1) if live.ndim > 1 else ~live
        live[silent] = live.any(0)
        return live

    def spreads(self, scale: Scale, columns: Tensor | None = None) -> Tensor:
        """Return the spread of each image in each pair of passes, ``[pairs, images]``, relative to a scale.

        It is the root mean square, over the outputs, of the difference of two passes by the square root of 2, which
        estimates their standard deviation. A last pass without a partner is left out. The spreads lie on the CPU.

        Args:
            scale: One number, or one for each of the outputs.
            columns: Which of the numbers of an image count, whole parts of them; all when None.
        """
        if not self._squares:
            return torch.zeros(0, len(self.first), dtype=torch.float64)
        squares = torch.stack(self._squares)
        total, size = torch.zeros(()), 0
        for index, part in enumerate(self.parts):
            place = part.start
            if columns is not None:
                if not bool((columns == place).any()):
                    continue
                place = int((columns == place).nonzero()[0])
            own = float(scale[place]) if isinstance(scale, Tensor) else scale
            total = total + (squares[:, :, index].sqrt() / own).square()
            size += part.stop - part.start
        return (total / size / 2).sqrt()


def parts_of(subject: Subject) -> tuple[slice, ...]:
    """Return where the tensors of an output lie, of which each has its own scale; none where there is one."""
    found, start = [], 0
    for field in subject.fields if len(subject.fields) > 1 else ():
        found.append(slice(start, start + field.size))
        start += field.size
    return (*found,)


def first_pairs(subject: Subject, passes: int, parts: tuple[slice, ...] | None = None) -> Pairs:
    """Return what the first passes say two by two; what checks have read already is not read again.

    Args:
        subject: What is judged.
        passes: How many.
        parts: Which numbers are summed up apart; those of each tensor when None.
    """
    parts = parts_of(subject) if parts is None else parts
    key = f"pairs of passes {parts}"
    known = subject.evaluations.get(key)
    found = known if isinstance(known, Pairs) and known.passes <= passes else Pairs(parts)

    def read() -> Pairs:
        for block in subject.bank.blocks(found.passes, passes):
            found.take(block)
        return found

    return remembered(subject, key, read, again=True)


def _taken(outputs: Tensor, parts: Sequence[slice] = ()) -> Pairs:
    found = Pairs(parts)
    found.take(outputs)
    return found


def live_in(passes: Tensor) -> Tensor:
    """Return which numbers of outputs ``[passes, N, ...]`` differ in any pass; see `Pairs.live`."""
    return _taken(passes).live


def spreads(outputs: Tensor, scale: Scale, parts: Sequence[slice] = ()) -> Tensor:
    """Return the spread of each image in each pair of passes ``[passes, N, ...]``; see `Pairs`."""
    return _taken(outputs, parts).spreads(scale)


def not_finite_in(outputs: Tensor) -> int:
    """Return how many passes ``[passes, N, ...]`` hold NaN or infinity, masks aside; see `Finite`."""
    found = Finite()
    found.take(outputs)
    return found.bad
