"""``calibration.classes``: does each class occur as often as it is predicted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_bnn.checks._labelled import Labels
from pytest_bnn.checks._more import give_labels, more_labels
from pytest_bnn.checks._predictions import PASSES, in_two_looks
from pytest_bnn.checks._sides import Side
from pytest_bnn.checks._streamed import on_labels
from pytest_bnn.checks.check import check
from pytest_bnn.checks.finding import Finding
from pytest_bnn.checks.values import FewPasses, Positive
from pytest_bnn.records.evidence import Certainty, Measurement, Threshold, Verdict
from pytest_bnn.stats.budget import Budget
from pytest_bnn.stats.likelihoods import Interval
from pytest_bnn.subject import Subject

#: Up to so many times the odds that were predicted.
MOST = 10.0


@check(
    claim="Each class occurs as often as it is predicted: the odds of its labels are at most a declared factor away.",
    needs=("images",),
    sampled=True,
    after="calibration.temperature",
    of_data=True,
)
def classes(subject: Subject, *, most: Positive = MOST, max_passes: FewPasses = PASSES, budget: Budget) -> Finding:
    """Measure whether each class occurs as often as it is predicted.

    For each class the labels say by which factor its odds differ from those predicted, in all examples alike: a model
    that is right on average and wrong in one class, which a temperature does not show. The interval of the factors
    that the labels allow holds for any number of labels, and for all classes together. One that lies beyond the
    declared factor, either way, fails; a class for which it reaches across has too few labels. A class that the teacher
    misjudges in the same way is inherited, which is a warning.

    Args:
        subject: images with labels, at least; see `Subject`.
        most: The largest factor, above 1; its inverse is the least.
        max_passes: The passes that the prediction is the mean of, at most: few show that all is well.
        budget: Error rates; those in force when None.

    Source: `pytest_bnn.stats.likelihoods`.
    """

    def judge(found: Labels) -> Finding:
        return _judge(found, max(most, 1 / most), budget, subject.class_names)

    return in_two_looks(lambda passes: on_labels(subject, passes, judge), max_passes)


measure_calibration_classes, assert_calibration_classes = classes.measure, classes.assert_


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """What the labels say of one class: the factors of its odds that they allow, surely and likely."""

    number: int
    labels: int
    predicted: float
    surely: Interval
    likely: Interval


def _judge(found: Labels, most: float, budget: Budget, names: tuple[str, ...]) -> Finding:
    judged = found.own.classes
    each = budget.split(found.own.tested)
    rows = [_of(found.own, number, each) for number in judged]
    limit = math.log(most)
    wrong = [row for row in rows if row.surely.outside(-limit, limit)]
    open_ = [row for row in rows if not row.likely.within(-limit, limit)]
    its = found.its
    inherited = bool(wrong) and its is not None and all(_inherited(its, row, each, limit) for row in wrong)
    verdict = Verdict.FAIL if wrong else Verdict.INCONCLUSIVE if open_ else Verdict.PASS
    worst = max(wrong or rows, key=lambda row: abs(row.surely.best))
    bound = min(abs(worst.surely.low), abs(worst.surely.high)) if wrong else max(_reach(row) for row in rows)
    return Finding(
        verdict=Verdict.WARN if inherited else verdict,
        headline=_headline(found, rows, wrong, open_, names, inherited=inherited),
        measurements=tuple(
            Measurement(
                name=f"class {_listed([row.number], names)}",
                value=float(f"{math.exp(row.likely.best):.3g}"),
                unit="times the odds",
                note=f"{row.labels} labels, {row.predicted:.3g} predicted",
            )
            for row in sorted(rows, key=lambda row: -abs(row.likely.best))[:12]
        ),
        threshold=Threshold(
            quantity=f"factor of the odds of class {worst.number}, either way",
            observed=float(f"{math.exp(min(abs(worst.surely.best), 700)):.3g}"),
            relation="<=",
            allowed=most,
        ),
        remedy=_remedy(found, wrong, open_, limit),
        samples=found.passes,
        certainty=Certainty(
            alpha=budget.alpha,
            beta=budget.beta,
            statistic=f"largest factor of the odds of {len(rows)} classes that {len(found)} labels allow",
            low=math.exp(min(bound, 700)) if wrong else None,
            high=math.exp(bound) if not wrong and bound < 700 else None,
        ),
    )


def _of(side: Side, number: int, budget: Budget) -> _Class:
    family = side.odds(number)
    return _Class(
        number=number,
        labels=side.occurred(number),
        predicted=side.predicted(number),
        surely=family.interval(budget.alpha),
        likely=family.interval(budget.beta),
    )


def _inherited(its: Side, row: _Class, budget: Budget, limit: float) -> bool:
    own = its.odds(row.number).interval(budget.alpha)
    return own.outside(-limit, limit) and (own.best > 0) == (row.surely.best > 0)


def _reach(row: _Class) -> float:
    return max(abs(row.likely.low), abs(row.likely.high))


def _headline(
    found: Labels, rows: list[_Class], wrong: list[_Class], open_: list[_Class], names: tuple[str, ...], *,
    inherited: bool,
) -> str:  # fmt: skip
    if wrong:
        row = max(wrong, key=lambda one: abs(one.surely.best))
        way = "too rarely" if row.surely.best > 0 else "too often"
        others = f"; {len(wrong) - 1} more {'class is' if len(wrong) == 2 else 'classes are'} off, too"
        whose = "; so does the teacher, and the model has inherited it" if inherited else ""
        return (
            f"the model predicts class {_listed([row.number], names)} {way}: {row.labels} of {len(found)} labels "
            f"are of it, and {row.predicted:.3g} are predicted; its odds are off by a factor of "
            f"{math.exp(min(abs(row.surely.best), 700)):.3g}{others if len(wrong) > 1 else ''}{whose}"
        )
    if open_:
        numbers = [row.number for row in sorted(open_, key=lambda row: row.labels)]
        which = _listed(numbers, names)
        one = f"class {which} of {len(rows)} occurs" if len(open_) == 1 else ""
        how = one or f"{len(open_)} of {len(rows)} classes occur: {which}"
        return f"{len(found)} labels are too few to decide how often {how}"
    worst = max(rows, key=_reach)
    return (
        f"all {len(rows)} classes occur as often as they are predicted: their odds are off by a factor of "
        f"at most {math.exp(_reach(worst)):.3g} ({len(found)} labels, {found.passes} passes)"
    )


def _remedy(found: Labels, wrong: list[_Class], open_: list[_Class], limit: float) -> str:
    if wrong:
        return (
            "look at the examples of this class: labels that were exchanged, a column of the head that was not loaded, "
            "a class that was rare in training; shares of classes that differ from training's call for another prior"
        )
    if not open_:
        return ""
    needed = [
        more_labels(len(found), max(abs(row.likely.low - row.likely.best), abs(row.likely.high - row.likely.best)),
                    limit - abs(row.likely.best))
        for row in open_
        if math.isfinite(_reach(row))
    ]  # fmt: skip
    if len(needed) < len(open_) or None in needed:
        return give_labels(None, " of these classes")
    return give_labels(max(n for n in needed if n))


def _listed(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Name some classes."""
    shown = [f"{number} ({names[number]})" if number < len(names) else str(number) for number in numbers[:4]]
    return ", ".join(shown) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")
