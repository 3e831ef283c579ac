"""What claims about labels ask for, from sums over shards of examples: bounds where the predictions are not at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pytest_bnn.checks._knowing import Answers
from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._paired import Scores
from pytest_bnn.checks._sides import LEAST
from pytest_bnn.checks._tallies import SideSums, Tally, odds_points, temperature_points
from pytest_bnn.errors import InputError
from pytest_bnn.stats.convex import Convex
from pytest_bnn.stats.likelihoods import Family


class SummedSide:
    """`Side` of sums: what one network says of ``count`` labelled examples.

    Likelihoods are known at some members of a family. In between, members are rejected by an upper bound of theirs.
    Arrays are copied: those that come from Ray's store may not be written to.
    """

    def __init__(self, sums: SideSums, occurred: Tensor) -> None:
        self.sums, self._occurred, self._count = sums, occurred, int(occurred.sum())

    @property
    def ruled_out(self) -> int:
        return self.sums.ruled_out

    @property
    def accuracy(self) -> float:
        return self.sums.right / self._count

    @property
    def confidence(self) -> float:
        return self.sums.confidence / self._count

    @property
    def log_likelihood(self) -> float:
        return self.sums.own / self._count

    @property
    def brier(self) -> float:
        return self.sums.brier / self._count

    @cached_property
    def temperature(self) -> Family:
        logs = Convex(
            points=temperature_points(),
            values=torch.tensor(self.sums.logs),
            slopes=torch.tensor(self.sums.log_slopes),
        )
        own = self.sums.own

        def near(members: Tensor) -> Tensor:
            inverse = torch.exp(-members.double())
            return own * inverse - logs.near(inverse)

        def at_most(members: Tensor) -> Tensor:
            inverse = torch.exp(-members.double())
            held = inverse.clamp_max(float(logs.points[-1]))
            # Beyond the last point a rise goes on at most, up to the certainty of all labels; a fall may be rounding.
            beyond = (inverse - held) * max(0.0, own - float(logs.slopes[-1]))
            return (own * held - logs.least(held) + beyond).clamp_max(0)

        return Family.of(near, at_most=at_most)

    @property
    def classes(self) -> list[int]:
        seen = (torch.tensor(self.sums.largest) > math.log(LEAST)) | (self._occurred > 0)
        found: list[int] = seen.nonzero().flatten().tolist()
        return found

    @property
    def tested(self) -> int:
        return len(self._occurred)

    def brier_at(self, temperature: float) -> float:
        """Return the mean Brier score at a temperature, by a line between the two nearest ones that were summed."""
        members, sums = -temperature_points()[1:].log(), torch.tensor(self.sums.briers)[1:]
        members, sums = members.flip(0), sums.flip(0)
        at = min(max(math.log(temperature), float(members[0])), float(members[-1]))
        left = min(int(torch.searchsorted(members, at, right=True)) - 1, len(members) - 2)
        share = (at - float(members[left])) / float(members[left + 1] - members[left])
        return float(torch.lerp(sums[left], sums[left + 1], share)) / self._count

    def occurred(self, number: int) -> int:
        return int(self._occurred[number])

    def predicted(self, number: int) -> float:
        return float(self.sums.predicted[number])

    def odds(self, number: int) -> Family:
        sums = Convex(
            points=odds_points(),
            values=torch.tensor(self.sums.unlikely[number]),
            slopes=torch.tensor(self.sums.odds_slopes[number]),
        )
        count, own = self.occurred(number), float(self.sums.logits[number])

        def near(members: Tensor) -> Tensor:
            return own + count * members - sums.near(members)

        def at_most(members: Tensor) -> Tensor:
            return own + count * members - sums.least(members)

        return Family.of(near, at_most=at_most)

    @property
    def answers(self) -> Answers:
        """How its answers meet the labels."""
        return Answers(
            occurred=self._occurred,
            said=torch.tensor(self.sums.said),
            right=self.sums.right,
            ordered=self._ordered,
        )

    @property
    def _ordered(self) -> float | None:
        """The chance that one of the second of two classes comes after one of the first; in one bin none does."""
        first, second = torch.tensor(self.sums.ordered).double()
        if not len(first) or not float(first.sum() * second.sum()):
            return None
        below = first.cumsum(0) - first
        return float((below * second).sum() / (first.sum() * second.sum()))


@dataclass(frozen=True, eq=False, kw_only=True)
class Summed:
    """`Labels` of a tally. ``known`` is as in `Labelled`; ``no_groups`` says why there are no groups."""

    tally: Tally
    known: bool = False
    no_groups: InputError | None = None

    def __len__(self) -> int:
        return len(self.tally)

    @property
    def passes(self) -> int:
        return self.tally.passes

    @property
    def growing(self) -> bool:
        return True

    @property
    def left_out(self) -> int:
        return self.tally.left_out

    @cached_property
    def own(self) -> SummedSide:
        return SummedSide(self.tally.own, torch.tensor(self.tally.occurred))

    @cached_property
    def its(self) -> SummedSide | None:
        its = self.tally.its
        return None if its is None else SummedSide(its, torch.tensor(self.tally.occurred))

    @property
    def scores(self) -> Scores | None:
        if self.its is None:
            return None
        count = len(self)
        return Scores(
            count=count,
            own=self.tally.brier / count,
            its=self.its.brier,
            gap=self.tally.gap / count,
            squares=self.tally.squares,
            at_any_time=True,
        )

    @property
    def brier_of_a_pass(self) -> float:
        return self.tally.of_a_pass / len(self)

    @property
    def groups(self) -> Mapping[str, Labels]:
        if self.no_groups is not None:
            raise self.no_groups
        return {name: Summed(tally=part, known=self.known) for name, part in self.tally.groups.items() if len(part)}
