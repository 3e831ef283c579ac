"""Who knows the labels: right on them more often than by chance, or able to tell two classes apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pytest_bnn.checks.finding import NotHereError
from pytest_bnn.stats.intervals import clopper_pearson_lower, pairs_bounds
from pytest_bnn.stats.order import auroc

#: The chance at which labels that nobody knows would count as known.
_CHANCE = 1e-3

Who = Literal["model", "teacher"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Answers:
    """How the answers of one network meet the labels.

    Attributes:
        occurred: How often each class occurs, ``[C]``.
        said: How often each class is the answer, ``[C]``.
        right: How many answers are right.
        ordered: Of two classes, the chance that an example of the second has the larger odds of it than one of the
            first, at least; None where there are not two.
    """

    occurred: Tensor
    said: Tensor
    right: int
    ordered: float | None

    @classmethod
    def of(cls, log_shares: Tensor, labels: Tensor) -> Answers:
        """Compare log probabilities ``[N, C]`` with classes ``[N]``, from 0 to C - 1."""
        said, classes = log_shares.argmax(1), log_shares.shape[1]
        return cls(
            occurred=torch.bincount(labels, minlength=classes),
            said=torch.bincount(said, minlength=classes),
            right=int((said == labels).sum()),
            ordered=_ordered(log_shares, labels),
        )

    def known(self, look: int = 1) -> bool:
        """Say whether the network knows the labels.

        Args:
            look: How often this has been asked of a growing number of labels; the chance of an error stays within
                twice that of one look.
        """
        count, chance = int(self.occurred.sum()), _CHANCE / look**2
        # By chance, answers given in these shares meet labels in those; nobody beats the commonest class by it.
        met = float((self.said * self.occurred).sum()) / count**2
        guess = max(met, float(self.occurred.max()) / count if int((self.said > 0).sum()) == 1 else met)
        if clopper_pearson_lower(self.right, count, chance) > guess:
            return True
        # The likelier of two classes may be so more often than by chance, however rare it is.
        if self.ordered is None or int((self.occurred > 0).sum()) < 2:
            return False
        return pairs_bounds(self.ordered, int(self.occurred.min()), chance)[0] > 0.5


def require_known(model: Answers, teacher: Answers | None, look: int = 1) -> Who:
    """Return who knows the labels: the model, or else its teacher.

    What is not known cannot be known rightly sure.

    Raises:
        NotHereError: Nobody does.
    """
    if model.known(look):
        return "model"
    if teacher is not None and teacher.known(look):
        return "teacher"
    raise NotHereError(
        "neither the model nor its teacher is right on the labels more often than by chance, so that there is "
        "nothing learned to be sure of: see data.sane, and give labels that the model was trained for (--data, "
        "--evaluation)"
    )


def _ordered(log_shares: Tensor, labels: Tensor) -> float | None:
    if log_shares.shape[1] != 2 or len(labels.unique()) < 2:
        return None
    odds = (log_shares[:, 1] - log_shares[:, 0]).double()
    if not bool(torch.isfinite(odds).all()):
        return None
    return auroc(odds[labels == 0] - odds.min(), odds[labels == 1] - odds.min())
