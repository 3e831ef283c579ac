"""``regression.scores``: are the model's predictions of numbers as good as its teacher's?"""

from __future__ import annotations

from torch import Tensor

from pytest_bnn.checks._more import give_labels
from pytest_bnn.checks._numbers import Numbers, numbers, without_the_noise
from pytest_bnn.checks._paired import Paired, Scores
from pytest_bnn.checks._predictions import PASSES
from pytest_bnn.checks._streamed import on_few
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.values import FewPasses, NumbersHead, Positive
from pytest_bnn.records.evidence import Measurement, Verdict
from pytest_bnn.sampling.normals import Normals, ranges_of_difference
from pytest_bnn.stats.budget import Budget
from pytest_bnn.subject import Subject

#: In units of the scale of the teacher's outputs.
MARGIN = 0.02

_UNIT = "of the teacher's scale"

_OTHER_TEACHER = "the teacher's outputs are not those of the model: see teacher.agreement, and --teacher"


@check(
    claim="The CRPS of the predictive distribution is worse than the teacher's by at most a declared margin.",
    needs=("teacher", "images"),
    sampled=True,
    after="regression.coverage",
    of_data=True,
)
def scores(
    subject: Subject,
    *,
    margin: Positive = MARGIN,
    noise: Positive | None = None,
    head: NumbersHead = "auto",
    max_passes: FewPasses = PASSES,
    budget: Budget,
) -> Finding:
    """Measure whether a regression's continuous ranked probability score is worse than its teacher's.

    What is predicted is the mixture over passes of normal distributions, by the variance that the head gives beside the
    mean, or by ``noise``; without either each pass gives a number, and the teacher's score is its absolute error. Both
    are compared example by example. Before the label is seen, the two predictions fix how far their scores can differ,
    whatever the label is; where they say all but the same, that is next to nothing, and few labels decide. The claim is
    about these examples: what the scores would be in the mean over the labels that these may have. The score is without
    the bias of a finite number of passes. Errors are in units of the scale of the teacher's outputs, each by its own.

    Args:
        subject: teacher and inputs with numbers as labels, at least; see `Subject`. Of several a row one counts.
        margin: How much worse the mean score may be, as a share of the standard deviation of the teacher's outputs.
        noise: The standard deviation of the observations, in units of the outputs, where the head gives none.
        head: What the network gives beside the mean; ``"auto"`` lets the loss and the names of its outputs tell.
        max_passes: The passes that the prediction is the mixture of.
        budget: Error rates; those in force when None.

    Source: Gneiting and Raftery 2007 for the score, Ferro 2014 for the fair one; Hoeffding 1963, theorem 2.
    """
    found = numbers(subject, "regression.scores", max_passes, head, noise)
    if found.teacher is None:
        return not_applicable(_OTHER_TEACHER)
    return on_few(subject, judge(found, found.teacher, margin, budget, without_the_noise(subject.evaluated, found)))


measure_regression_scores, assert_regression_scores = scores.measure, scores.assert_


def judge(found: Numbers, teacher: Normals, margin: float, budget: Budget, calm: Normals | None = None) -> Finding:
    """Judge predictions beside the teacher's.

    Args:
        found: What the model predicts, and what occurred.
        teacher: What the teacher predicts.
        margin: How much worse the score may be.
        budget: Error rates.
        calm: What the network at its posterior mean predicts; None where it has none.
    """
    mixture, teacher, labels = (
        found.mixture.scaled(found.scale),
        teacher.scaled(found.scale),
        found.labels / found.scale,
    )
    own, its = mixture.crps(labels), teacher.crps(labels)
    paired = Paired(
        name="CRPS",
        scores=Scores.of(own, its, ranges_of_difference(mixture, teacher)),
        margin=margin,
        budget=budget,
        unit=_UNIT,
    )
    needed = paired.needed(budget.beta if paired.gap < margin else budget.alpha)
    remedy = {
        Verdict.PASS: "",
        Verdict.FAIL: "see teacher.agreement, noise.spread and regression.coverage: a smaller spread, or more "
        "fine-tuning toward the teacher",
        Verdict.INCONCLUSIVE: give_labels(needed or None),
    }[paired.verdict]
    beside = []
    if calm is not None:
        calm = calm.scaled(found.scale)
        beside = [
            _measured("CRPS of the mean network", calm.crps(labels), "with every sigma at 0"),
            _measured("root mean square error of the mean network", labels - calm.mean, root=True),
        ]
    return Finding(
        verdict=paired.verdict,
        headline=paired.headline,
        measurements=(
            _measured("CRPS", own, f"noise by {found.source}" if found.source else "no noise beside the passes"),
            _measured(
                "CRPS of the teacher", its,
                f"noise by {found.teacher_source}" if found.teacher_source else "its absolute error: it has no noise",
            ),
            paired.difference,
            _measured("CRPS of one pass", mixture.crps_of_one_pass(labels)),
            _measured("root mean square error", labels - mixture.mean, root=True),
            _measured("root mean square error of the teacher", labels - teacher.mean, root=True),
            *beside,
            Measurement(name="labels", value=len(found)),
            *([Measurement(name="examples left out", value=found.left_out)] if found.left_out else []),
        ),
        threshold=paired.threshold("difference of the CRPS"),
        remedy=remedy,
        samples=mixture.passes,
        certainty=paired.certainty(
            "difference of the mean CRPS on these examples, over the labels that they may have"
        ),
    )  # fmt: skip


def _measured(name: str, values: Tensor, note: str = "", *, root: bool = False) -> Measurement:
    value = float(values.square().mean().sqrt() if root else values.mean())
    return Measurement(name=name, value=value, unit=_UNIT, note=note)
