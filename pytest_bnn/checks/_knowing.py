"""Who knows the labels: right on them more often than by chance, or able to tell two classes apart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pytest_bnn.stats.intervals import clopper_pearson_lower, pairs_bounds
from pytest_bnn.stats.order import auroc

#: The chance at which labels that nobody knows would count as known.
_CHANCE = 1e-3


def who_knows(model: Tensor, teacher: Tensor | None, labels: Tensor) -> Literal["model", "teacher"] | None:
    """Return who knows the labels: the model, or else its teacher, or nobody.

    Args:
        model: Log probabilities ``[N, C]``.
        teacher: Those of the teacher, or None.
        labels: Classes ``[N]``, from 0 to C - 1.
    """
    if _knows(model, labels):
        return "model"
    return "teacher" if teacher is not None and _knows(teacher, labels) else None


def _knows(log_shares: Tensor, labels: Tensor) -> bool:
    counts, count = torch.bincount(labels), len(labels)
    said = log_shares.argmax(1)
    # By chance, answers given in these shares meet labels in those; nobody beats the commonest class by it.
    met = float((torch.bincount(said, minlength=len(counts))[: len(counts)] * counts).sum()) / count**2
    guess = max(met, float(counts.max()) / count if len(said.unique()) == 1 else met)
    right = int((said == labels).sum())
    return clopper_pearson_lower(right, count, _CHANCE) > guess or _tells_two_apart(log_shares, labels)


def _tells_two_apart(log_shares: Tensor, labels: Tensor) -> bool:
    """Say whether the likelier of two classes is so more often than by chance, however rare it is."""
    classes = labels.unique()
    if log_shares.shape[1] != 2 or len(classes) < 2:
        return False
    first = labels == classes[0]
    odds = (log_shares[:, 1] - log_shares[:, 0]).double()
    if not bool(torch.isfinite(odds).all()):
        return False
    ordered = auroc(odds[first] - odds.min(), odds[~first] - odds.min())
    return pairs_bounds(ordered, int(min(first.sum(), (~first).sum())), _CHANCE)[0] > 0.5
