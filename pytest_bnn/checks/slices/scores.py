"""``slices.scores``: is the model's Brier score as good as its teacher's in each group?"""

from __future__ import annotations

import math

from pytest_bnn.checks._predictions import PASSES, Labelled, in_two_looks, labelled
from pytest_bnn.checks._slices import Claim, Judged, groups_of, together
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.scores.against_teacher import brier, ranges_of
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import hoeffding_radius
from pytest_bnn.subject import Subject

#: Of Brier scores, which lie in [0, 2]; wider than for all examples, since groups are smaller.
MARGIN = 0.05


@check(
    claim="In each group of examples the Brier score is worse than the teacher's by at most a declared margin.",
    needs=("teacher", "images", "slices"),
    sampled=True,
    after="slices.temperature",
    of_data=True,
)
def scores(subject: Subject, *, margin: Positive = MARGIN, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether the model's Brier score is worse than its teacher's in any group.

    It is the claim of ``scores.against_teacher`` for each group that ``slices`` names. Any group that fails is wrongly
    named with at most the check's share of the error rate, however many groups there are (Holm). Groups that are too
    small to decide are named.

    Args:
        subject: teacher and images with labels, and ``slices``; see `Subject`.
        margin: How much worse the mean Brier score of a group may be.
        max_passes: The passes that the prediction is the mean of.
        budget: Error rates; those in force when None.

    Source: as ``scores.against_teacher``; Holm 1979.
    """
    return in_two_looks(lambda passes: _judge(subject, labelled(subject, passes), margin, budget), max_passes)


measure_slices_scores, assert_slices_scores = scores.measure, scores.assert_


def _judge(subject: Subject, found: Labelled, margin: float, budget: Budget) -> Finding:
    if found.predicted.teacher is None:
        return not_applicable("the teacher knows other classes than the model: see teacher.agreement, and --teacher")
    groups = groups_of(subject, found)
    each = budget.split(len(groups))
    claim = Claim(
        figure="difference of the Brier scores",
        holds="the model is as good as its teacher",
        breaks="the model is worse than its teacher",
        relation="<=",
        allowed=margin,
        remedy="look at the examples of the groups beside teacher.agreement: fine-tune toward the teacher on examples "
        "like these, or make the spread smaller",
    )
    return together(
        [_of(name, found, margin, each) for name, found in groups.items()], claim, budget, found.mixture.passes
    )


def _of(name: str, found: Labelled, margin: float, budget: Budget) -> Judged:
    teacher = found.predicted.teacher
    assert teacher is not None
    gap = float((found.mixture.brier(found.labels) - brier(teacher, found.labels)).mean())
    fixed = ranges_of(found.mixture.log_shares, teacher)
    beyond = gap - margin
    squares = float(fixed.double().square().sum())
    p = 1.0 if beyond <= 0 else math.exp(-2 * (beyond * len(found)) ** 2 / squares) if squares else 0.0
    return Judged(
        name=name,
        labels=len(found),
        value=gap,
        p=p,
        holds=gap + hoeffding_radius(fixed, budget.beta) <= margin,
        inherited=False,
        words=f"its Brier score is worse by {gap:.3g}",
    )
