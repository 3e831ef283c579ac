"""Which members of a family labels may follow: confidence sets by a mixture of likelihoods, at any error rate.

Under the member that labels do follow, the likelihood of a mixture of the family's members, relative to that member's
own, is a test martingale: it starts at 1, and that it ever reaches ``1 / error_rate`` has a chance of at most
``error_rate`` (Ville's inequality), whatever the number of labels. Members against which it has reached that are left
out of the set.

Source: Robbins 1970, "Statistical methods related to the law of the iterated logarithm"; Wasserman, Ramdas and
Balakrishnan 2020, "Universal inference".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: Members of the mixture, and how far out they lie, in standard deviations of its normal prior.
_MEMBERS, _REACH = 81, 4.0

#: Standard deviation of the mixture's prior: in log temperature, in log scale, in log odds.
PRIOR = 1.0

#: How far beyond the mixture's members the ends of an interval are looked for.
_FARTHEST = 24.0

#: Members that are read at a time, and how far below the likeliest one, in nats, a member adds nothing.
_STRIDE, _NEGLIGIBLE = 4, 50.0

#: Of an end and of the likeliest member.
_TOLERANCE = 1e-4

#: Numbers held at a time.
_BLOCK = 8_000_000

#: Gives the log likelihoods ``[M]`` of all labels together under members ``[M]`` of a family, in float64.
LogLikelihood = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval of a parameter: ``best`` has the largest likelihood, an end that is open is infinite."""

    low: float
    best: float
    high: float

    def within(self, low: float, high: float) -> bool:
        """Say whether all of it lies between two ends."""
        return low <= self.low and self.high <= high

    def outside(self, low: float, high: float) -> bool:
        """Say whether none of it lies between two ends."""
        return self.high < low or high < self.low

    def mapped(self, change: Callable[[float], float]) -> Interval:
        """Return the interval of an increasing function of the parameter."""
        return Interval(low=change(self.low), best=change(self.best), high=change(self.high))


@dataclass(frozen=True, eq=False)
class Family:
    """A family with one real parameter, 0 for what was predicted, and what some labels say of it.

    Attributes:
        log_likelihood: Of members.
        log_mixture: Log of the mean likelihood of those that were mixed.
        members: Those, ``[M]``.
        found: Their log likelihoods, ``[M]``.
        at_most: An upper bound of it, where it is a guess between the members that were mixed; itself when None.
    """

    log_likelihood: LogLikelihood
    log_mixture: float
    members: Tensor
    found: Tensor
    at_most: LogLikelihood | None = None

    @classmethod
    def of(cls, log_likelihood: LogLikelihood, prior: float = PRIOR, *, at_most: LogLikelihood | None = None) -> Family:
        """Mix the members by a normal prior around 0.

        Args:
            log_likelihood: Of members; it has one maximum, and falls on both sides of it.
            prior: The prior's standard deviation.
            at_most: An upper bound of it, with one maximum too, by which members are rejected.
        """
        members = mixed(prior)
        weights = torch.log_softmax(-(members / prior).square() / 2, 0)
        found = _outward(log_likelihood, members)
        return cls(log_likelihood, float(torch.logsumexp(found + weights, 0)), members, found, at_most)

    @cached_property
    def best(self) -> float:
        """The member of the largest likelihood."""
        return _peak(self.log_likelihood, self.members, self.found)

    def log_evidence(self, member: float = 0.0) -> float:
        """Return the log of the martingale against a member: ``log(1 / error_rate)`` or more rejects it."""
        return self.log_mixture - self._at_most(member)

    def interval(self, error_rate: float) -> Interval:
        """Return all members that are not rejected: it holds the one that labels follow but for ``error_rate``."""
        ends = [self._end(side, error_rate) for side in (-1.0, 1.0)]
        return Interval(low=ends[0], best=min(max(self.best, ends[0]), ends[1]), high=ends[1])

    def _end(self, side: float, error_rate: float) -> float:
        from scipy.optimize import brentq

        least = self.log_mixture + math.log(error_rate)  # below it a member is rejected
        inside, outside = self.best, self.best + side
        while not self._rejects(outside, least):
            if abs(outside) > _FARTHEST:
                return side * math.inf
            inside, outside = outside, outside + 2 * (outside - self.best)
        # By one more step of the tolerance it is the wider answer of the two.
        return side * _TOLERANCE + float(
            brentq(lambda member: self._above(member, least), inside, outside, xtol=_TOLERANCE, rtol=_TOLERANCE)
        )

    def _above(self, member: float, least: float) -> float:
        return self._at_most(member) - least

    def _at_most(self, member: float) -> float:
        return float((self.at_most or self.log_likelihood)(torch.tensor([member], dtype=torch.float64)))

    def _rejects(self, member: float, least: float) -> bool:
        return self._above(member, least) <= 0


