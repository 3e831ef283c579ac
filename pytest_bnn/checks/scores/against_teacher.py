"""``scores.against_teacher``: is the model's Brier score as good as its teacher's?"""

from __future__ import annotations

import math

from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._more import give_labels
from pytest_bnn.checks._paired import Paired
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._sides import Side
from pytest_bnn.checks._streamed import on_labels
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.records.evidence import Measurement, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject

#: Of Brier scores, which lie in [0, 2].
MARGIN = 0.02


@check(
    claim="The Brier score of the mean prediction is worse than the teacher's by at most a declared margin.",
    needs=("teacher", "images"),
    sampled=True,
    after="calibration.classes",
    of_data=True,
)
def against_teacher(
    subject: Subject, *, margin: Positive = MARGIN, max_passes: FewPasses = PASSES, budget: Budget
) -> Finding:
    """Measure whether the model's Brier score is worse than its teacher's.

    Both are compared example by example. Before the label is seen, the two predictions fix how far their scores can
    differ, whatever the label is; where they say all but the same, that is next to nothing, and few labels decide. The
    claim is about these examples: what the scores would be in the mean over the labels that these may have. The score
    is without the bias of a finite number of passes. Likelihood, accuracy and the scores at the best temperature of
    each stand beside it.

    Args:
        subject: teacher and images with labels, at least; see `Subject`.
        margin: How much worse the mean Brier score may be.
        max_passes: The passes that the prediction is the mean of, at most: few show that all is well.
        budget: Error rates; those in force when None.

    Source: Hoeffding 1963, theorem 2; Ferro 2014 for the fair score.
    """
    return in_two_looks(
        lambda passes: on_labels(subject, passes, lambda found: _judge(found, margin, budget), calibrated=False),
        max_passes,
    )


measure_scores_against_teacher, assert_scores_against_teacher = against_teacher.measure, against_teacher.assert_


def _judge(found: Labels, margin: float, budget: Budget) -> Finding:
    scores, its = found.scores, found.its
    if scores is None or its is None:
        return not_applicable("the teacher knows other classes than the model: see teacher.agreement, and --teacher")
    paired = Paired(name="Brier score", scores=scores, margin=margin, budget=budget)
    needed = paired.needed(budget.beta) if paired.gap < margin else None
    remedy = {
        Verdict.PASS: "",
        Verdict.FAIL: "see teacher.agreement and noise.spread: a smaller spread, more fine-tuning toward the teacher, "
        "or more passes a prediction",
        Verdict.INCONCLUSIVE: give_labels(needed or None),
    }[paired.verdict]
    return Finding(
        verdict=paired.verdict,
        headline=paired.headline,
        measurements=(
            Measurement(name="Brier score", value=scores.own, note="of the mean prediction"),
            Measurement(name="Brier score of the teacher", value=scores.its),
            paired.difference,
            Measurement(name="Brier score of one pass", value=found.brier_of_a_pass),
            *_scores("", found.own),
            *_scores(" of the teacher", its),
            Measurement(name="labels", value=len(found)),
        ),
        threshold=paired.threshold("difference of the Brier scores"),
        remedy=remedy,
        samples=found.passes,
        certainty=paired.certainty(
            "difference of the mean Brier scores on these examples, over the labels that they may have"
        ),
    )


def _scores(whose: str, side: Side) -> list[Measurement]:
    accuracy = Measurement(name=f"accuracy{whose}", value=side.accuracy)
    if count := side.ruled_out:
        return [accuracy, Measurement(name=f"labels of a probability of 0{whose}", value=count)]
    best = math.exp(side.temperature.best)
    return [
        accuracy,
        Measurement(name=f"negative log likelihood{whose}", value=-side.log_likelihood, unit="nats"),
        Measurement(
            name=f"Brier score{whose} at its best temperature", value=side.brier_at(best),
            note=f"temperature {best:.3g}",
        ),
    ]  # fmt: skip
