"""``regression.coverage``: are predicted distributions of numbers as wide as they should be, and in their place?"""

from __future__ import annotations

import math

from pytest_bnn.checks._more import between, give_labels, more_labels
from pytest_bnn.checks._numbers import Numbers, numbers
from pytest_bnn.checks._predictions import PASSES
from pytest_bnn.checks._streamed import on_few
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding, not_applicable
from pytest_bnn.checks.regression._figures import charts, measurements
from pytest_bnn.checks.regression._standard import CHANCE_DISTANCE, Standard
from pytest_bnn.checks.values import Band, FewPasses, NumbersHead, Positive, Share
from pytest_bnn.records.evidence import Certainty, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.intervals import distance_radius
from pytest_bnn.subject import Subject

#: Intervals half as wide as they should be have the factor 2, and some hundred labels tell it from 1.5.
BAND = (0.67, 1.5)

#: Of distribution functions, which lie in [0, 1].
MOST_DISTANT = 0.2

#: A value that is this share of all labels has a probability of its own, which no normal distribution gives it.
_ATOM = 0.1

_NO_NOISE = (
    "the predictions have no spread beside that of the passes, and the claim is about what occurs: declare the noise "
    "of the observations, a standard deviation in units of the outputs (--set regression.coverage.noise=0.3), or let "
    "the network return it beside the mean, as {'mean': ..., 'log_variance': ...} or (mean, log variance)"
)
_ATOMS = (
    "{count} of {of} labels are {value:g}, and a normal distribution gives no single value a probability: the claim is "
    "about quantities that vary continuously"
)


@check(
    claim="Numbers follow their predictive distributions: the factor by which their spread differs lies in the "
    "declared band, and their distribution function is at most a declared distance away.",
    needs=("images",),
    sampled=True,
    after="uncertainty.ood",
    of_data=True,
)
def coverage(
    subject: Subject,
    *,
    band: Band = BAND,
    max_distance: Share = MOST_DISTANT,
    noise: Positive | None = None,
    head: NumbersHead = "auto",
    max_passes: FewPasses = PASSES,
    budget: Budget,
) -> Finding:
    """Measure whether the intervals that a regression predicts hold as much as they should.

    What is predicted for an example is the mixture over passes of normal distributions, by the variance that the head
    gives beside the mean, or by ``noise``. Where the label is drawn from it, the mixture's distribution function at the
    label is uniform, and its normal quantile z is standard normal. The interval of the factor k by which z is wider
    than that must lie in the band: above 1 the predicted intervals are too narrow, below 1 too wide. The largest
    distance of the distribution function from the uniform one must certainly be at most ``max_distance``, which shifts
    break. How many passes there are does not matter: what is judged is the prediction made of just these. A few labels
    far outside, such as errors in the data, are a warning. Where the teacher with a variance of its own is off in the
    same way, the model has inherited it, which is a warning, too.

    Args:
        subject: inputs with numbers as labels, at least; see `Subject`. Of several numbers a row one is judged.
        band: The least and the largest factor of the spread.
        max_distance: The largest distance between the distribution functions.
        noise: The standard deviation of the observations, in units of the outputs, where the head gives none.
        head: What the network gives beside the mean; ``"auto"`` lets the loss and the names of its outputs tell.
        max_passes: The passes that the prediction is the mixture of.
        budget: Error rates; those in force when None.

    Source: Dawid 1984 for the transform; `pytest_bnn.stats.likelihoods.scale` and
    `pytest_bnn.stats.intervals.distance_radius`.
    """
    found = numbers(subject, "regression.coverage", max_passes, head, noise)
    if not found.source:
        return not_applicable(_NO_NOISE)
    values, counts = found.labels.unique(return_counts=True)
    most = int(counts.argmax())
    if int(counts[most]) > max(2, _ATOM * len(found)):
        return not_applicable(_ATOMS.format(count=int(counts[most]), of=len(found), value=float(values[most]) + 0.0))
    return on_few(subject, judge(found, band, max_distance, budget))


