"""``scores.against_teacher``: is the model's Brier score as good as its teacher's?"""

from __future__ import annotations

import math

from torch import Tensor

from pytest_bnn.checks._more import give_labels
from pytest_bnn.checks._paired import Paired
from pytest_bnn.checks._predictions import PASSES, Labelled, in_two_looks, labelled, ruled_out
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, NotHereError
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.records.evidence import Measurement, Verdict
from pytest_bnn.sampling.mixture import by_rows, scored
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.likelihoods import temperature
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

    def look(passes: int) -> Finding:
        found = labelled(subject, passes)
        if found.predicted.teacher is None:
            raise NotHereError("the teacher knows other classes than the model: see teacher.agreement, and --teacher")
        return _judge(found, found.predicted.teacher, margin, budget)

    return in_two_looks(look, max_passes)


measure_scores_against_teacher, assert_scores_against_teacher = against_teacher.measure, against_teacher.assert_


def _judge(found: Labelled, teacher: Tensor, margin: float, budget: Budget) -> Finding:
    mixture, labels = found.mixture, found.labels
    paired = Paired(
        name="Brier score",
        own=mixture.brier(labels),
        its=brier(teacher, labels),
        ranges=ranges_of(mixture.log_shares, teacher),
        margin=margin,
        budget=budget,
    )
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
            Measurement(name="Brier score", value=float(paired.own.mean()), note="of the mean prediction"),
            Measurement(name="Brier score of the teacher", value=float(paired.its.mean())),
            paired.difference,
            Measurement(name="Brier score of one pass", value=_of_one_pass(found)),
            *_scores("", mixture.log_shares, labels),
            *_scores(" of the teacher", teacher, labels),
            Measurement(name="labels", value=len(found)),
        ),
        threshold=paired.threshold("difference of the Brier scores"),
        remedy=remedy,
        samples=mixture.passes,
        certainty=paired.certainty(
            "difference of the mean Brier scores on these examples, over the labels that they may have"
        ),
    )


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


def _of_one_pass(found: Labelled) -> float:
    shares = found.mixture.log_shares.gather(1, found.labels[:, None])[:, 0].double().exp()
    return float((found.mixture.squares - 2 * shares + 1).mean())


def _scores(whose: str, log_shares: Tensor, labels: Tensor) -> list[Measurement]:
    right = float((log_shares.argmax(1) == labels).double().mean())
    accuracy = Measurement(name=f"accuracy{whose}", value=right)
    if count := ruled_out(log_shares, labels):
        return [accuracy, Measurement(name=f"labels of a probability of 0{whose}", value=count)]
    own = log_shares.gather(1, labels[:, None])[:, 0].double()
    best = math.exp(temperature(log_shares, labels).best)
    cooled = brier_at(best, log_shares, labels)
    return [
        accuracy,
        Measurement(name=f"negative log likelihood{whose}", value=-float(own.mean()), unit="nats"),
        Measurement(
            name=f"Brier score{whose} at its best temperature", value=float(cooled.mean()),
            note=f"temperature {best:.3g}",
        ),
    ]  # fmt: skip
