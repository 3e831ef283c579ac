"""``slices.scores``: is the model's Brier score as good as its teacher's in each group?"""

from __future__ import annotations

from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._slices import Claim, Judged, groups_of, shared, together
from pytest_bnn.checks._streamed import on_labels
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.stats.budget import Budget
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
    return in_two_looks(
        lambda passes: on_labels(
            subject, passes, lambda found: _judge(subject, found, margin, budget), calibrated=False, by_group=True
        ),
        max_passes,
    )


measure_slices_scores, assert_slices_scores = scores.measure, scores.assert_


def _judge(subject: Subject, found: Labels, margin: float, budget: Budget) -> Finding:
    if found.its is None:
        return not_applicable("the teacher knows other classes than the model: see teacher.agreement, and --teacher")
    groups, budget = groups_of(subject, found), shared(found, budget)
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
    return together([_of(name, found, margin, each) for name, found in groups.items()], claim, budget, found.passes)


def _of(name: str, found: Labels, margin: float, budget: Budget) -> Judged:
    scores = found.scores
    assert scores is not None
    return Judged(
        name=name,
        labels=len(found),
        value=scores.gap,
        p=scores.chance(margin),
        holds=scores.gap + scores.radius(budget.beta) <= margin,
        inherited=False,
        words=f"its Brier score is worse by {scores.gap:.3g}",
    )