measure_regression_coverage, assert_regression_coverage = coverage.measure, coverage.assert_


def judge(found: Numbers, band: tuple[float, float], max_distance: float, budget: Budget) -> Finding:
    """Judge predictions beside what occurred.

    Args:
        found: With a spread.
        band: The least and the largest factor of the spread.
        max_distance: The largest distance between the distribution functions.
        budget: Error rates, which the two share.
    """
    own = Standard.of(found.mixture, found.labels, found.scale, budget)
    wide, apart = own.surely.outside(*band), own.surely_apart > max_distance
    verdict = Verdict.INCONCLUSIVE
    if wide or apart:
        verdict = Verdict.FAIL
    elif own.likely.within(*band) and own.likely_apart <= max_distance:
        verdict = Verdict.WARN if own.far else Verdict.PASS
    inherited = verdict is Verdict.FAIL and _inherited(found, own, band, max_distance, budget)
    shown = own.surely if verdict is Verdict.FAIL else own.likely
    by_distance = (apart and not wide) or (not wide and own.likely.within(*band) and own.likely_apart > max_distance)
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(found, own, band, max_distance, verdict, inherited=inherited),
        measurements=measurements(found, own, shown, budget),
        threshold=Threshold(
            quantity="distance of the distribution functions",
            observed=own.distance,
            relation="<=",
            allowed=max_distance,
        )
        if by_distance
        else Threshold(
            quantity="factor of the spread",
            observed=shown.best,
            relation="<=" if shown.best > 1 else ">=",
            allowed=band[1] if shown.best > 1 else band[0],
            other_end=band[0] if shown.best > 1 else band[1],
        ),
        remedy=_remedy(found, own, band, max_distance, verdict, budget),
        charts=charts(own, budget),
        samples=found.mixture.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"the distance is {_certain_distance(own, verdict)}, and the factor of the spread that "
            f"{len(found)} labels allow (a mixture of likelihoods; half of both rates each)",
            low=shown.low if shown.low > 0 else None,
            high=shown.high if math.isfinite(shown.high) else None,
        ),
    )


def _certain_distance(own: Standard, verdict: Verdict) -> str:
    if verdict is Verdict.FAIL:
        return f"at least {max(0.0, own.surely_apart):.3g}"
    return f"at most {min(1.0, own.likely_apart):.3g}"


def _inherited(found: Numbers, own: Standard, band: tuple[float, float], max_distance: float, budget: Budget) -> bool:
    """Say whether the teacher, with a spread of its own, is off in all that the model is off in."""
    if found.teacher is None or found.teacher_source != "the head" or found.source != "the head":
        return False
    its = Standard.of(found.teacher, found.labels, found.scale, budget)
    if own.surely.outside(*band) and not (its.surely.outside(*band) and (its.surely.best > 1) == (own.surely.best > 1)):
        return False
    if own.surely_apart <= max_distance:
        return True
    return its.surely_apart > max_distance and its.shift * own.shift >= 0


def _headline(
    found: Numbers, own: Standard, band: tuple[float, float], most: float, verdict: Verdict, *, inherited: bool
) -> str:
    of = f"({len(found)} labels, {found.mixture.passes} passes, noise by {found.source})"
    if verdict is Verdict.FAIL:
        whose = "; so it is with the teacher, and the model has inherited it" if inherited else ""
        return f"{_story(own, band, most)} {of}{whose}"
    ends = between(own.likely.low, own.likely.high)
    far = min(1.0, own.likely_apart)
    if verdict is Verdict.PASS:
        return (
            f"the labels follow the predicted distributions: the factor of their spread to the predicted one is "
            f"{own.likely.best:.3g}, certainly {ends}, and the distance of the distribution functions is "
            f"{own.distance:.3g}, certainly at most {far:.3g} {of}"
        )
    if verdict is Verdict.WARN:
        return (
            f"{own.far} of {len(found)} labels lie far outside, up to {float(own.z.abs().max()):.3g} predicted "
            f"standard deviations; the others follow the predictions: the factor of their spread to the predicted one "
            f"is certainly {ends}"
        )
    return (
        f"{len(found)} labels are too few to decide: the factor of their spread to the predicted one is {ends}, where "
        f"{band[0]:g} to {band[1]:g} is allowed, and the distance of the distribution functions is at most {far:.3g}, "
        f"where {most:g} is allowed"
    )