def mixed(prior: float = PRIOR) -> Tensor:
    """Return the members of a mixture, ``[M]``, by the standard deviation of its normal prior."""
    return torch.linspace(-_REACH * prior, _REACH * prior, _MEMBERS, dtype=torch.float64)


def _outward(log_likelihood: LogLikelihood, members: Tensor) -> Tensor:
    """Return the log likelihoods of members, from the middle one outward; minus infinity where they do not matter.

    A likelihood with one maximum falls further beyond a member that lies far below others. Leaving such members out of
    a mixture makes it smaller, so that nothing is rejected which was not before.
    """
    found = torch.full_like(members, -math.inf)
    low = high = len(members) // 2
    found[low] = log_likelihood(members[low : low + 1])[0]
    while True:
        top = float(found.max())
        down = range(max(0, low - _STRIDE), low) if low and float(found[low]) > top - _NEGLIGIBLE else range(0)
        up = range(high + 1, min(len(members), high + 1 + _STRIDE)) if float(found[high]) > top - _NEGLIGIBLE else ()
        if not len(down) and not len(up):
            return found
        chosen = [*down, *up]
        found[chosen] = log_likelihood(members[chosen])
        low, high = (min(chosen[0], low), max(chosen[-1], high))


def _peak(log_likelihood: LogLikelihood, members: Tensor, found: Tensor) -> float:
    """Return the member of the largest likelihood; it may lie twice as far out as those that were mixed."""
    from scipy.optimize import minimize_scalar

    if int(found.argmax()) in (0, len(members) - 1):
        members = 2 * members
        found = _outward(log_likelihood, members)
    at = int(found.argmax())
    ends = float(members[max(0, at - 1)]), float(members[min(len(members) - 1, at + 1)])

    def negative(member: float) -> float:
        return -float(log_likelihood(torch.tensor([member], dtype=torch.float64)))

    return float(minimize_scalar(negative, bounds=ends, method="bounded", options={"xatol": _TOLERANCE}).x)


def temperature(log_shares: Tensor, labels: Tensor) -> Family:
    """Return the family softmax(log p / t) of distributions that labels may follow; its parameter is log t.

    Above 0 the predictions are too sure of themselves, below 0 not sure enough.

    Args:
        log_shares: Log probabilities of the classes ``[N, C]``; minus infinity where a class is ruled out.
        labels: The class of each example ``[N]``.
    """
    own = float(log_shares.gather(1, labels[:, None]).double().sum())

    def of(members: Tensor) -> Tensor:
        inverse = torch.exp(-members.double())
        rows = max(1, _BLOCK // max(1, log_shares.shape[1] * len(members)))
        sums = torch.zeros_like(inverse)
        for block in log_shares.split(rows):
            sums += torch.logsumexp(block.double() * inverse[:, None, None], 2).sum(1)
        return own * inverse - sums

    return Family.of(of)


def odds(log_shares: Tensor, happened: Tensor) -> Family:
    """Return the family in which the odds of an event are ``exp(b)`` times those predicted; its parameter is b.

    Args:
        log_shares: Log probabilities that it does not happen and that it does, ``[N, 2]``.
        happened: Whether it did, ``[N]``.
    """
    logits = (log_shares[:, 1] - log_shares[:, 0]).double()
    signs = torch.where(happened, 1.0, -1.0).double()

    def of(members: Tensor) -> Tensor:
        return torch.nn.functional.logsigmoid(signs * (logits + members[:, None])).sum(1)

    return Family.of(of)


def scale(standardised: Tensor) -> Family:
    """Return the family of normal distributions ``k`` times as wide as predicted; its parameter is log k.

    Args:
        standardised: What was observed, less its predicted mean, in units of its predicted standard deviation ``[N]``.
    """
    squares, count = float(standardised.double().square().sum()), standardised.numel()

    def of(members: Tensor) -> Tensor:
        return -count * members - squares / 2 * torch.exp(-2 * members)

    return Family.of(of)
