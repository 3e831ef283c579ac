"""``calibration.temperature``: do the labels follow the predicted distribution, neither sharper nor flatter?"""

from __future__ import annotations

import math

from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._more import between, give_labels, more_labels
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._streamed import on_labels
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding
from pytest_bnn.checks.values import Band, FewPasses
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.likelihoods import Interval
from pytest_bnn.subject import Subject

BAND = (0.5, 2.0)

#: Likeliest temperatures are looked for from there on.
_LEAST = 0.02


@check(
    claim="The labels follow the predicted distribution: the temperature at which they do lies in the declared band.",
    needs=("images",),
    sampled=True,
    after="teacher.agreement",
    of_data=True,
)
def temperature(subject: Subject, *, band: Band = BAND, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether the labels follow the predicted distribution.

    The labels are compared with ``softmax(log p / t)`` for all temperatures t at once, where p is the mean of the
    passes' probabilities: 1 is what the model says, more is a model that is too sure of itself, less one that is not
    sure enough. The interval of the temperatures that the labels allow holds for any number of labels. It must lie in
    the band; outside of it the claim fails, and where it reaches both sides there are too few labels. Where the
    teacher is outside of the band on the same side, the model has inherited it, which is a warning. Where the model
    does not know the labels better than chance the claim is not applicable.

    Args:
        subject: images with labels, at least; see `Subject`.
        band: The least and the largest temperature.
        max_passes: The passes that the prediction is the mean of, at most: few show that all is well.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.likelihoods`; Guo et al. 2017, "On calibration of modern neural networks".
    """
    return in_two_looks(
        lambda passes: on_labels(subject, passes, lambda found: _judge(found, band, budget)), max_passes
    )


measure_calibration_temperature, assert_calibration_temperature = temperature.measure, temperature.assert_


#: A network has the labels that it was trained with right, which it does not know of itself.
_SEEN = "where the training has seen these examples, give others with --evaluation; otherwise "


def _judge(found: Labels, band: tuple[float, float], budget: Budget) -> Finding:
    if impossible := found.own.ruled_out:
        inherited = found.its is not None and found.its.ruled_out >= impossible
        return Finding(
            verdict=Verdict.WARN if inherited else Verdict.FAIL,
            headline=f"{impossible} of {len(found)} labels are of classes to which the model gives a probability of 0"
            + ("; so does the teacher, and the model has inherited it" if inherited else ""),
            threshold=Threshold(quantity="labels that are ruled out", observed=impossible, relation="==", allowed=0),
            remedy="look for scores of minus infinity: a mask that leaves out classes which occur",
            samples=found.passes,
        )
    family = found.own.temperature
    surely, likely = (family.interval(rate).mapped(_exp) for rate in (budget.alpha, budget.beta))
    verdict = Verdict.INCONCLUSIVE
    if surely.outside(*band):
        verdict = Verdict.FAIL
    elif likely.within(*band):
        verdict = Verdict.PASS
    shown = surely if verdict is Verdict.FAIL else likely
    inherited = verdict is Verdict.FAIL and _inherited(found, surely, band, budget)
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(found, verdict, surely, likely, band, inherited=inherited),
        measurements=(
            Measurement(name="temperature", value=shown.best, note="at which the labels are likeliest"),
            Measurement(name="temperature, lowest", value=_shown(shown.low)),
            Measurement(name="temperature, highest", value=_shown(shown.high)),
            Measurement(name="mean confidence", value=found.own.confidence),
            Measurement(name="accuracy", value=found.own.accuracy),
            Measurement(name="labels", value=len(found)),
            *([Measurement(name="examples left out", value=found.left_out)] if found.left_out else []),
        ),
        threshold=Threshold(
            quantity="temperature",
            observed=shown.best,
            relation="<=" if shown.best > 1 else ">=",
            allowed=band[1] if shown.best > 1 else band[0],
            other_end=band[0] if shown.best > 1 else band[1],
        ),
        remedy=_remedy(found, verdict, likely, band),
        samples=found.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"temperature that {len(found)} labels allow (a mixture of likelihoods)",
            low=shown.low if shown.low > 0 else None,
            high=shown.high if math.isfinite(shown.high) else None,
        ),
    )


def _inherited(found: Labels, surely: Interval, band: tuple[float, float], budget: Budget) -> bool:
    """Say whether the teacher is outside of the band too, on the same side, and the model no further than it may be."""
    if found.its is None:
        return False
    if found.its.ruled_out:
        return surely.best > 1
    teacher = found.its.temperature.interval(budget.alpha).mapped(_exp)
    meets = teacher.low <= surely.high and surely.low <= teacher.high
    return teacher.outside(*band) and (teacher.best > 1) == (surely.best > 1) and meets


def _headline(
    found: Labels, verdict: Verdict, surely: Interval, likely: Interval, band: tuple[float, float], *, inherited: bool
) -> str:
    of = f"({len(found)} labels, {found.passes} passes)"
    if verdict is Verdict.FAIL:
        sure = "too sure of itself" if surely.best > 1 else "less sure of itself than it may be"
        bound = f"at least {surely.low:.3g}" if surely.best > 1 else f"at most {surely.high:.3g}"
        whose = "; so does the teacher's, and the model has inherited it" if inherited else ""
        return (
            f"the model is {sure}: the temperature at which the labels follow its predictions is {_best(surely)}, "
            f"certainly {bound}, and leaves the band of {band[0]:g} to {band[1]:g} {of}{whose}"
        )
    ends = between(likely.low, likely.high)
    if verdict is Verdict.PASS:
        return (
            f"the temperature at which the labels follow the predictions is {likely.best:.3g}, certainly {ends}, where "
            f"1 is what the model says {of}"
        )
    return (
        f"{len(found)} labels are too few to decide: the temperature at which they follow the predictions is {ends}, "
        f"and the band is {band[0]:g} to {band[1]:g}"
    )


def _remedy(found: Labels, verdict: Verdict, likely: Interval, band: tuple[float, float]) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        look = (
            "look at what sets the scale of the scores: a temperature left in the head, a softmax that is applied "
            "twice, a spread that is too wide"
        )
        if likely.best <= _LEAST or likely.best >= 1 / _LEAST:
            return f"{_SEEN}{look}" if likely.best < 1 else look
        scaling = (
            f"dividing the scores by {_best(likely)} would mend it on average (temperature scaling, on data of its own)"
        )
        return f"{_SEEN if likely.best < 1 else ''}{look}; {scaling}"
    wanted = min(math.log(likely.best / band[0]), math.log(band[1] / likely.best)) if likely.best > 0 else 0.0
    reach = max(math.log(likely.best / likely.low) if likely.low > 0 else math.inf, math.log(likely.high / likely.best))
    needed = more_labels(len(found), reach, wanted) if math.isfinite(reach) else None
    return give_labels(needed, ", or fewer of which the model is less sure")


def _best(found: Interval) -> str:
    """Word the likeliest temperature: where all labels are what was said, there is none but 0."""
    return f"{found.best:.3g}" if found.best > _LEAST else f"{_LEAST:.2g} or less"


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0)) if value < math.inf else math.inf


def _shown(value: float) -> float | str:
    return float(f"{value:.3g}") if math.isfinite(value) else "any"