def _shifted(own: Standard, band: tuple[float, float]) -> bool:
    """Say whether a shift alone explains what is wrong."""
    wide = own.surely.outside(*band)
    return own.shift != 0 and (not wide or band[0] <= own.about_shift <= band[1])


def _story(own: Standard, band: tuple[float, float], most: float) -> str:
    wide = own.surely.outside(*band)
    side = f"the labels lie {abs(own.shift):.3g} predicted standard deviations {'above' if own.shift > 0 else 'below'}"
    if _shifted(own, band):
        bound = (
            f"; the distance of the distribution functions is certainly more than {own.surely_apart:.3g}"
            if own.surely_apart > most
            else ""
        )
        return f"the predictions are shifted: on average {side} them{bound}"
    if wide:
        narrow = own.surely.best > 1
        bound = f"at least {own.surely.low:.3g}" if narrow else f"at most {own.surely.high:.3g}"
        rest = f", and {side} them on average" if own.shift else ""
        return (
            f"the predicted intervals are too {'narrow' if narrow else 'wide'}: the labels' spread is "
            f"{own.surely.best:.3g} times the predicted one, certainly {bound}{rest}"
        )
    return (
        "the labels follow distributions of another form than the predicted ones: the distance of the distribution "
        f"functions is {own.distance:.3g}, certainly more than {own.surely_apart:.3g}, and the "
        f"factor of their spread to the predicted one {own.surely.best:.3g}"
    )


def _remedy(
    found: Numbers, own: Standard, band: tuple[float, float], most: float, verdict: Verdict, budget: Budget
) -> str:
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.WARN:
        return "look at these labels for errors; where they are right the noise has heavier tails than a normal one"
    if verdict is Verdict.INCONCLUSIVE:
        return give_labels(_needed(own, band, most, budget, len(found)))
    if _shifted(own, band):
        return (
            "look for what moves all outputs: targets that were centred for the training and not here, a bias that was "
            "not loaded, other units; see teacher.agreement"
        )
    if not own.surely.outside(*band):
        return "plot the labels less their predictions: a likelihood of another form, or a mean that is wrong in places"
    factor = f"{own.surely.best:.3g}"
    if found.source != "the head":
        return (
            f"the declared noise with the spread of the passes is off by {factor}: declare the deviation of the "
            "observations (regression.coverage.noise), not its square, in units of the outputs; for the passes see "
            "noise.spread"
        )
    passes = float(found.mixture.between.mean()) > float(found.mixture.within.mean())
    if own.surely.best < 1 and passes:
        return (
            "most of the predicted variance is what the passes disagree on: see noise.spread; take a narrower posterior"
        )
    return (
        f"multiplying the predicted standard deviations by {factor} would mend it on average (on data of its own); "
        "look first at what sets their scale: a variance taken for a deviation, or for its logarithm, and other units"
    )


def _needed(own: Standard, band: tuple[float, float], most: float, budget: Budget, count: int) -> int | None:
    """Return about how many labels would decide both; None where no number of them would."""
    found = [count]
    if not own.likely.within(*band):
        best = own.likely.best
        if not band[0] < best < band[1] or not own.likely.low > 0 or not math.isfinite(own.likely.high):
            return None
        reach = max(math.log(best / own.likely.low), math.log(own.likely.high / best))
        found.append(more_labels(count, reach, min(math.log(best / band[0]), math.log(band[1] / best))) or count)
    if own.likely_apart > most:
        beyond = max(0.0, own.distance - CHANCE_DISTANCE / math.sqrt(count))
        if beyond >= most:
            return None
        radius = CHANCE_DISTANCE + distance_radius(1, budget.split(2).beta)
        found.append(math.ceil((radius / (most - beyond)) ** 2))
    return max(found) if max(found) > count else None
