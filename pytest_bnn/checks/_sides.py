"""One network's predictions beside labels: what claims about them ask for, from the predictions or from their sums."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pytest_bnn.sampling.mixture import by_rows, scored
from pytest_bnn.stats.likelihoods import Family, odds, temperature

#: Classes of a probability below it in every example say nothing, and are left out.
LEAST = 1e-12

#: In the place of the log of 0: a label of a class that was ruled out counts as one of all but no chance.
_FLOOR = -700.0


class Side(Protocol):
    """What one network says of labelled examples."""

    @property
    def ruled_out(self) -> int:
        """How many labels are of classes that it gives a probability of 0."""

    @property
    def accuracy(self) -> float:
        """The share of labels that are the class of the largest probability."""

    @property
    def confidence(self) -> float:
        """The mean of the largest probability."""

    @property
    def log_likelihood(self) -> float:
        """The mean log probability of a label; no label is ruled out."""

    @property
    def brier(self) -> float:
        """The mean Brier score."""

    @property
    def temperature(self) -> Family:
        """Which temperatures the labels allow; no label is ruled out."""

    @property
    def classes(self) -> list[int]:
        """The classes that occur, or have a probability in some example."""

    @property
    def tested(self) -> int:
        """How many classes there are to judge, also those that further examples may bring."""

    def brier_at(self, temperature: float) -> float:
        """Return the mean Brier score where the scores are divided by a temperature."""

    def occurred(self, number: int) -> int:
        """Return how many labels are of a class."""

    def predicted(self, number: int) -> float:
        """Return how many labels are predicted to be of a class."""

    def odds(self, number: int) -> Family:
        """Return which factors of the odds of a class the labels allow."""


class Exact:
    """`Side` of log probabilities ``[N, C]`` beside classes ``[N]``."""

    def __init__(self, log_shares: Tensor, labels: Tensor) -> None:
        self.log_shares, self.labels = log_shares, labels

    @cached_property
    def ruled_out(self) -> int:
        return ruled_out(self.log_shares, self.labels)

    @property
    def accuracy(self) -> float:
        return float((self.log_shares.argmax(1) == self.labels).double().mean())

    @property
    def confidence(self) -> float:
        return float(self.log_shares.amax(1).exp().mean())

    @property
    def log_likelihood(self) -> float:
        return float(self.log_shares.gather(1, self.labels[:, None])[:, 0].double().mean())

    @cached_property
    def briers(self) -> Tensor:
        """The Brier score of each example, ``[N]``."""
        return brier(self.log_shares, self.labels)

    @property
    def brier(self) -> float:
        return float(self.briers.mean())

    @cached_property
    def temperature(self) -> Family:
        return temperature(self.log_shares, self.labels)

    @property
    def classes(self) -> list[int]:
        logs = self.log_shares
        return [
            c for c in range(logs.shape[1]) if float(logs[:, c].max()) > math.log(LEAST) or (self.labels == c).any()
        ]

    @property
    def tested(self) -> int:
        return len(self.classes)

    def brier_at(self, temperature: float) -> float:
        return float(brier_at(temperature, self.log_shares, self.labels).mean())

    def occurred(self, number: int) -> int:
        return int((self.labels == number).sum())

    def predicted(self, number: int) -> float:
        return float(self.log_shares[:, number].double().exp().sum())

    def odds(self, number: int) -> Family:
        return odds(self._against.of(number), self.labels == number)

    @cached_property
    def _against(self) -> Against:
        return Against(self.log_shares)


class Against:
    """Log probabilities that it is another class, and that it is this one, ``[N, 2]``, class by class."""

    def __init__(self, log_shares: Tensor) -> None:
        self._logs = log_shares
        self._leading = log_shares.argmax(1)
        # What is left beside a leading class is summed: one less a number next to 1 has no digits.
        others = log_shares.scatter(1, self._leading[:, None], -math.inf)
        self._rest = torch.logsumexp(others, 1).double()

    def of(self, number: int) -> Tensor:
        own = self._logs[:, number].double()
        others = torch.where(self._leading == number, self._rest, torch.log1p(-own.exp()))
        return torch.stack([others, own], 1).clamp_min(_FLOOR)

    @property
    def logits(self) -> Tensor:
        """Log odds of each class, ``[N, C]``, in float64."""
        own = self._logs.double()
        leads = torch.zeros_like(own, dtype=torch.bool).scatter_(1, self._leading[:, None], True)
        others = torch.where(leads, self._rest[:, None], torch.log1p(-own.exp()))
        return own.clamp_min(_FLOOR) - others.clamp_min(_FLOOR)


def ruled_out(log_shares: Tensor, labels: Tensor) -> int:
    """Return how many labels are of classes that have no probability at all."""
    return int(torch.isneginf(log_shares.gather(1, labels[:, None])).sum())


def brier(log_shares: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score of each example, ``[N]``, in [0, 2]."""
    return by_rows(lambda logs, y: scored(logs.exp(), y), log_shares, labels)


def brier_at(temperature: float, log_shares: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score of each example where the scores are divided by a temperature, ``[N]``, in [0, 2]."""
    return by_rows(lambda logs, y: scored((logs / temperature).softmax(1), y), log_shares, labels)


def ranges_of(one: Tensor, other: Tensor) -> Tensor:
    """Return how far the difference of the Brier scores can go, by the label alone, ``[N]``, of log probabilities."""

    def of(mine: Tensor, its: Tensor) -> Tensor:
        gaps = mine.exp() - its.exp()
        return 2 * (gaps.amax(1) - gaps.amin(1))

    return by_rows(of, one, other)
