"""Class by class: is one of those that the teacher says hardly ever said any more, and are they in another order?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pytest_bnn.checks.teacher._items import Votes

#: A class of which the mean prediction certainly disagrees on more than this share of its images is lost.
_MOST_LOST = 0.5

#: Places of dense outputs that a class has to have in an image for that image to count.
_PLACES = 8

#: The share of the images on which an exchange of classes has to be followed.
_FOLLOWED = 0.95

#: An order that answers at random show with a chance of more than exp of minus this is none.
_SURPRISE = 12.0


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How the mean prediction does on the images of which the teacher says one class.

    Attributes:
        index: The class.
        images: On how many images the teacher says it.
        against: On how many of them another class certainly leads.
        agreeing: On how many the mean so far says it.
        lost: Whether it is certainly lost.
        may_be_lost: Whether it would be, were the mean so far certain.
    """

    index: int
    images: int
    against: int
    agreeing: int
    lost: bool
    may_be_lost: bool


def class_counts(items: Votes) -> list[ClassCount]:
    """Count class by class, those that the teacher says at all.

    A class is lost where the mean prediction certainly disagrees on more than half of its images, and on so many that
    disagreements which are spread over all images at the rate that the claim allows would bring them together with a
    probability of at most the share of alpha for this class (the binomial tail, Bonferroni over the classes).
    """
    leaders, images = items.expected.argmax(1), items.chosen // items.per_image
    keys, inverse = (leaders * items.images + images).unique(return_inverse=True)
    places = _sums(inverse, torch.ones(len(inverse)), len(keys))
    against = 2 * _sums(inverse, items.overtaken, len(keys)) > places
    agreeing = 2 * _sums(inverse, items.agreeing, len(keys)) >= places
    counted = places >= (1 if items.per_image == 1 else _PLACES)
    classes = keys // items.images
    said = classes[counted].unique().tolist()
    level = items.claim.of_classes / max(1, len(said))
    rate = 1 - items.claim.min_agreement
    found = []
    for index in said:
        own = counted & (classes == index)
        n, k, point = int(own.sum()), int((against & own).sum()), int((agreeing & own).sum())
        found.append(ClassCount(index, n, k, point, _is_lost(k, n, rate, level), _is_lost(n - point, n, rate, level)))
    return found


def _sums(inverse: Tensor, values: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64).index_add_(0, inverse, values.double())


def _is_lost(against: int, images: int, rate: float, level: float) -> bool:
    if against <= _MOST_LOST * images:
        return False
    from scipy.stats import binom

    return float(binom.sf(against - 1, images, rate)) <= level


def images_needed(claim_rate: float, level: float) -> int:
    """Return the least number of images of a class on which it can be found lost: where none of them agrees."""
    return max(1, math.ceil(math.log(level) / math.log(claim_rate))) if 0 < claim_rate < 1 else 1


def open_in_doubt(items: Votes) -> Tensor:
    """Return the undecided items of the classes that may be lost: further passes of them may show it."""
    doubtful = [c.index for c in class_counts(items) if c.may_be_lost and not c.lost]
    if not doubtful:
        return torch.arange(0)
    leaders = items.expected.argmax(1)
    open_ = ~(items.leading | items.overtaken)
    return (open_ & torch.isin(leaders, torch.tensor(doubtful))).nonzero().flatten()


def exchanged(items: Votes) -> str:
    """Say in which order the classes are now, where the mean prediction shows an order; else nothing."""
    leaders, now = items.expected.argmax(1), items.mean.argmax(1)
    table = torch.zeros(items.expected.shape[1], items.expected.shape[1])
    table.index_put_((leaders, now), torch.ones(len(leaders)), accumulate=True)
    said = table.sum(1) > 0
    to = table.argmax(1)[said]
    # Answers at random follow some order with a chance of one in so many for each image beyond the first of its class.
    if (len(leaders) - len(to)) * math.log(len(table)) < _SURPRISE:
        return ""
    followed = float(table.max(1).values[said].sum() / table.sum())
    moved = [(a, b) for a, b in zip(said.nonzero().flatten().tolist(), to.tolist(), strict=True) if a != b]
    if followed < _FOLLOWED or len(to.unique()) < len(to) or not moved:
        return ""
    words = ", ".join(f"{a} as {b}" for a, b in moved[:4]) + (", ..." if len(moved) > 4 else "")
    return f"the classes are in another order: it says {words}"
