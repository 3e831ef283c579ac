"""What the passes say about each item, an image or a place in it, and what that means for the claim."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pytest_bnn.records.evidence import Verdict
from pytest_bnn.stats.betting import LeadingClassTest
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import clopper_pearson_lower, clopper_pearson_upper
from pytest_bnn.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Claim:
    """What is required, of these images or of the population behind them, and how certain the verdict has to be."""

    min_agreement: float
    population: bool
    budget: Budget

    @property
    def of_passes(self) -> Budget:
        """The share of the budget for the Monte-Carlo error."""
        return self.budget.split(2) if self.population else self.budget

    @property
    def of_decisions(self) -> float:
        """The share of alpha for decisions of single images: each failure rests on them."""
        return self.of_passes.alpha / 2

    @property
    def of_classes(self) -> float:
        """The share of alpha for a class of which too many images disagree by chance."""
        return self.of_passes.alpha / 2

    def needed(self, images: int) -> int:
        """How many images have to agree: the least number whose share of them is as large as required."""
        count = math.ceil(self.min_agreement * images)  # the product is rounded: .07 of 100 is above 7
        return count - 1 if (count - 1) / images >= self.min_agreement else count

    def passes(self, agree: int, images: int) -> bool:
        """Return whether the claim is certain when so many images agree."""
        if not self.population:
            return agree >= self.needed(images)
        return clopper_pearson_lower(agree, images, self.of_passes.beta) >= self.min_agreement

    def fails(self, disagree: int, images: int) -> bool:
        """Return whether the claim is certainly wrong when so many images disagree."""
        if not self.population:
            return disagree > images - self.needed(images)
        return clopper_pearson_upper(images - disagree, images, self.of_passes.alpha) < self.min_agreement

    def interval(self, agree: int, disagree: int, items: int) -> tuple[float, float]:
        """Return the share that is certain at beta, and the share that is not excluded at alpha."""
        if not self.population:
            return agree / items, 1 - disagree / items
        return (
            clopper_pearson_lower(agree, items, self.of_passes.beta),
            clopper_pearson_upper(items - disagree, items, self.of_passes.alpha),
        )


class Items(Protocol):
    """What the passes so far say about some items: which surely agree with the teacher, and which surely do not."""

    @property
    def claim(self) -> Claim:
        """What is claimed."""

    @property
    def count(self) -> int:
        """How many items there are."""

    def take(self, block: Tensor, rows: Tensor) -> None:
        """Take passes ``[passes, rows, ...]`` on some of the images."""

    @property
    def leading(self) -> Tensor:
        """Whether each item surely agrees; wrong with a probability of at most beta. A pass rests on it."""

    @property
    def overtaken(self) -> Tensor:
        """Whether each item surely does not; wrong with a probability of at most alpha. A failure rests on it."""

    @property
    def agreeing(self) -> Tensor:
        """Whether the mean so far agrees on each item: the point estimate."""

    def rows_of(self, items: Tensor) -> Tensor:
        """Return the images that items lie in."""


def undecided(items: Items) -> Tensor:
    """Return the numbers of the items that are not decided."""
    return (~(items.leading | items.overtaken)).nonzero().flatten()


def verdict(items: Items) -> Verdict:
    """Say what the decided items mean for the claim."""
    if items.claim.passes(int(items.leading.sum()), items.count):
        return Verdict.PASS
    return Verdict.FAIL if items.claim.fails(int(items.overtaken.sum()), items.count) else Verdict.INCONCLUSIVE


def hopeless(items: Items) -> bool:
    """Return whether no number of passes can decide: the items are too few."""
    open_ = len(undecided(items))
    agree, disagree = int(items.leading.sum()), int(items.overtaken.sum())
    return not items.claim.passes(agree + open_, items.count) and not items.claim.fails(disagree + open_, items.count)


#: Passes that are judged in any case: the least that can decide an image at the default error rate.
FIRST_PASSES = 32

#: The most places of dense outputs that are judged: a random choice from the seed of more.
MOST_PLACES = 16_384


@dataclass(slots=True)
class Votes:
    """Items whose class is decided by a sequential test; an item is an image, or a place of dense outputs."""

    claim: Claim
    task: Task
    expected: Tensor
    images: int
    chosen: Tensor
    per_image: int = 1
    passes: int = 0
    test: LeadingClassTest = field(init=False)
    sums: Tensor = field(init=False)
    counts: Tensor = field(init=False)
    single: int = field(init=False, default=0)
    whole: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.test = LeadingClassTest(self.expected.argmax(1), self.expected.shape[1])
        self.sums = torch.zeros_like(self.expected)
        self.counts = torch.zeros(len(self.expected), dtype=torch.float64)

    @classmethod
    def of(cls, teacher: Tensor, task: Task, claim: Claim, seed: int, kept: Tensor | None = None) -> Votes:
        """Begin with what the teacher says, ``[N, ...]``; ``kept`` says which items are judged, all when None."""
        shares = shares_of(task, teacher, 0).double()
        chosen = torch.arange(len(shares)) if kept is None else kept.nonzero().flatten()
        if len(shares) > MOST_PLACES:
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(shares), generator=generator)[:MOST_PLACES].sort().values
        return cls(claim, task, shares[chosen], len(teacher), chosen, len(shares) // len(teacher))

    @property
    def count(self) -> int:
        """How many items there are."""
        return len(self.expected)

    def take(self, block: Tensor, rows: Tensor) -> None:
        """Take passes ``[passes, rows, ...]`` on some of the images."""
        per_image = self.per_image
        place = torch.full((self.images,), -1)
        place[rows] = torch.arange(len(rows))
        items = (place[self.chosen // per_image] >= 0).nonzero().flatten()
        inside = place[self.chosen[items] // per_image] * per_image + self.chosen[items] % per_image
        leaders = self.expected[items].argmax(1)
        for outputs in block:
            shares = shares_of(self.task, outputs, 0)[inside].double().cpu()
            self.test.update(shares, items)
            self.sums[items] += shares
            self.counts[items] += 1
            if len(items) == self.count:
                self.single += int((shares.argmax(1) == leaders).sum())
                self.whole += 1
        self.passes += len(block)

    @property
    def leading(self) -> Tensor:
        """Whether the teacher's class surely leads, item by item."""
        return self.test.leading(self.claim.of_passes.beta)

    @property
    def overtaken(self) -> Tensor:
        """Whether another class surely leads, item by item."""
        return self.test.overtaken(self.claim.of_decisions)

    @property
    def mean(self) -> Tensor:
        """The mean shares over passes."""
        mean: Tensor = self.sums / self.counts[:, None]
        return mean

    @property
    def agreeing(self) -> Tensor:
        """Whether the mean's leading class is the teacher's."""
        agreeing: Tensor = self.mean.argmax(1) == self.expected.argmax(1)
        return agreeing

    def rows_of(self, items: Tensor) -> Tensor:
        """Return the images that items lie in."""
        rows: Tensor = (self.chosen[items] // self.per_image).unique()
        return rows


def shares_of(task: Task, outputs: Tensor, passes: int) -> Tensor:
    """Return the shares of classes, item by item, of outputs behind ``passes`` leading dimensions."""
    if task.kind == "dense":
        return task.at_places(outputs, passes)
    return task.probabilities(outputs)
