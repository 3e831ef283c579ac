"""``slices.temperature``: do the labels of each group follow the predicted distribution?"""

from __future__ import annotations

import math

from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._sides import Side
from pytest_bnn.checks._slices import Claim, Judged, chance, groups_of, shared, together
from pytest_bnn.checks._streamed import on_labels
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding
from pytest_bnn.checks.values import Band, FewPasses
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.likelihoods import Family
from pytest_bnn.subject import Subject

BAND = (0.4, 2.5)


@check(
    claim="In each group of examples the temperature at which labels follow the predictions lies in the declared band.",
    needs=("images", "slices"),
    sampled=True,
    after="uncertainty.errors",
    of_data=True,
)
def temperature(subject: Subject, *, band: Band = BAND, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether the labels of each group follow the predicted distribution.

    It is the claim of ``calibration.temperature`` for each group that ``slices`` names, so that a model which is right
    on average and wrong in one group is found. The band is wider, since groups are smaller than the whole. Any group
    that fails is wrongly named with at most the check's share of the error rate, however many groups there are (Holm).
    Groups that are too small to decide are named; where the teacher is outside of the band on the same side in each
    group that fails, it is inherited, which is a warning.

    Args:
        subject: images with labels, and ``slices``; see `Subject`.
        band: The least and the largest temperature.
        max_passes: The passes that the prediction is the mean of.
        budget: Error rates; those in force when None.

    Source: as ``calibration.temperature``; Holm 1979.
    """
    return in_two_looks(
        lambda passes: on_labels(subject, passes, lambda found: _judge(subject, found, band, budget), by_group=True),
        max_passes,
    )


measure_slices_temperature, assert_slices_temperature = temperature.measure, temperature.assert_


def _judge(subject: Subject, found: Labels, band: tuple[float, float], budget: Budget) -> Finding:
    groups, budget = groups_of(subject, found), shared(found, budget)
    each = budget.split(len(groups))
    judged = [_of(name, found, band, each) for name, found in groups.items()]
    hot = min(judged, key=lambda group: group.p).value > 1
    claim = Claim(
        figure="temperature",
        holds=f"the labels follow the predictions, at temperatures from {band[0]:.3g} to {band[1]:.3g},",
        breaks="the labels do not follow the predictions",
        relation="<=" if hot else ">=",
        allowed=band[1] if hot else band[0],
        other_end=band[0] if hot else band[1],
        remedy="look at the examples of the groups: labels that are wrong there, inputs that were prepared in another "
        "way, or a kind of example that the training had too little of; a temperature for all does not mend it",
    )
    return together(judged, claim, budget, found.passes)


def _of(name: str, found: Labels, band: tuple[float, float], budget: Budget) -> Judged:
    if count := found.own.ruled_out:
        words = f"{count} labels are of classes to which the model gives a probability of 0"
        inherited = found.its is not None and found.its.ruled_out >= count
        return Judged(
            name=name, labels=len(found), value=math.inf, p=0.0, holds=False, inherited=inherited, words=words
        )  # fmt: skip
    family = found.own.temperature
    likely = family.interval(budget.beta)
    ends = (math.log(band[0]), math.log(band[1]))
    sure = "too sure" if family.best > 0 else "not sure enough"
    return Judged(
        name=name,
        labels=len(found),
        value=math.exp(family.best),
        p=_outside(family, ends),
        holds=likely.within(*ends),
        inherited=_is_inherited(found.its, family, ends, budget.alpha),
        words=f"the model is {sure}, with a temperature of {math.exp(family.best):.3g}",
    )


def _outside(family: Family, ends: tuple[float, float]) -> float:
    """Return the p-value of the hypothesis that the temperature lies in the band."""
    if ends[0] <= family.best <= ends[1]:
        return 1.0
    return chance(family.log_evidence(ends[0] if family.best < ends[0] else ends[1]))


def _is_inherited(its: Side | None, own: Family, ends: tuple[float, float], error_rate: float) -> bool:
    if its is None or its.ruled_out:
        return False
    return _outside(its.temperature, ends) <= error_rate and (its.temperature.best > 0) == (own.best > 0)
