"""``scores.against_teacher``: is the model's Brier score as good as its teacher's?"""

from __future__ import annotations

import math

from torch import Tensor

from pytest_bnn.checks._predictions import PASSES, Labelled, in_two_looks, labelled, ruled_out
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, NotHereError
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.sampling.mixture import by_rows, scored
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import hoeffding_radius
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
    own = mixture.brier(labels)
    its = brier(teacher, labels)
    gap, ranges = float((own - its).mean()), ranges_of(mixture.log_shares, teacher)
    low = gap - hoeffding_radius(ranges, budget.alpha)
    high = gap + hoeffding_radius(ranges, budget.beta)
    verdict = Verdict.FAIL if low > margin else Verdict.PASS if high <= margin else Verdict.INCONCLUSIVE
    n = len(found)
    said = f"Brier score {float(own.mean()):.3g}, the teacher's {float(its.mean()):.3g} ({n} labels)"
    headline = {
        Verdict.PASS: f"the model is as good as its teacher: {said}, {at_most(high)}",
        Verdict.FAIL: f"the model is worse than its teacher: {said}, by {low:.2g} at least",
        Verdict.INCONCLUSIVE: f"{n} labels do not decide whether it is as good as its teacher: {said}",
    }[verdict]
    apart = margin - gap
    needed = math.ceil(n * (hoeffding_radius(ranges, budget.beta) / apart) ** 2) if apart > 0 else None
    remedy = {
        Verdict.PASS: "",
        Verdict.FAIL: "see teacher.agreement and noise.spread: a smaller spread, more fine-tuning toward the teacher, "
        "or more passes a prediction",
        Verdict.INCONCLUSIVE: f"about {needed} labels like these would decide it: --evaluation"
        if needed
        else "give more labels: --evaluation MODULE:FACTORY",
    }[verdict]
    return Finding(
        verdict=verdict,
        headline=headline,
        measurements=(
            Measurement(name="Brier score", value=float(own.mean()), note="of the mean prediction"),
            Measurement(name="Brier score of the teacher", value=float(its.mean())),
            Measurement(name="difference", value=gap, note="above 0 the model is worse"),
            Measurement(name="Brier score of one pass", value=_of_one_pass(found)),
            *_scores("", mixture.log_shares, labels),
            *_scores(" of the teacher", teacher, labels),
            Measurement(name="labels", value=n),
        ),
        threshold=Threshold(quantity="difference of the Brier scores", observed=gap, relation="<=", allowed=margin),
        remedy=remedy,
        samples=mixture.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic="difference of the mean Brier scores on these examples, over the labels that they may have",
            low=low if verdict is Verdict.FAIL else None,
            high=high if verdict is not Verdict.FAIL else None,
        ),
    )


def at_most(difference: float) -> str:
    """Word an upper bound of how much worse something is."""
    return f"better by at least {-difference:.2g}" if difference < 0 else f"worse by {difference:.2g} at most"


def brier(log_shares: Tensor, labels: Tensor) -> Tensor:
    """Return the Brier score of each example, ``[N]``, in [0, 2]."""
    return by_rows(lambda logs, y: scored(logs.exp(), y), log_shares, labels)


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
    cooled = by_rows(lambda logs, y: scored((logs / best).softmax(1), y), log_shares, labels)
    return [
        accuracy,
        Measurement(name=f"negative log likelihood{whose}", value=-float(own.mean()), unit="nats"),
        Measurement(
            name=f"Brier score{whose} at its best temperature", value=float(cooled.mean()),
            note=f"temperature {best:.3g}",
        ),
    ]  # fmt: skip
