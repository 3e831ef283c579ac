"""Sums over labelled examples from which claims about them can be judged; those of shards add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, reduce
from typing import Any, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from pytest_bnn.checks._labelled import Labelled
from pytest_bnn.checks._sides import Against, ranges_of, ruled_out
from pytest_bnn.stats.likelihoods import mixed

Array = NDArray[Any]

#: Beyond the mixture's members likeliest ones are looked for; inside the bands of claims they lie closer together.
_FAR, _FINE, _STEP = 8.0, 1.0, 0.025

#: Bins of the log odds of two classes, each of the same width, and where they end.
_BINS, _LARGEST = 512, 32.0

#: Two leading probabilities that are closer than it may change places by rounding.
_TIE = 1e-5

#: Groups beyond which a group's name is taken for the number of an example.
MOST_GROUPS = 200

#: Numbers that are worked on at a time.
_BLOCK = 1_000_000

T = TypeVar("T", "SideSums", "Tally")


@cache
def odds_points() -> Tensor:
    """Return the log factors of odds at which likelihoods are summed, ``[G]``."""
    far = torch.arange(mixed()[-1].item() + 0.5, _FAR + 0.25, 0.5, dtype=torch.float64)
    return torch.cat([-far.flip(0), mixed(), far])


@cache
def temperature_points() -> Tensor:
    """Return the inverse temperatures at which likelihoods are summed, from 0, ``[G]``."""
    fine = torch.arange(-_FINE, _FINE, _STEP, dtype=torch.float64)
    fine = fine[(fine[:, None] - odds_points()).abs().amin(1) > _STEP / 10]
    members = torch.cat([odds_points(), fine]).sort().values
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.exp(-members.flip(0))])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SideSums:
    """What one network says of labelled examples, added up.

    Attributes:
        right: How many labels are the class of the largest probability.
        ties: How many examples have two leading classes that rounding may exchange.
        ruled_out: How many labels have a probability of 0.
        confidence: Sum of the largest probabilities.
        own: Sum of the log probabilities of labels, but for those of a probability of 0.
        brier: Sum of the Brier scores.
        said: How often each class is the one of the largest probability, ``[C]``.
        predicted: Sum of the probabilities of each class, ``[C]``.
        largest: The largest log probability of each class, ``[C]``.
        logs: Sums of ``logsumexp(log p / t)``, at each of `temperature_points`.
        log_slopes: How these grow with the inverse temperature.
        briers: Sums of the Brier scores there.
        ordered: How many examples of the first and of other classes have log odds of the second one in each bin,
            ``[2, B]``; without bins where there are not two classes.
        unlikely: Sums of ``log(1 + odds)`` of each class, at each of `odds_points`, ``[C, G]``; no class for a group.
        odds_slopes: How these grow with the log of the factor.
        logits: Sum of the log odds of each class over the labels of it, ``[C]``.
    """

    right: int
    ties: int
    ruled_out: int
    confidence: float
    own: float
    brier: float
    said: Array
    predicted: Array
    largest: Array
    logs: Array
    log_slopes: Array
    briers: Array
    ordered: Array
    unlikely: Array
    odds_slopes: Array
    logits: Array

    @classmethod
    def of(cls, log_shares: Tensor, labels: Tensor, briers: Tensor, *, odds: bool) -> SideSums:
        """Add up log probabilities ``[N, C]`` beside classes and Brier scores ``[N]``.

        Args:
            log_shares: Log probabilities.
            labels: Classes.
            briers: Scores.
            odds: Whether single classes will be judged.
        """
        logs = log_shares.double()
        top = logs.topk(min(2, logs.shape[1]), 1).values.exp()
        own = logs.gather(1, labels[:, None])[:, 0]
        said = log_shares.argmax(1)
        return cls(
            right=int((said == labels).sum()),
            ties=int((top[:, 0] - top[:, -1] < _TIE).sum()) if top.shape[1] > 1 else 0,
            ruled_out=ruled_out(log_shares, labels),
            confidence=float(top[:, 0].sum()),
            own=float(own[~torch.isneginf(own)].sum()),
            brier=float(briers.sum()),
            said=torch.bincount(said, minlength=logs.shape[1]).numpy(),
            predicted=logs.exp().sum(0).numpy(),
            largest=(logs.amax(0) if len(logs) else logs.new_full(logs.shape[1:], -torch.inf)).numpy(),
            ordered=_ordered(logs, labels),
            **_by_temperature(logs, labels),
            **_by_odds(log_shares if odds else log_shares[:, :0], labels, log_shares),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tally:
    """Labelled examples, added up.

    Attributes:
        passes: How many passes the predictions are the means of.
        occurred: How many labels are of each class, ``[C]``.
        left_out: How many examples were left out.
        agreeing: How many examples the model and its teacher say the same class of.
        own: What the model says.
        its: What its teacher says; None without one of the same classes.
        brier: Sum of the model's Brier scores, without the bias of a finite number of passes.
        of_a_pass: Sum of the Brier scores of a single pass, in the mean over passes.
        gap: Sum of the differences to the teacher's Brier scores.
        squares: Sum of the squares of how far these can go by the label alone.
        groups: The same for each group of examples, by name.
    """

    passes: int
    occurred: Array
    left_out: int
    agreeing: int
    own: SideSums
    its: SideSums | None
    brier: float
    of_a_pass: float
    gap: float
    squares: float
    groups: Mapping[str, Tally]

    @classmethod
    def of(cls, found: Labelled, groups: Mapping[str, Labelled] | None = None) -> Tally:
        """Add up predictions beside labels.

        Args:
            found: All of them.
            groups: Those of each group; None for the tally of a group, by which single classes are not judged.
        """
        mixture, labels, teacher = found.mixture, found.labels, found.predicted.teacher
        logs, odds = mixture.log_shares, groups is not None
        fair = mixture.brier(labels)
        its = None if found.its is None else found.its.briers
        ranges = None if teacher is None else ranges_of(logs, teacher)
        return cls(
            passes=mixture.passes,
            occurred=torch.bincount(labels, minlength=logs.shape[1]).numpy(),
            left_out=found.left_out,
            agreeing=0 if teacher is None else int((teacher.argmax(1) == logs.argmax(1)).sum()),
            own=SideSums.of(logs, labels, found.own.briers, odds=odds),
            its=None if teacher is None or its is None else SideSums.of(teacher, labels, its, odds=odds),
            brier=float(fair.sum()),
            of_a_pass=found.brier_of_a_pass * len(labels) if len(labels) else 0.0,
            gap=0.0 if its is None else float((fair - its).sum()),
            squares=0.0 if ranges is None else float(ranges.double().square().sum()),
            groups={name: cls.of(part) for name, part in (groups or {}).items()},
        )

    def __len__(self) -> int:
        return int(self.occurred.sum())


def merged(one: T, other: T) -> T:
    """Return the sums over the examples of both."""
    return type(one)(**{f.name: _joined(f.name, getattr(one, f.name), getattr(other, f.name)) for f in fields(one)})


def _joined(name: str, one: Any, other: Any) -> Any:
    if name == "passes":
        return one
    if name == "largest":
        return numpy.maximum(one, other)
    if name == "groups":
        names = sorted({*one, *other})[: MOST_GROUPS + 1]
        return {key: reduce(merged, [part[key] for part in (one, other) if key in part]) for key in names}
    if isinstance(one, SideSums):
        return merged(one, other)
    return None if one is None else one + other


def _by_temperature(logs: Tensor, labels: Tensor) -> dict[str, Array]:
    finite, possible = torch.where(torch.isneginf(logs), 0.0, logs), ~torch.isneginf(logs)
    sums, slopes, briers = [], [], []
    for inverse in temperature_points().split(_at_once(logs)):
        scores = torch.where(possible, finite * inverse[:, None, None], -torch.inf)
        total = torch.logsumexp(scores, 2)
        shares = torch.exp(scores - total[:, :, None])
        sums.append(total.sum(1))
        slopes.append((shares * finite).sum((1, 2)))
        own = shares.gather(2, labels[None, :, None].expand(len(inverse), -1, 1)).sum((1, 2))
        briers.append(shares.square().sum((1, 2)) - 2 * own + len(labels))
    return {name: torch.cat(found).numpy() for name, found in
            (("logs", sums), ("log_slopes", slopes), ("briers", briers))}  # fmt: skip


def _by_odds(some: Tensor, labels: Tensor, log_shares: Tensor) -> dict[str, Array]:
    classes = some.shape[1]
    sums, slopes = [torch.zeros(classes, 0, dtype=torch.float64)], [torch.zeros(classes, 0, dtype=torch.float64)]
    own = torch.zeros(classes, dtype=torch.float64)
    if classes:
        logits = Against(log_shares).logits
        own.index_add_(0, labels, logits.gather(1, labels[:, None])[:, 0])
        for factors in odds_points().split(_at_once(logits)):
            moved = logits + factors[:, None, None]
            sums.append(-torch.nn.functional.logsigmoid(-moved).sum(1).T)
            slopes.append(torch.sigmoid(moved).sum(1).T)
    return {
        "unlikely": torch.cat(sums, 1).numpy(),
        "odds_slopes": torch.cat(slopes, 1).numpy(),
        "logits": own.numpy(),
    }


def _at_once(logs: Tensor) -> int:
    """Return how many points are worked on at a time."""
    return max(1, _BLOCK // max(1, logs.numel()))


def _ordered(logs: Tensor, labels: Tensor) -> Array:
    if logs.shape[1] != 2:
        return numpy.zeros((2, 0), dtype=numpy.int64)
    odds = (logs[:, 1] - logs[:, 0]).clamp(-_LARGEST, _LARGEST)
    bins = ((odds + _LARGEST) * (_BINS / (2 * _LARGEST))).long().clamp(0, _BINS - 1)
    return torch.stack([torch.bincount(bins[labels == c], minlength=_BINS) for c in (0, 1)]).numpy()
